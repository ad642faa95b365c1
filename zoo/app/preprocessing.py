"""From a picture to vectors, exactly as a run's training had them.

The feature set that a run was fitted on says all that decides a vector. Here it is carried out
on one more image by what carries it out in a build, with the encoder held to the identity that
the run recorded.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from histostore.build.gather import gather_fragments, patches_of
from histostore.build.options import EncoderOptions
from histostore.build.pipeline import EncodedImage, Failure, ImageJob, encode_images
from histostore.encoders.catalog import card
from histostore.encoders.fusion import members, weights_of
from histostore.errors import EncoderError, ImageError
from histostore.files import stat
from histostore.spec import FeatureSpec
from histostore.store.streaming import FragmentStream
from zoo.errors import NotSupported, RunError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from histostore.encoders.base import Encoder, EncoderIdentity
    from histostore.images.patches import Selection
    from histostore.store import FeatureSet
    from histostore.store.reader import Store
    from zoo.run import Run

__all__ = ["UPLOAD", "Embedded", "Preprocessing", "embed", "preprocessings", "spec_of_run"]

UPLOAD = "upload"
"""``image_id`` of the one image of a store that is made for it."""

_READ_THREADS = 2
_SHOWN = 60


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Preprocessing:
    """How an image becomes one feature set."""

    spec: FeatureSpec
    encoder: Encoder
    """Of the very identity that the specification names."""
    views: tuple[str, ...]
    """What is stored of every patch: all views that some run tests on."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Embedded:
    """One image in one feature set."""

    features: FeatureSet
    """Holds :data:`UPLOAD`."""
    selection: Selection
    """Which patches were kept, and what is to be said of them."""


def spec_of_run(run: Run) -> FeatureSpec:
    """Read the specification of the feature set that a run was fitted on.

    Raises
    ------
    RunError
        If it was fitted on arrays.
    """
    told = (run.document.get("store") or {}).get("spec")
    if not told:
        raise RunError(
            f"{run.path} was not fitted to a store, so what makes vectors of an image is not known"
        )
    return FeatureSpec.from_json(told)


def preprocessings(
    needed: Sequence[tuple[FeatureSpec, tuple[str, ...]]],
    *,
    weights: str | None = None,
    device: str = "auto",
) -> tuple[Preprocessing, ...]:
    """Load every encoder that is needed, once, and hold it to what was recorded.

    Parameters
    ----------
    needed
        Specifications with the views that are read of them; may repeat.
    weights
        Weights on disk where they are not to be downloaded: a path, or ``NAME=PATH`` with commas
        between.
    device
        Where encoders run.

    Returns
    -------
    preprocessings
        One for each specification.

    Raises
    ------
    EncoderError
        If an encoder cannot be had here, or is another than that of the training.
    NotSupported
        If colours were normalised to a target that was not recorded.
    """
    views: dict[str, dict[str, None]] = {}
    specs: dict[str, FeatureSpec] = {}
    for spec, asked in needed:
        specs.setdefault(spec.digest, spec)
        views.setdefault(spec.digest, {}).update(dict.fromkeys(asked))
        if isinstance(spec.stain, str) and spec.stain != "none":
            raise NotSupported(
                f"{spec.name} was normalised by {spec.stain} to a target that was not recorded: "
                "new images cannot be made to look like those of the training"
            )
    encoders = _encoders([spec.encoder for spec in specs.values()], weights, device)
    return tuple(
        Preprocessing(
            spec=spec, encoder=encoders[_key(spec.encoder)], views=tuple(views[spec.digest])
        )
        for spec in specs.values()
    )


def embed(
    path: str, using: Sequence[Preprocessing], store: Store, *, mpp: float | None = None
) -> tuple[Embedded, ...]:
    """Make the vectors of one image, in each feature set.

    Parameters
    ----------
    path
        A local file.
    using
        What to make.
    store
        Open for writing, without these feature sets' :data:`UPLOAD`.
    mpp
        Micrometres per pixel of level 0; wins over the file's own.

    Raises
    ------
    StorageError
        If there is no such file.
    ImageError
        If the image cannot be read, or lacks the scale that a grid needs.
    """
    job = ImageJob(image_id=UPLOAD, source=stat(path), mpp=mpp)
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        return tuple(_embed(job, one, store, pool) for one in using)


def _embed(job: ImageJob, using: Preprocessing, store: Store, pool: ThreadPoolExecutor) -> Embedded:
    features = store.create_feature_set(using.spec)
    images = encode_images(
        [job], using.spec, using.encoder, using.views, pool=pool, stream=features.stream
    )
    (image,) = images
    if isinstance(image, Failure):
        raise ImageError(image.reason)
    _commit(image, features, using.views)
    return Embedded(features=features, selection=image.selection)


def _commit(image: EncodedImage, features: FeatureSet, views: tuple[str, ...]) -> None:
    if isinstance(image.rows, FragmentStream):
        image.rows.commit(patches_of([image], views), {})
        return
    for fragment in gather_fragments([image], views):
        features.commit(fragment, {})


def _key(identity: EncoderIdentity) -> str:
    return json.dumps(identity.to_json(), sort_keys=True)


def _encoders(
    wanted: Sequence[EncoderIdentity], weights: str | None, device: str
) -> dict[str, Encoder]:
    """Load encoders: identity, as :func:`_key` writes it, to the encoder."""
    names = dict.fromkeys(name for identity in wanted for name in members(identity.name))
    given = weights_of([card(name) for name in names], weights)
    found: dict[str, Encoder] = {}
    for identity in wanted:
        if _key(identity) not in found:
            parts = [f"{n}={given[n]}" for n in members(identity.name) if given[n]]
            found[_key(identity)] = _load(identity, ",".join(parts) or None, device)
    return found


def _load(identity: EncoderIdentity, weights: str | None, device: str) -> Encoder:
    try:
        encoder = EncoderOptions(
            name=identity.name, weights=weights, device=device, precision=identity.precision
        ).load()
    except EncoderError as error:
        raise EncoderError(f"encoder {identity.name} of the training: {error}") from error
    differing = list(_differences(identity, encoder.identity))
    if differing:
        raise EncoderError(
            f"encoder {identity.name} is not that of the training: {'; '.join(differing)}; give "
            f"--weights {identity.name}=PATH the file of the build, and the same versions"
        )
    return encoder


def _differences(wanted: EncoderIdentity, found: EncoderIdentity) -> Iterator[str]:
    there, here = wanted.to_json(), found.to_json()
    for key in there:
        if there[key] != here[key]:
            yield f"{key} {str(there[key])[:_SHOWN]} then, {str(here[key])[:_SHOWN]} here"
