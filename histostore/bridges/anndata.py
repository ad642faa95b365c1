"""AnnData: one Zarr group that scanpy, squidpy and their like open; one row per patch.

::

    X                 (patch, feature)        in the stored type
    obs               _index, image_id (categorical), tissue
    var               _index
    obsm/spatial      (patch, 2) int32        x and y in level-0 pixels
    uns/histostore    feature_set, augmentation, spec

Written to the letter of AnnData's documented format, in Zarr 2, which every version since
0.8 reads; the library itself is not needed. What makes the group an AnnData object, the
attributes of its root, is written last.

Reference: scverse/anndata, docs/fileformat-prose.md.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import OptionError
from histostore.files import driver_errors, filesystem, local_path, public_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from histostore.bridges.outgoing import ExportJob

__all__ = ["write_images"]

_CHUNK_BYTES = 4 * 2**20
_COLUMN_ROWS = 2**17
_TYPES = {
    "anndata": "0.1.0",
    "array": "0.2.0",
    "categorical": "0.2.0",
    "dataframe": "0.2.0",
    "dict": "0.1.0",
    "string": "0.2.0",
    "string-array": "0.2.0",
}
_EMPTY = ("layers", "obsp", "varm", "varp")
_OURS = {".zattrs", ".zgroup", ".zmetadata", "X", "obs", "obsm", "uns", "var", *_EMPTY}


def write_images(job: ExportJob) -> int:
    """Write the group; give the number of groups.

    Raises
    ------
    OptionError
        If there is a folder that is not of an earlier export: it would have to be emptied.
    """
    import zarr

    url = job.target.url
    if strange := _members(job) - _OURS:
        raise OptionError(
            f"{public_url(url)} is no AnnData group (it holds {min(strange)}): not overwritten"
        )
    options: Any = (
        {} if local_path(url) is not None else {"storage_options": job.target.storage_options}
    )
    with driver_errors(url, job.target.storage_options):
        root = zarr.open_group(url, mode="w", zarr_format=2, **options)
        _write_frames(root, job)
        _write_rows(root, job)
        _write_about(root, job)
        root.attrs.update(_kind("anndata"))
        zarr.consolidate_metadata(root.store)
    return 1


def _members(job: ExportJob) -> set[str]:
    """Name what lies in the target already."""
    url, options = job.target.url, job.target.storage_options
    fs, path = filesystem(url, options)
    with driver_errors(url, options):
        names = fs.ls(path, detail=False) if fs.exists(path) else []
    return {str(name).rstrip("/").rpartition("/")[2] for name in names}


def _kind(name: str) -> dict[str, str]:
    return {"encoding-type": name, "encoding-version": _TYPES[name]}


def _group(parent: Any, name: str, kind: str, **attributes: Any) -> Any:
    return parent.create_group(name, attributes={**_kind(kind), **attributes})


def _numbers(parent: Any, name: str, shape: tuple[int, ...], dtype: str, rows: int) -> Any:
    return parent.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(max(1, min(rows, shape[0])), *shape[1:]),
        compressors=None,
        attributes=_kind("array"),
    )


def _strings(parent: Any, name: str, n: int) -> Any:
    from zarr.dtype import VariableLengthUTF8

    return parent.create_array(
        name,
        shape=(n,),
        dtype=VariableLengthUTF8(),
        chunks=(max(1, min(_COLUMN_ROWS, n)),),
        attributes=_kind("string-array"),
    )


def _write_frames(root: Any, job: ExportJob) -> None:
    """Write all of obs and var but the columns that are read with the rows."""
    spec, n = job.features.spec, job.n_patches
    ids = [*job.n_rows]
    obs = _group(
        root, "obs", "dataframe", **{"_index": "_index", "column-order": ["image_id", "tissue"]}
    )
    column = _group(obs, "image_id", "categorical", ordered=False)
    _strings(column, "categories", len(ids))[:] = _objects(ids)
    codes = np.repeat(np.arange(len(ids), dtype=np.int32), [*job.n_rows.values()])
    _numbers(column, "codes", (n,), "int32", _COLUMN_ROWS)[:] = codes
    names = _strings(obs, "_index", n)
    for start, part in _row_names(job):
        names[start : start + len(part)] = _objects(part)
    var = _group(root, "var", "dataframe", **{"_index": "_index", "column-order": []})
    _strings(var, "_index", spec.n_features)[:] = _objects(
        [f"feature_{number}" for number in range(spec.n_features)]
    )


def _objects(names: Sequence[str]) -> np.ndarray[Any, np.dtype[np.object_]]:
    return np.array(names, dtype=object)


def _row_names(job: ExportJob) -> Iterator[tuple[int, list[str]]]:
    """Name every patch after its image and its number in it; whole chunks at a time."""
    start, part = 0, list[str]()
    for image_id, n_rows in job.n_rows.items():
        for row in range(n_rows):
            part.append(f"{image_id}_{row}")
            if len(part) == _COLUMN_ROWS:
                yield start, part
                start, part = start + len(part), []
    if part:
        yield start, part


def _write_rows(root: Any, job: ExportJob) -> None:
    spec, n = job.features.spec, job.n_patches
    row_bytes = spec.n_features * np.dtype(spec.dtype).itemsize
    matrix = _numbers(root, "X", (n, spec.n_features), spec.dtype, _CHUNK_BYTES // row_bytes)
    tissue = _numbers(root["obs"], "tissue", (n,), "float32", _COLUMN_ROWS)
    spatial = _numbers(_group(root, "obsm", "dict"), "spatial", (n, 2), "int32", _COLUMN_ROWS)
    start = 0
    for loaded in job.batches():
        rows = slice(start, start + len(loaded.embedding))
        matrix[rows], tissue[rows], spatial[rows] = (
            loaded.embedding,
            loaded.tissue,
            loaded.coords,
        )
        start = rows.stop


def _write_about(root: Any, job: ExportJob) -> None:
    for name in _EMPTY:
        _group(root, name, "dict")
    about = _group(_group(root, "uns", "dict"), "histostore", "dict")
    texts = {
        "feature_set": job.features.name,
        "augmentation": job.augmentation,
        "spec": json.dumps(job.features.spec.to_json(), sort_keys=True, ensure_ascii=False),
    }
    for name, text in texts.items():
        # A scalar is an array without axes, of text of fixed length.
        scalar = about.create_array(
            name, shape=(), dtype=f"<U{max(1, len(text))}", attributes=_kind("string")
        )
        scalar[...] = np.array(text)
