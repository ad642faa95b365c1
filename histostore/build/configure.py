"""From the words of ``histostore build`` to a build."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from histostore.build.options import BuildOptions, EncoderOptions
from histostore.build.run import build
from histostore.build.specify import settle_stain
from histostore.cohort import Cohort
from histostore.grid import PatchGrid
from histostore.images.quality import QualityFilter
from histostore.images.tissue import TissueFilter
from histostore.views import is_seeded, parse_views

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from histostore.build.report import BuildReport, Progress
    from histostore.progress import Show

__all__ = ["build_options", "build_part", "patch_options"]

_PATCHES = ("patch_size", "stride", "mpp", "min_annotated", "tissue", "min_tissue", "top_k")
_QUALITY = ("min_sharpness", "min_dark_share")
_BLIND = frozenset({"cell-graph", "texture"})
"""Encoders to which a patch turned by right angles is the same patch."""


def patch_options(
    *,
    patch_size: int,
    stride: int | None,
    mpp: float | None,
    min_annotated: float | None,
    tissue: str,
    min_tissue: float,
    top_k: int | None,
) -> tuple[PatchGrid, TissueFilter]:
    """Say where patches lie and which are kept, by options as the command line names them.

    Raises
    ------
    OptionError
        If a value makes no sense.
    """
    grid = PatchGrid(patch_size, stride, mpp, min_annotated)
    return grid, TissueFilter(method=tissue, min_tissue=min_tissue, top_k=top_k)


def build_options(
    *, encoder: str, augment: str, stain: str, dtype: str, **given: Any
) -> tuple[BuildOptions, tuple[str, ...]]:
    """Turn options as they are named on the command line into values.

    Parameters
    ----------
    encoder, augment, stain, dtype
        As ``histostore build`` has them; views in ``augment`` are joined by commas.
    given
        As of :func:`patch_options`; ``min_sharpness``, ``min_dark_share``; the rest is for
        :class:`~histostore.build.options.EncoderOptions`.

    Returns
    -------
    options, notes
        What to build, and what is to be known of it, a line each.

    Raises
    ------
    OptionError
        If a value makes no sense.
    """
    views = parse_views(augment)
    n_square = sum(not is_seeded(view) for view in views)
    notes = (
        f"{encoder} sees no difference between right-angle views: {n_square} of them "
        f"cost {n_square} times as much and add nothing to one",
    )
    grid, tissue = patch_options(**{key: given.pop(key) for key in _PATCHES})
    quality = QualityFilter(**{key: given.pop(key) for key in _QUALITY})
    options = BuildOptions(
        grid=grid,
        tissue=tissue,
        quality=quality,
        stain=stain,
        encoder=EncoderOptions(name=encoder, **given),
        views=views,
        dtype=dtype,
    )
    return options, notes if encoder in _BLIND and n_square > 1 else ()


def build_part(
    cohort: str,
    store_url: str,
    options: BuildOptions,
    *,
    stage: Callable[[str], AbstractContextManager[Show]],
    say: Callable[[str], None] = lambda _: None,
    shard: tuple[int, int] = (1, 1),
    limit: int | None = None,
    stain_from: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    **where: Any,
) -> BuildReport:
    """Settle what the colours go to by all images of a cohort, then embed a part of them.

    Parameters
    ----------
    cohort
        Where the table of all images is.
    store_url, options, storage_options
        As of :func:`~histostore.build.run.build`.
    stage
        Shows progress, as :func:`histostore.progress.shown`.
    say
        Told where a stain target was found.
    shard
        ``(i, n)``: the part ``i`` of ``n``.
    limit
        The first so many images of that part.
    stain_from
        The ``source`` of :func:`~histostore.build.specify.settle_stain`.
    where
        ``workers``, ``scheduler`` and ``reembed_changed`` of :func:`~histostore.build.run.build`.

    Raises
    ------
    HistostoreError
        If there is nothing to build, or the options, the stain or the store make no sense.
    """
    images = Cohort.read(cohort, storage_options=storage_options)
    with stage("measuring stain") as show:
        options, origin = settle_stain(
            options,
            images,
            store_url,
            source=stain_from,
            storage_options=storage_options,
            progress=lambda done, total: show(done, total, "images"),
        )
    if origin:
        say(f"stain target {origin}")
    part = images.shard(*shard)
    part = part.limit(limit) if limit else part
    with stage("embedding images") as show:
        return build(
            part,
            store_url,
            options,
            storage_options=storage_options,
            progress=_beside_rate(show),
            **where,
        )


def _beside_rate(show: Show) -> Callable[[Progress], None]:
    """Tell of images done and, beside them, of patches per second and of failures."""
    began = time.monotonic()

    def tell(now: Progress) -> None:
        rate = now.n_patches / max(time.monotonic() - began, 1e-3)
        failed = f" · {now.n_failed:,} failed" if now.n_failed else ""
        show(now.n_images, now.n_total, f"{rate:,.0f} patches/s{failed}")

    return tell
