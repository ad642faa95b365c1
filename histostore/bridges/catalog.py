"""The layouts there are, as tables; a module is imported when its layout is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from histostore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["EXPORTS", "IMPORTS", "LayoutCard", "find"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutCard:
    """One layout, in one direction."""

    function: str
    """``module:function`` that lists the images of a source, or writes those of a store."""

    summary: str
    """What the layout looks like."""

    options: tuple[str, ...] = ()
    """Options that this layout alone takes."""

    def load(self) -> Callable[..., Any]:
        """Import the function."""
        module, _, name = self.function.partition(":")
        function: Callable[..., Any] = getattr(import_module(module), name)
        return function


IMPORTS: Mapping[str, LayoutCard] = {
    "trident": LayoutCard(
        function="histostore.bridges.trident:list_images",
        summary="<mag>x_<px>px_<px>px_overlap/features_<encoder>/<slide>.h5",
    ),
    "clam": LayoutCard(
        function="histostore.bridges.clam:list_images",
        summary="h5_files/<slide>.h5 and pt_files/<slide>.pt, or a folder of either",
    ),
    "stamp": LayoutCard(
        function="histostore.bridges.stamp:list_images",
        summary="<extractor>/<slide>.h5 with feats, and coords in µm",
        options=("mpp",),
    ),
    "slide2vec": LayoutCard(
        function="histostore.bridges.slide2vec:list_images",
        summary="tile_embeddings/<slide>.pt or .npz, each with its .meta.json",
    ),
    "raw2features": LayoutCard(
        function="histostore.bridges.raw2features:list_images",
        summary="<slide>.embeddings.zarr with grids/<grid>/features/<model>",
    ),
    "npz": LayoutCard(
        function="histostore.bridges.npz:list_images",
        summary="one .npz: X (instance, feature), bag (instance), y (bag)",
    ),
}
"""Layouts that can be read."""

EXPORTS: Mapping[str, LayoutCard] = {
    "trident": LayoutCard(
        function="histostore.bridges.trident:write_images", summary=IMPORTS["trident"].summary
    ),
    "clam": LayoutCard(
        function="histostore.bridges.clam:write_images",
        summary="h5_files/<slide>.h5 and pt_files/<slide>.pt, float32",
    ),
    "anndata": LayoutCard(
        function="histostore.bridges.anndata:write_images",
        summary="one AnnData Zarr group: X, obs, obsm/spatial; one row per patch",
    ),
    "parquet": LayoutCard(
        function="histostore.bridges.parquet:write_images",
        summary="one Parquet table: image_id, x, y, tissue, embedding; one row per patch",
    ),
    "npz": LayoutCard(
        function="histostore.bridges.npz:write_images",
        summary="one .npz: X, bag, image_id, coords, tissue",
    ),
}
"""Layouts that can be written."""


def find(layout: str, table: Mapping[str, LayoutCard]) -> LayoutCard:
    """Find a layout by name.

    Raises
    ------
    OptionError
        If there is none of this name; lists those there are.
    """
    if layout not in table:
        raise OptionError(f"unknown layout {layout!r}; known: {', '.join(table)}")
    return table[layout]
