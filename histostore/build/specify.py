"""From options to the specification of a feature set."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from histostore.build.stain import find_target, load_target
from histostore.build.unit import encoder_of
from histostore.errors import OptionError
from histostore.images.stain import METHODS, StainTarget
from histostore.spec import FeatureSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from histostore.build.options import BuildOptions
    from histostore.cohort import Cohort

__all__ = ["settle_stain", "specify"]


def specify(options: BuildOptions) -> FeatureSpec:
    """Give the feature set that options mean; loads the encoder, which is kept.

    Raises
    ------
    EncoderError
        If the encoder is unknown or its weights do not fit.
    """
    encoder = encoder_of(options.encoder)
    return FeatureSpec(
        encoder=encoder.identity,
        n_features=encoder.n_features,
        grid=options.grid,
        tissue=options.tissue,
        quality=options.quality,
        stain=options.stain,
        dtype=options.dtype,
    )


def settle_stain(
    options: BuildOptions,
    cohort: Cohort,
    store_url: str,
    *,
    source: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[BuildOptions, str]:
    """Settle what the colours go to, where only a method is named.

    Parameters
    ----------
    options
        What to embed, and how.
    cohort
        All images, before the cohort is cut into parts.
    store_url
        Where the store is, or shall be.
    source
        Where to take the target from (:func:`~histostore.build.stain.load_target`); None
        looks in the store, and else measures the cohort
        (:func:`~histostore.build.stain.find_target`).
    storage_options
        For the storage driver.
    progress
        Told how many images are measured, of how many.

    Returns
    -------
    options, origin
        With a target, unless nothing is normalised; and where it was found, empty where it
        was in the options.

    Raises
    ------
    OptionError
        If the method is unknown, a target is given twice, or the cohort gives none.
    NotFound, Ambiguous
        If the source has none, or several.
    """
    if isinstance(options.stain, str) and options.stain not in METHODS:
        known = ", ".join(METHODS)
        raise OptionError(f"unknown stain normalisation {options.stain!r}; known: {known}")
    if isinstance(options.stain, StainTarget):
        if source is not None:
            raise OptionError(f"a stain target is given, and {source} beside it; give one")
        return options, ""
    if source is not None:
        found = load_target(source, options.stain, storage_options)
    elif options.stain == "none":
        return options, ""
    else:
        found = find_target(
            specify(options),
            cohort,
            store_url,
            storage_options=storage_options,
            progress=progress,
        )
    return replace(options, stain=found.target), found.origin
