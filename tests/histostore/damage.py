"""A small store, its objects, and bits of them to flip."""

from __future__ import annotations

from pathlib import Path

from histostore.store import Encoding, open_store
from histostore.testing import fragment_of, spec_of

SMALL = Encoding(chunk_bytes=48, shard_bytes=96)


def small_store(folder):
    """Write two fragments of equal shape, two views, a record of a build; give the URL."""
    features = open_store(str(folder / "store"), mode="a").create_feature_set(spec_of())
    for seed, image_ids in enumerate((["a", "b"], ["c", "d"])):
        fragment = fragment_of(
            image_ids, counts=[5, 2], augmentations=("identity", "rot90"), seed=seed
        )
        features.commit(fragment, {"seed": seed}, encoding=SMALL)
    features.record_build({"failed": [{"image_id": "e", "url": "e.png", "reason": "no image"}]})
    return str(folder / "store")


def objects(url):
    """List the files of a store."""
    return sorted(path for path in Path(url).rglob("*") if path.is_file())


def damage(url, pattern, at=-9):
    """Flip a bit of the first file that fits a pattern; give its path."""
    path = min(Path(url).glob(pattern))
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    return path
