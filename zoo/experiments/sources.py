"""From the names of feature sets to feature sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from histostore.errors import Ambiguous, HistostoreError, NotFound, summarise
from histostore.store import open_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from histostore.store import FeatureSet, Store
    from zoo.experiments.reading import Source

__all__ = ["chosen_sets", "find_set"]


def chosen_sets(
    sources: Iterable[Source], storage_options: Mapping[str, Any] | None = None
) -> dict[str, FeatureSet]:
    """Open the feature sets of an experiment.

    Parameters
    ----------
    sources
        What the experiment calls them, and where they lie.
    storage_options
        For stores in a bucket.

    Returns
    -------
    dict
        Alias to feature set.

    Raises
    ------
    NotFound
        If one cannot be opened; ``problems`` lists all of them.
    """
    stores: dict[str, Store] = {}
    found: dict[str, FeatureSet] = {}
    problems: list[str] = []
    for source in sources:
        try:
            if source.store not in stores:
                stores[source.store] = open_store(source.store, storage_options)
            found[source.alias] = find_set(stores[source.store], source.feature_set)
        except HistostoreError as error:
            problems.append(f"features {source.alias}: {error}")
    if problems:
        raise NotFound(summarise("the experiment", problems), problems=problems)
    return found


def find_set(store: Store, name: str | None) -> FeatureSet:
    """Give the feature set of a name, or the only one of an encoder's name.

    Parameters
    ----------
    store
        Open.
    name
        ``texture-92a8cad1``, or ``texture``; None for the only one of the store.

    Raises
    ------
    NotFound
        If there is none; lists what there is.
    Ambiguous
        If the encoder has several, or none is named and there are several; lists them.
    """
    if name is None or name in store:
        return store.feature_set(name)
    of_encoder = [each for each in store if store[each].spec.encoder.name == name]
    if len(of_encoder) > 1:
        raise Ambiguous(
            f"{store.url} holds several feature sets of {name}, name one: {', '.join(of_encoder)}"
        )
    return store.feature_set(of_encoder[0] if of_encoder else name)
