"""Parquet: one table, one row per patch, for whatever reads Arrow.

Columns ``image_id`` string, ``x`` and ``y`` int32, ``tissue`` float32, ``embedding`` a list
of fixed size, in the stored type. The specification of the feature set stands in the schema's
metadata, under ``histostore``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from histostore.bridges.outgoing import ExportJob
    from histostore.store import Loaded

__all__ = ["write_images"]

_ARROW_NAME = {"float16": "float16", "float32": "float32"}


def write_images(job: ExportJob) -> int:
    """Write one table, a row group per batch; give the number of files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    spec = job.features.spec
    value = getattr(pa, _ARROW_NAME[spec.dtype])()
    about = {
        "feature_set": job.features.name,
        "augmentation": job.augmentation,
        "spec": spec.to_json(),
    }
    schema = pa.schema(
        [
            ("image_id", pa.string()),
            ("x", pa.int32()),
            ("y", pa.int32()),
            ("tissue", pa.float32()),
            ("embedding", pa.list_(value, spec.n_features)),
        ],
        metadata={"histostore": json.dumps(about)},
    )
    with (
        job.target.stream() as file,
        pq.ParquetWriter(file, schema, compression="none", use_dictionary=["image_id"]) as writer,
    ):
        for loaded in job.batches():
            writer.write_table(_table(loaded, schema), row_group_size=len(loaded.embedding))
    return 1


def _table(loaded: Loaded, schema: Any) -> Any:
    import pyarrow as pa

    codes = np.repeat(np.arange(len(loaded), dtype=np.int32), np.diff(loaded.offset))
    ids = pa.DictionaryArray.from_arrays(codes, pa.array(loaded.image_ids, pa.string()))
    flat = pa.array(loaded.embedding.reshape(-1))
    x, y = np.ascontiguousarray(loaded.coords.T)
    return pa.table(
        [
            ids.cast(pa.string()),
            x,
            y,
            loaded.tissue,
            pa.FixedSizeListArray.from_arrays(flat, loaded.embedding.shape[1]),
        ],
        schema=schema,
    )
