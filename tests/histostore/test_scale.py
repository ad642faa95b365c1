"""Large cohorts: time and memory of planning, writing and reading, measured.

The small sizes run always. The sizes of the targets (100,000 images on disk, millions of
patches, a bag of 100,000 × 1,024) run where ``HISTOSTORE_SCALE=1`` is set: they take minutes
and gigabytes of disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from histostore.build import BuildOptions, EncoderOptions, build
from histostore.build.plan import plan_build
from histostore.build.unit import encoder_of
from histostore.files import Source, stat_many
from histostore.spec import FeatureSpec
from histostore.store import Fragment, open_store
from histostore.store.features import FeatureSet
from histostore.testing import FaultyBackend, spec_of

SCALE = os.environ.get("HISTOSTORE_SCALE") == "1"
large = pytest.mark.skipif(not SCALE, reason="minutes and gigabytes: set HISTOSTORE_SCALE=1")
MIB = 2**20


def fragment_of_ids(image_ids, sources, n_features=4):
    n = len(image_ids)
    return Fragment(
        embedding=np.ones((1, n, n_features), np.float32),
        augmentations=("identity",),
        image_ids=tuple(image_ids),
        offset=np.arange(n + 1),
        y=np.zeros(n, np.int32),
        x=np.zeros(n, np.int32),
        tissue=np.ones(n, np.float32),
        sources=tuple(sources),
        flags=((),) * n,
    )


def test_a_hundred_thousand_images_are_planned_by_one_request_per_fragment():
    """F1.6: one listing, one read per fragment, none per image; and all of it in seconds."""
    ids = [f"image-{number:06d}" for number in range(100_000)]
    sources = [Source(url=f"{name}.png", size=7, version="1") for name in ids]
    store = open_store("memory://scale-plan", mode="a")
    features = store.create_feature_set(spec_of())
    for at in range(0, len(ids), 2000):
        features.commit(fragment_of_ids(ids[at : at + 2000], sources[at : at + 2000]), {})
    counted = FaultyBackend(features._backend)
    began = time.perf_counter()
    again = FeatureSet(counted, features.spec, writable=True)
    plan = plan_build(
        ids,
        {"identity": again.index.of_view("identity")},
        ("identity",),
        sources=dict(zip(ids, sources, strict=True)),
        recorded=again.sources.documents,
    )
    seconds = time.perf_counter() - began
    assert (plan.n_done, plan.n_todo, plan.changed) == (100_000, 0, ())
    assert counted.requests == {"list": 1, "read": 50}
    # Half a second where it was written; five leaves room for a machine that is busy.
    assert seconds < 5


@large
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("images_per_fragment", [64, 10])
def test_a_build_with_nothing_to_do_takes_seconds(tmp_path, images_per_fragment, record_property):
    """100,000 images on disk; 1,563 fragments as builds make them, and 10,000 smaller ones."""
    options = BuildOptions(encoder=EncoderOptions(name="texture", threads=1))
    encoder = encoder_of(options.encoder)
    (tmp_path / "images").mkdir()
    ids = [f"image-{number:06d}" for number in range(100_000)]
    for name in ids:
        (tmp_path / "images" / f"{name}.png").touch()
    table = tmp_path / "cohort.csv"
    table.write_text("image_id,path\n" + "".join(f"{x},images/{x}.png\n" for x in ids))
    urls = [str(tmp_path / "images" / f"{name}.png") for name in ids]
    sources = list(stat_many(urls).values())
    spec = FeatureSpec(
        encoder=encoder.identity,
        n_features=encoder.n_features,
        grid=options.grid,
        tissue=options.tissue,
        dtype=options.dtype,
    )
    features = open_store(str(tmp_path / "store"), mode="a").create_feature_set(spec)
    for at in range(0, len(ids), images_per_fragment):
        part = slice(at, at + images_per_fragment)
        features.commit(fragment_of_ids(ids[part], sources[part], spec.n_features), {})
    began = time.perf_counter()
    report = build(str(table), str(tmp_path / "store"), options)
    seconds = time.perf_counter() - began
    record_property("seconds", seconds)
    print(f"{len(ids) // images_per_fragment} fragments: {seconds:.2f} s")
    assert (report.n_done, report.n_embedded, report.changed) == (100_000, 0, ())
    assert seconds < 15


def measured(code: str) -> dict[str, float]:
    """Run code in a process of its own; give what it prints as JSON, with its peak in MiB."""
    whole = textwrap.dedent(code) + textwrap.dedent("""
        print(json.dumps({**facts, "peak": status("VmHWM") - before}))
    """)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", whole], check=True, capture_output=True, text=True, env=environment
    )
    return json.loads(done.stdout.splitlines()[-1])


PREPARE = """
    import json, time
    import numpy as np
    from histostore.files import Source
    from histostore.store import Fragment, open_store
    from histostore.testing import fragment_of, spec_of
    import zarr, dask.array, xarray, tempfile
    warm = open_store(tempfile.mkdtemp(), mode="a").create_feature_set(spec_of())
    warm.commit(fragment_of(["a"]), {})
    warm.load()

    def status(name):  # MiB; what getrusage says begins with the peak of the parent process
        lines = open("/proc/self/status").read().splitlines()
        return next(int(x.split()[1]) for x in lines if x.startswith(name)) / 1024

    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    before = status("VmRSS")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("n_features", [64, pytest.param(1024, marks=[large, pytest.mark.slow])])
