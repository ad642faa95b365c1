"""Make the golden store: run once per format, from the repository root.

    python tests/golden/make.py tests/golden/store-v1

The ids are fixed, so that the same libraries write the same bytes. What is in it, and why,
says ``PROVENANCE.md``; what a reader must find, ``test_golden.py``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np

from histostore.encoders.base import EncoderIdentity
from histostore.files import Source
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter
from histostore.spec import FeatureSpec
from histostore.store import Encoding, Fragment, open_store

IMAGE_IDS = ("plain", "Größe/µm 1", "日本 'quoted' \"twice\"", "🔬", "e\u0301 is not é")
"""Slash, spaces, quotes, other scripts, beyond the basic plane, two spellings of one letter."""

VIEWS = ("identity", "rot90")
COUNTS = (1, 4, 2, 3, 2)
N_FEATURES = 3
FIRST_ID = 0x0193_0000_0000
"""Milliseconds since 1970: November 2024."""


def spec(name: str, dtype: str) -> FeatureSpec:
    return FeatureSpec(
        encoder=EncoderIdentity(
            name=name,
            weights="sha256:" + "ab" * 32,
            preprocessing={"mean": [0.5, 1e-05], "input_px": 224, "größe": 1.0},
            precision="bfloat16",
        ),
        n_features=N_FEATURES,
        grid=PatchGrid(patch_size=224, stride=112, mpp=0.5),
        tissue=TissueFilter(method="otsu", min_tissue=0.25, top_k=64),
        stain="macenko",
        dtype=dtype,
    )


def values(image: int, view: int, kind: str) -> np.ndarray:
    """Give an image's embedding, ``(patch, feature)``: each number says where it belongs."""
    patch, feature = np.mgrid[: COUNTS[image], :N_FEATURES]
    rows = (image + 1) * (1 - 2 * view) + patch / 8 + feature / 64
    rows[0, 0] = np.finfo(kind).max if view == 0 else -0.0
    return rows.astype(kind)


def coords(image: int) -> np.ndarray:
    """Give an image's corners, ``(patch, 2)`` int32, x then y."""
    n = COUNTS[image]
    return np.stack([112 * np.arange(n), np.full(n, 2**31 - 1 - image)], axis=1).astype(np.int32)


def fragment(images: list[int], views: tuple[str, ...], kind: str, *, shift: float = 0) -> Fragment:
    """Join images; ``shift`` makes a copy that can be told from the first."""
    places = np.concatenate([coords(image) for image in images])
    embedding = [
        np.concatenate([values(image, VIEWS.index(view), kind) for image in images])
        for view in views
    ]
    return Fragment(
        embedding=np.stack(embedding) - np.asarray(shift, kind),
        augmentations=views,
        image_ids=tuple(IMAGE_IDS[image] for image in images),
        offset=np.cumsum([0, *(COUNTS[image] for image in images)]),
        y=np.ascontiguousarray(places[:, 1]),
        x=np.ascontiguousarray(places[:, 0]),
        tissue=np.linspace(0, 1, len(places), dtype=np.float32),
        sources=tuple(
            Source(url=f"s3://bucket/{IMAGE_IDS[image]}.svs", size=image or None, version=None)
            for image in images
        ),
        flags=tuple(("small-image",) if COUNTS[image] == 1 else () for image in images),
    )


def make(folder: Path) -> None:
    numbers = iter(range(1000))

    def next_id() -> str:
        number = next(numbers)
        return f"{FIRST_ID + number:012x}-{number:016x}"

    with patch("histostore.store.writer.new_id", next_id):
        store = open_store(str(folder), mode="a")
        several = Encoding(chunk_bytes=24, shard_bytes=50)
        features = store.create_feature_set(spec("golden/Encoder", "float32"))
        features.commit(
            fragment([0, 1, 2], VIEWS, "float32"),
            {"versions": {"histostore": "1"}},
            encoding=several,
        )
        # The second copy of an image loses; its own view of another wins.
        features.commit(fragment([1, 3], ("identity",), "float32", shift=100), {})
        features.commit(fragment([4, 3], ("rot90",), "float32"), {})
        features.record_build(
            {"failed": [{"image_id": "broken", "url": "b.png", "reason": "no image"}]}
        )
        half = store.create_feature_set(spec("golden", "float16"))
        half.commit(
            fragment([4, 3, 2, 1, 0], VIEWS, "float16"), {}, encoding=Encoding(codec="zstd")
        )
        # What a killed writer leaves: a group without a record.
        left = folder / features.name / "fragments" / next_id()
        left.mkdir()
        (left / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group"}))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
