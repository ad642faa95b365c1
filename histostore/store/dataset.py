"""A feature set as one lazy xarray data set, selected by image and place."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import xarray as xr
from xarray.indexes import Index

from histostore.errors import NotFound, OptionError
from histostore.store.layout import fragment_folder
from histostore.store.loading import load_array
from histostore.store.shards import ShardRead, plan_reads, read_rows

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

    import dask.array as da
    from numpy.typing import NDArray

    from histostore.store.backend import Backend
    from histostore.store.loading import LoadPlan
    from histostore.store.record import ArrayLayout

__all__ = ["PatchIndex", "lazy_dataset"]

_DIM = "patch"
_LEVELS = ("image_id", "y", "x")


def lazy_dataset(backend: Backend, feature_set: str, plan: LoadPlan) -> xr.Dataset:
    """Give the rows of a plan as a data set; of the embedding nothing is read.

    Parameters
    ----------
    backend, feature_set
        Where the fragments lie.
    plan
        Rows, whole fragments in order.
    """
    counts = np.diff(plan.offset)
    codes = np.repeat(np.arange(len(plan.image_ids)), counts)
    names = np.array(plan.image_ids, dtype=object)
    y, x, tissue = (load_array(backend, feature_set, plan, name) for name in ("y", "x", "tissue"))
    columns = {name: (_DIM, load_array(backend, feature_set, plan, name)) for name in plan.columns}
    dataset = xr.Dataset(
        {
            "embedding": ((_DIM, "feature"), _lazy_embedding(backend, feature_set, plan)),
            **columns,
        },
        coords={"tissue": (_DIM, tissue)},
        attrs={"feature_set": feature_set, "augmentation": plan.augmentation},
    )
    index = PatchIndex(names, codes, y, x)
    return dataset.assign_coords(xr.Coordinates.from_xindex(index))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    """The rows wanted of one stored chunk: a task without arguments."""

    backend: Backend
    folder: str
    layout: ArrayLayout
    read: ShardRead
    n_rows: int

    def __call__(self) -> NDArray[Any]:
        rows = np.empty((self.n_rows, self.layout.shape[2]), self.layout.kind)
        read_rows(self.backend, self.folder, self.layout, self.read, rows)
        return rows


def _lazy_embedding(backend: Backend, feature_set: str, plan: LoadPlan) -> da.Array:
    import dask.array as da

    blocks = list(_blocks(backend, feature_set, plan))
    identity = [backend.url, feature_set, plan.augmentation]
    identity += [record.fragment_id for record, _ in plan.parts]
    name = "embedding-" + hashlib.sha256("\n".join(identity).encode()).hexdigest()[:32]
    layout = plan.parts[0][0].arrays["embedding"]
    return da.Array(  # type: ignore[no-untyped-call]
        {(name, number, 0): (block,) for number, block in enumerate(blocks)},
        name,
        chunks=(tuple(block.n_rows for block in blocks), (layout.shape[2],)),
        dtype=np.dtype(layout.kind),
    )


def _blocks(backend: Backend, feature_set: str, plan: LoadPlan) -> Iterable[_Block]:
    """Yield a block for each stored chunk, in the order of the rows."""
    for record, runs in plan.parts:
        layout = record.arrays["embedding"]
        view = record.augmentations.index(plan.augmentation)
        for shard in plan_reads("embedding", layout, view, runs):
            for position, first, wanted in shard.chunks:
                base = wanted[0][2]
                local = tuple((start, stop, target - base) for start, stop, target in wanted)
                yield _Block(
                    backend=backend,
                    folder=fragment_folder(feature_set, record.fragment_id),
                    layout=layout,
                    read=ShardRead(path=shard.path, chunks=((position, first, local),)),
                    n_rows=sum(stop - start for start, stop, _ in local),
                )


class PatchIndex(Index):
    """Select patches by image, and by place in it.

    ``image_id`` takes a name or a sequence of names; ``y`` and ``x`` take a number, a
    sequence of numbers, or a slice of which both ends count, as everywhere in xarray.

    Parameters
    ----------
    names
        ``(image,)``: names of images, distinct.
    codes
        ``(patch,)``: position in ``names`` of each patch's image.
    y, x
        ``(patch,)``: top-left corners in level-0 pixels.
    """

    def __init__(
        self,
        names: NDArray[Any],
        codes: NDArray[np.intp],
        y: NDArray[np.int32],
        x: NDArray[np.int32],
    ) -> None:
        self.names = names
        self.codes = codes
        self.places = {"y": y, "x": x}
        self._code_of = {name: code for code, name in enumerate(names)}
        self._sorted = bool((np.diff(codes) >= 0).all())

    @classmethod
    def from_variables(
        cls, variables: Mapping[Any, xr.Variable], *, options: Mapping[str, Any]
    ) -> Self:
        """Build the index from ``image_id``, ``y`` and ``x``."""
        del options
        if set(variables) != set(_LEVELS):
            raise OptionError(f"PatchIndex takes coordinates {', '.join(_LEVELS)}")
        codes, names = pd.factorize(np.asarray(variables["image_id"].values, dtype=object))
        return cls(names, codes, variables["y"].values, variables["x"].values)

    @classmethod
    def concat(
        cls,
        indexes: Sequence[Self],
        dim: Hashable,
        positions: Iterable[Iterable[int]] | None = None,
    ) -> Self:
        """Join the indexes of data sets that are joined along ``patch``."""
        del dim
        codes, names = pd.factorize(np.concatenate([each.names[each.codes] for each in indexes]))
        y, x = (np.concatenate([each.places[level] for each in indexes]) for level in ("y", "x"))
        if positions is not None:
            order = np.argsort(np.concatenate([np.asarray(each) for each in positions]))
            codes, y, x = codes[order], y[order], x[order]
        return cls(names, codes, y, x)

    def create_variables(
        self, variables: Mapping[Any, xr.Variable] | None = None
    ) -> dict[Hashable, xr.Variable]:
        """Give the coordinates that the index stands for."""
        values = {"image_id": self.names[self.codes], **self.places}
        attrs = {name: variable.attrs for name, variable in (variables or {}).items()}
        return {name: xr.Variable(_DIM, values[name], attrs.get(name)) for name in _LEVELS}

    def isel(self, indexers: Mapping[Any, int | slice | NDArray[Any] | xr.Variable]) -> Self | None:
        """Follow a selection by position; one patch alone needs no index."""
        chosen = indexers.get(_DIM, slice(None))
        if isinstance(chosen, xr.Variable):
            chosen = chosen.values
        if not isinstance(chosen, slice) and np.ndim(chosen) != 1:
            return None
        y, x = self.places["y"][chosen], self.places["x"][chosen]
        return type(self)(self.names, self.codes[chosen], y, x)

    def sel(self, labels: dict[Any, Any], **options: Any) -> Any:
        """Turn labels into positions.

        Raises
        ------
        NotFound
            If an image, or a place given by number, is not there.
        """
        from xarray.core.indexing import IndexSelResult

        if options.get("method") is not None or options.get("tolerance") is not None:
            raise OptionError("patches are selected exactly: leave method and tolerance out")
        found = self._images(labels.get("image_id", slice(None)))
        for level, places in self.places.items():
            if level in labels:
                kept = _matches(level, places[found], labels[level])
                found = np.arange(len(self.codes))[found][kept]
        return IndexSelResult({_DIM: found})

    def _images(self, label: Any) -> slice | NDArray[np.intp]:
        if isinstance(label, slice):
            if label != slice(None):
                raise OptionError("select images by name, or by a list of names, not by a slice")
            return label
        values = _plain(label)
        if isinstance(values, str):
            return self._image(values)
        everything = np.arange(len(self.codes))
        parts = [everything[self._image(name)] for name in values]
        return np.concatenate([np.empty(0, np.intp), *parts])

    def _image(self, name: str) -> slice | NDArray[np.intp]:
        code = self._code_of.get(name)
        if code is None:
            raise NotFound(f"no image {name!r} in this data set of {len(self.names)} images")
        if self._sorted:
            start, stop = np.searchsorted(self.codes, [code, code + 1])
            return slice(int(start), int(stop))
        return np.flatnonzero(self.codes == code)

    def equals(self, other: Index, *, exclude: frozenset[Hashable] | None = None) -> bool:
        """Say whether two indexes hold the same patches in the same order."""
        del exclude
        return (
            isinstance(other, PatchIndex)
            and np.array_equal(self.names[self.codes], other.names[other.codes])
            and all(np.array_equal(self.places[at], other.places[at]) for at in self.places)
        )

    def rename(self, name_dict: Mapping[Any, Hashable], dims_dict: Mapping[Any, Hashable]) -> Self:
        """Refuse new names: labels are told apart by the old ones."""
        taken = [name for name in (*_LEVELS,) if name in name_dict] + [
            name for name in dims_dict if name == _DIM
        ]
        if taken:
            raise OptionError(
                f"{', '.join(map(str, taken))} is indexed: drop_indexes({list(_LEVELS)}) first"
            )
        return self


def _plain(label: Any) -> Any:
    """Take a label out of what xarray may wrap it in."""
    if isinstance(label, xr.Variable | xr.DataArray):
        label = label.values
    if isinstance(label, np.ndarray):
        return label.tolist()
    return label


def _matches(level: str, places: NDArray[np.int32], label: Any) -> NDArray[np.bool_]:
    if isinstance(label, slice):
        if label.step is not None:
            raise OptionError(f"a slice of {level} takes no step")
        kept = np.ones(len(places), bool)
        if label.start is not None:
            kept &= places >= label.start
        if label.stop is not None:
            kept &= places <= label.stop
        return kept
    wanted = np.atleast_1d(np.asarray(_plain(label)))
    absent = wanted[~np.isin(wanted, places)]
    if len(absent):
        raise NotFound(f"no patch at {level}={absent[0]} among the {len(places)} selected")
    return np.isin(places, wanted)