def test_a_bag_of_a_hundred_thousand_patches_is_written_and_read(tmp_path, n_features):
    """Writing takes some shards beyond the bag itself, reading a few chunks."""
    bag_mib = 100_000 * n_features * 4 / MIB
    written = measured(f"""{PREPARE}
    features = open_store({str(tmp_path)!r}, mode="a").create_feature_set(
        spec_of(n_features={n_features}))
    rows = np.ones((1, 100_000, {n_features}), np.float32)
    rows[0, :, 0] = np.arange(100_000)
    n = rows.shape[1]
    features.commit(Fragment(
        embedding=rows, augmentations=("identity",), image_ids=("slide",),
        offset=np.array([0, n]), y=np.arange(n, dtype="i4"), x=np.zeros(n, "i4"),
        tissue=np.ones(n, "f4"), sources=(Source(url="s.svs", size=1, version=None),),
        flags=((),)), {{}})
    facts = {{}}
    """)
    read = measured(f"""{PREPARE}
    began = time.perf_counter()
    bag = open_store({str(tmp_path)!r}).feature_set().bag("slide")
    facts = {{"seconds": time.perf_counter() - began, "rows": len(bag),
             "last": float(bag.embedding[-1, 0])}}
    """)
    print(f"bag of {bag_mib:.0f} MiB: writing +{written['peak']:.0f}, reading {read}")
    assert (read["rows"], read["last"]) == (100_000, 99_999)
    # Checking that values are finite takes a byte per value, a quarter of the bag.
    assert written["peak"] < 1.3 * bag_mib + 6 * 64
    assert read["peak"] < 1.05 * bag_mib + 48


SIZES = [
    pytest.param(30_000, 64, id="30,000"),
    pytest.param(3_000_000, 384, id="3,000,000", marks=[large, pytest.mark.slow]),
]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("n_patches", "n_features"), SIZES)
def test_a_large_cohort_is_written_mapped_and_read_under_a_memory_budget(
    tmp_path, n_patches, n_features
):
    """The cohort in images of 100 patches, fragments of 160; a budget of a fifth of its bytes."""
    cohort_mib = n_patches * n_features * 4 / MIB
    budget_mib = max(48.0, cohort_mib / 5)
    store = str(tmp_path / "store")
    written = measured(f"""{PREPARE}
    features = open_store({store!r}, mode="a").create_feature_set(spec_of(n_features={n_features}))
    began = time.perf_counter()
    for at in range(0, {n_patches}, 16_000):
        n = min(16_000, {n_patches} - at)
        ids = [f"i{{(at + row) // 100}}" for row in range(0, n, 100)]
        features.commit(fragment_of(ids, counts=100, n_features={n_features}, seed=at), {{}})
    facts = {{"seconds": time.perf_counter() - began}}
    """)
    mapped = measured(f"""{PREPARE}
    from zoo.bags import Bags
    import zoo.bagtable
    began = time.perf_counter()
    features = open_store({store!r}).feature_set()
    bags = Bags.unlabelled(features, memory_limit=int({budget_mib * MIB}),
                           cache={str(tmp_path / "cache")!r})
    filled = time.perf_counter() - began
    facts = {{"seconds": filled, "bags": len(bags), "mapped": bags.folder is not None}}
    """)
    epoch = measured(f"""{PREPARE}
    from zoo.bags import Bags
    features = open_store({store!r}).feature_set()
    bags = Bags.unlabelled(features, memory_limit=int({budget_mib * MIB}),
                           cache={str(tmp_path / "cache")!r})
    order = np.random.default_rng(0).permutation(len(bags))
    began = time.perf_counter()
    total = sum(float(bags[index].embedding.sum()) for index in np.array_split(order, len(bags) // 32 + 1))
    facts = {{"seconds": time.perf_counter() - began}}
    """)
    print(f"{cohort_mib:.0f} MiB, budget {budget_mib:.0f}:", written, mapped, epoch)
    assert mapped["bags"] == n_patches // 100
    if cohort_mib > 2 * budget_mib:
        assert mapped["mapped"]
    assert written["peak"] < 400
    assert mapped["peak"] < budget_mib + 48
