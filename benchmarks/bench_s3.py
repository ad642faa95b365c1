"""How fast do embeddings come back from a bucket, and does another driver do better?

The bucket is Ceph's gateway on this machine where it is installed, else moto's: no network lies
between, so what is measured is requests and copies. All sides read the same values from the same
bucket. Files of one image each are fetched side by side by one call of the driver, which is kinder
than what their own tools do, and decoded from memory. The rows on obstore put it in the place of
s3fs below our store; nothing else differs. Times are medians over turns taken alternately.

What would change our mind: a ratio below one against files of one image each, or obstore slower
than s3fs.
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import h5py
import numpy as np

from benchmarks.layouts import Case, Data, Pt, Trident, alternately, write_store
from benchmarks.measure import Ratio
from histostore.store import open_store
from histostore.store.obstore import PREFIX
from histostore.testing import fragment_of, spec_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from histostore.store.reader import Store
    from tests.servers import Server

SMOKE = (
    Case(n_images=300, n_patches=12, n_features=384, dtype="float32"),
    Case(n_images=100, n_patches=100, n_features=384, dtype="float32"),
)
CASES = (
    Case(n_images=1000, n_patches=12, n_features=384, dtype="float32"),
    Case(n_images=600, n_patches=100, n_features=384, dtype="float32"),
)
WHOLE = "whole cohort into memory, in a bucket"


def run(*, smoke: bool) -> list[Ratio]:
    """Measure every case on one server."""
    missing = [name for name in ("s3fs", "moto") if find_spec(name) is None]
    if missing:
        reason = f"{' and '.join(missing)} not installed"
        return [Ratio.skipped(WHOLE, baseline=kind.name, reason=reason) for kind in (Trident, Pt)]
    rows = []
    with tempfile.TemporaryDirectory() as folder, _server(Path(folder)) as (name, server):
        for number, case in enumerate(SMOKE if smoke else CASES):
            place = Path(folder) / str(number)
            rows += _against_files(server, name, case, place, turns=3 if smoke else 5)
        rows += _against_s3fs(server, name, turns=3 if smoke else 7)
    return rows


@contextmanager
def _server(folder: Path) -> Iterator[tuple[str, Server]]:
    from tests import servers

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    # The layouts know no storage options: the driver finds the server in the environment.
    if servers.missing_ceph():
        with servers.moto() as server, patch.dict(os.environ, server.environment):
            yield "moto", server
    else:
        with servers.ceph(folder / "ceph") as server, patch.dict(os.environ, server.environment):
            yield "Ceph", server


# Against files of one image each ------------------------------------------------------------


def _h5(content: bytes) -> np.ndarray:
    with h5py.File(io.BytesIO(content), "r") as file:
        return file["features"][...]


def _pt(content: bytes) -> np.ndarray:
    import torch

    return torch.load(io.BytesIO(content), weights_only=True).numpy()  # noqa: TID251 - their way


def _against_files(
    server: Server, name: str, case: Case, folder: Path, *, turns: int
) -> list[Ratio]:
    import fsspec

    data, bucket = Data(case), server.bucket()
    url = f"{bucket}/ours"
    write_store(url, data)
    fs = fsspec.filesystem("s3", **server.options)
    calls: dict[str, Callable[[], np.ndarray]] = {
        "ours": lambda: open_store(url, server.options).feature_set().load().embedding
    }
    for kind, decode in ((Trident, _h5), (Pt, _pt)):
        files = kind(folder / kind.__name__, data.ids)
        files.folder.mkdir(parents=True)
        files.write(data)
        keys = [f"{bucket}/{kind.__name__}/{Path(path).name}" for path in files.paths]
        fs.pipe({key: Path(path).read_bytes() for key, path in zip(keys, files.paths, strict=True)})

        def fetched(
            keys: list[str] = keys, decode: Callable[[bytes], np.ndarray] = decode
        ) -> np.ndarray:
            found = fs.cat_ranges(keys, 0, None)  # in the order asked for
            return np.concatenate([decode(content) for content in found])

        calls[kind.name] = fetched
    for rival, call in calls.items():
        np.testing.assert_array_equal(call(), data.embedding, err_msg=rival)
    seconds = alternately(calls, turns)
    return [
        Ratio(
            name=f"{WHOLE} ({name}), {case.name}",
            ours_s=seconds["ours"],
            theirs_s=seconds[kind.name],
            ratio=seconds[kind.name] / seconds["ours"],
            target=None,
            baseline=f"{kind.name}, fetched side by side",
        )
        for kind in (Trident, Pt)
    ]


# obstore in the place of s3fs ----------------------------------------------------------------


def _against_s3fs(server: Server, name: str, *, turns: int) -> list[Ratio]:
    questions = {"write": "writing 4 fragments of 8 MB", "read": "reading them whole"}
    baseline = "the same store through s3fs"
    if find_spec("obstore") is None:
        reason = "obstore not installed"
        return [
            Ratio.skipped(f"obstore, {what} ({name})", baseline=baseline, reason=reason)
            for what in questions.values()
        ]
    parts = [
        fragment_of([f"{part}-{n}" for n in range(50)], counts=100, n_features=384, seed=part)
        for part in range(4)
    ]
    bucket, fresh = server.bucket(), iter(range(1000))
    drivers = {"s3fs": "", "obstore": PREFIX}

    def write(driver: str) -> Store:
        url = f"{drivers[driver]}{bucket}/{driver}-{next(fresh)}"
        store = open_store(url, server.options, mode="a")
        store.create_feature_set(spec_of(n_features=384))
        for part in parts:
            store.feature_set().commit(part, {})
        return store

    stores = {driver: write(driver) for driver in drivers}
    expected = np.concatenate([part.embedding[0] for part in parts])
    for driver, store in stores.items():
        loaded = store.feature_set().load().embedding
        np.testing.assert_array_equal(loaded, expected, err_msg=driver)
    seconds = {
        "write": alternately({each: lambda each=each: write(each) for each in drivers}, turns),
        "read": alternately(
            {each: lambda each=each: stores[each].feature_set().load() for each in drivers}, turns
        ),
    }
    return [
        Ratio(
            name=f"obstore, {what} ({name})",
            ours_s=seconds[key]["obstore"],
            theirs_s=seconds[key]["s3fs"],
            ratio=seconds[key]["s3fs"] / seconds[key]["obstore"],
            target=None,
            baseline=baseline,
        )
        for key, what in questions.items()
    ]


if __name__ == "__main__":
    for row in run(smoke=True):
        print(row.line)
