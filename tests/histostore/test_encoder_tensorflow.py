"""TensorFlow encoders: a process of their own, real SavedModels, and what may go wrong."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))

from commands import call, make_cohort

from histostore.build import BuildOptions, EncoderOptions, build
from histostore.build.unit import _load, encoder_of
from histostore.cohort import Cohort
from histostore.encoders import savedmodel
from histostore.encoders._tensorflow_process import TensorflowProcess
from histostore.encoders.base import Encoder
from histostore.encoders.catalog import card, load_encoder
from histostore.encoders.tensorflow import FORWARD, TensorflowEncoder, resize
from histostore.errors import EncoderError
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter
from histostore.store import open_store

needs_tensorflow = pytest.mark.skipif(
    find_spec("tensorflow") is None, reason="tensorflow is not installed"
)
posix = pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
CARD = card("path-foundation")
SEGMENTS = Path("/dev/shm")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Write models and what Keras says of some patches, in a process that may know Keras."""
    if find_spec("tensorflow") is None:
        pytest.skip("tensorflow is not installed")
    folder = tmp_path_factory.mktemp("models")
    script = Path(__file__).parents[1] / "savedmodels.py"
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
    subprocess.run([sys.executable, "-P", script, folder], env=hidden, check=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def options(models):
    return EncoderOptions(name="path-foundation", weights=str(models / "good"), threads=1)


@pytest.fixture(scope="module")
def encoder(options):
    """The encoder that builds of this module use, too."""
    yield encoder_of(options)._encoder
    _load.cache_clear()


def gone(pid, *, within=20.0):
    """Wait until a process has ended."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


# Vectors -----------------------------------------------------------------------------------


def test_vectors_are_those_of_keras_alone(encoder, models):
    told = np.load(models / "reference.npz")
    assert isinstance(encoder, Encoder)
    assert encoder.n_features == 384
    assert len(told["patches"]) > 2 * FORWARD  # so that slots are used again
    for name in ("patches", "large"):
        found = encoder.encode(told[name])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, told[f"{name}_vectors"], rtol=0, atol=1e-6)


def test_a_row_depends_on_its_patch_alone(encoder, models):
    patches = np.load(models / "reference.npz")["patches"]
    whole = encoder.encode(patches)
    for rows in (slice(0, 1), slice(5, 22), slice(39, 40), slice(7, 7)):
        np.testing.assert_allclose(encoder.encode(patches[rows]), whole[rows], rtol=0, atol=1e-6)
    turned = patches[:, ::-1].swapaxes(1, 2)  # not contiguous
    np.testing.assert_array_equal(encoder.encode(turned), encoder.encode(turned.copy()))


def test_the_identity_names_what_decides_a_vector(encoder, models):
    identity = encoder.identity
    assert identity.name == "path-foundation"
    assert (
        identity.weights
        == savedmodel.digest(models / "good")
        != savedmodel.digest(models / "narrow")
    )
    assert identity.preprocessing["input_px"] == 224
    assert identity.preprocessing["interpolation"] == "bilinear, antialiased"
    assert identity.precision == "float32"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
def test_tensorflow_and_torch_never_meet_and_no_gpu_is_seen(encoder):
    import torch  # noqa: F401 - this process has it, as one that trains heads would

    assert "tensorflow" not in sys.modules
    child = Path(f"/proc/{encoder._process.pid}")
    libraries = (child / "maps").read_text()
    assert "libtensorflow" in libraries
    assert "libtorch" not in libraries
    assert "libtensorflow" not in Path("/proc/self/maps").read_text()
    assert b"\0CUDA_VISIBLE_DEVICES=\0" in (child / "environ").read_bytes()


@pytest.mark.parametrize(
    "patches",
    [
        np.zeros((1, 8, 9, 3), np.uint8),
        np.zeros((1, 8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((1, 8, 8, 3), np.float32),
    ],
    ids=["oblong", "four channels", "no batch", "floats"],
)
def test_what_is_no_batch_of_patches_is_refused_and_the_process_lives(encoder, patches):
    pid = encoder._process.pid
    with pytest.raises(EncoderError, match="wants uint8"):
        encoder.encode(patches)
    assert encoder._process.pid == pid


@settings(max_examples=20)
@given(st.integers(1, 300), st.integers(1, 256), st.integers(0, 2**32))
def test_patches_are_resized_as_for_torch_encoders(side, size, seed):
    import torch

    from histostore.encoders import pixels

    patches = np.random.default_rng(seed).integers(0, 256, (2, side, side, 3), np.uint8)
    ours = np.zeros((3, size, size, 3), np.uint8)
    resize(patches, ours)
    theirs = pixels.resize(torch.from_numpy(patches).permute(0, 3, 1, 2), size, "bilinear")
    difference = ours[:2].astype(int) - theirs.permute(0, 2, 3, 1).numpy().astype(int)
    assert np.abs(difference).max() <= 1
    assert not ours[2].any()


# Models that are not what they should be ----------------------------------------------------


@needs_tensorflow
def test_a_model_that_does_not_fit_is_refused_saying_what_was_found(models):
    wrong = {
        "narrow": r"serving_default gives output_0 float32 \(any, 383\); wanted: .* \(any, 384\)",
        "small": r"serving_default takes \S+ float32 \(any, 96, 96, 3\)",
        "training": "its signatures are training; wanted: serving_default",
        "unnamed": r"serving_default gives embedding float32 \(any, 384\); wanted: output_0",
        "one": r"takes x float32 \(1, 224, 224, 3\)",
        "reading": "its graph holds ReadFile",
    }
    process = TensorflowProcess("path-foundation")
    try:
        for name, said in wrong.items():
            folder = models / name
            with pytest.raises(EncoderError, match=said) as caught:  # noqa: PT012 - which of the two
                answer = process.ask(do="load", folder=str(folder), threads=1)
                savedmodel.function_of(answer["signatures"], card=CARD, folder=folder)
            assert "\n" not in str(caught.value)
        (models / "torn").mkdir()
        whole = (models / "good" / "saved_model.pb").read_bytes()
        (models / "torn" / "saved_model.pb").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(EncoderError, match="TensorFlow says"):
            process.ask(do="load", folder=str(models / "torn"), threads=1)
        (models / "bare").mkdir()
        (models / "bare" / "saved_model.pb").write_bytes(whole)
        with pytest.raises(EncoderError, match=r"TensorFlow says: .*variables"):
            process.ask(do="load", folder=str(models / "bare"), threads=1)
        # What went wrong has cost nothing: the next request is answered.
        assert process.ask(do="load", folder=str(models / "good"), threads=1)["signatures"]
    finally:
        process.close()


@needs_tensorflow
def test_a_refused_model_leaves_no_process(models):
    before = set(psutil.Process().children())
    with pytest.raises(EncoderError, match="is not path-foundation"):
        load_encoder("path-foundation", weights=models / "unnamed", threads=1)
    assert set(psutil.Process().children()) == before


def test_vectors_that_are_no_numbers_are_refused(encoder, monkeypatch):
    monkeypatch.setattr(encoder, "_encoded", lambda *_: np.full((1, 384), np.nan, np.float32))
    with pytest.raises(EncoderError, match="not finite"):
        encoder.encode(np.zeros((1, 8, 8, 3), np.uint8))


FITTING = {"inputs": {"x": ["float32", [None, 224, 224, 3]]}, "outputs": {"output_0": ["float32", [None, 384]]}}  # fmt: skip


@pytest.mark.parametrize(
    ("side", "name", "spec", "fits"),
    [
        ("inputs", "x", ["float32", [None, None, None, 3]], True),
        ("inputs", "x", ["float32", None], True),
        ("outputs", "output_0", ["float32", [None, None]], True),
        ("inputs", "x", ["uint8", [None, 224, 224, 3]], False),
        ("inputs", "x", ["string", None], False),
        ("inputs", "x", ["float32", [224, 224, 3]], False),
        ("inputs", "x", ["float32", [None, 3, 224, 224]], False),
        ("inputs", "y", ["float32", [None]], False),
        ("outputs", "output_0", ["float32", [None, 1, 384]], False),
        ("outputs", "output_0", ["float16", [None, 384]], False),
    ],
)
def test_what_a_model_leaves_open_fits_and_nothing_else(side, name, spec, fits):
    given_ = {**FITTING, side: {**FITTING[side], name: spec}}
    if fits:
        found = savedmodel.function_of({"serving_default": given_}, card=CARD, folder=Path("m"))
        assert found == ("serving_default", "x", "output_0")
    else:
        with pytest.raises(EncoderError, match="is not path-foundation: serving_default"):
            savedmodel.function_of({"serving_default": given_}, card=CARD, folder=Path("m"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"device": "cuda"}, "runs on the CPU, not on cuda"),
        ({"precision": "bfloat16"}, "runs in float32"),
        ({"weights": "nowhere"}, "nowhere is not there; path-foundation wants the folder"),
        ({"weights": __file__}, "is a file; path-foundation wants the folder"),
        (
            {"weights": str(Path(__file__).parent)},
            "is no SavedModel: it holds .* no saved_model.pb",
        ),
    ],
    ids=["gpu", "precision", "absent", "file", "folder"],
)
@needs_tensorflow
def test_what_cannot_be_is_refused_before_a_process_is_started(changed, said):
    before = set(psutil.Process().children())
    with pytest.raises(EncoderError, match=said) as caught:
        load_encoder("path-foundation", **{"weights": "nowhere", "threads": 1, **changed})
    assert "\n" not in str(caught.value)
    assert set(psutil.Process().children()) == before


# Weights from the hub ----------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return constants


def test_without_weights_and_network_one_line_says_how_to_get_them(hub, monkeypatch):
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    began = time.monotonic()
    with pytest.raises(EncoderError, match="HF_HUB_OFFLINE is set") as caught:
        savedmodel.find(CARD, None)
    assert time.monotonic() - began < 5
    text = str(caught.value)
    assert "\n" not in text
    for needed in ("https://huggingface.co/google/path-foundation", "Accept the terms", "HF_TOKEN", "--weights"):  # fmt: skip
        assert needed in text


def test_what_the_cache_holds_needs_no_network(hub, monkeypatch, tmp_path):
    snapshot = tmp_path / "hub" / "models--google--path-foundation" / "snapshots" / ("0" * 40)
    (snapshot / "variables").mkdir(parents=True)
    (snapshot / "saved_model.pb").write_bytes(b"graph")
    (snapshot / "variables" / "variables.index").write_bytes(b"index")
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    assert savedmodel.find(CARD, None) == snapshot
    clone = tmp_path / "clone"
    shutil.copytree(snapshot, clone)
    (clone / "README.md").write_text("not part of the model")
    (clone / "keras_metadata.pb").write_bytes(b"nor this")
    content = savedmodel.digest(clone)
    assert content == savedmodel.digest(snapshot)
    asked = f"{clone}#{content.replace(':', '=').upper().replace('SHA', 'sha')}"
    assert savedmodel.find(CARD, asked) == clone
    for path, content in (("variables/variables.index", b"Index"), ("assets/words", b"w")):
        (clone / path).parent.mkdir(exist_ok=True)
        (clone / path).write_bytes(content)
        assert savedmodel.digest(clone) != savedmodel.digest(snapshot)
        with pytest.raises(EncoderError, match=r"has the digest sha256:.*, not sha256:"):
            savedmodel.find(CARD, asked)


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (401, "GatedRepo", "who has accepted the terms"),
        (403, "GatedRepo", "who has accepted the terms"),
        (404, "RepoNotFound", "404"),
    ],
)
def test_a_hub_that_refuses_is_told_in_one_line(hub, monkeypatch, status, code, said):
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815 - its name in the library

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        try:
            with pytest.raises(EncoderError, match=said) as caught:
                savedmodel.find(CARD, None)
        finally:
            server.shutdown()
    assert "\n" not in str(caught.value)
    assert "Accept the terms" in str(caught.value)


# The process -------------------------------------------------------------------------------


def segments():
    return {path.name for path in SEGMENTS.glob("psm_*")} if SEGMENTS.is_dir() else set()


def shared(name="test"):
    """Start a process and share memory with it; TensorFlow is not needed for that."""
    process = TensorflowProcess(name)
    process.share((2, 4, 8, 3), ("serving_default", "x", "output_0"))
    return process


@posix
def test_memory_has_no_name_once_it_is_shared_and_goes_with_the_process():
    before = segments()
    process = shared()
    assert segments() <= before
    pixels, vectors = process.views()
    assert (pixels.shape, vectors.shape) == ((2, 4, 8, 8, 3), (2, 4, 3))
    pixels[:] = 7
    assert not vectors.any()
    del pixels, vectors
    pid = process.pid
    process.close()
    process.close()
    assert gone(pid)


@posix
def test_a_process_that_nobody_refers_to_ends():
    process = shared()
    pid = process.pid
    del process
    gc.collect()
    assert gone(pid)


@posix
@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, r"was killed \(SIGKILL\), perhaps for want of memory"),
        (signal.SIGTERM, r"was killed \(SIGTERM\)\. "),
    ],
)
def test_the_death_of_the_process_is_one_line_that_names_the_signal(number, said):
    process = shared("path-foundation")
    os.kill(process.pid, number)
    with pytest.raises(
        EncoderError, match=f"TensorFlow process of path-foundation {said}"
    ) as caught:
        process.ask(do="attach", memory="none", shape=[1] * 4, signature=["", "", ""])
    assert "\n" not in str(caught.value)
    assert "run the same again" in str(caught.value)
    process.close()


def test_a_process_that_fails_says_why_in_its_last_line():
    process = TensorflowProcess("test")
    with pytest.raises(EncoderError, match=r"exit code 1; its last line: json\.decoder"):  # noqa: PT012
        process._requests.write(b"\0\0\0\2{]")
        process._requests.flush()
        process.receive()
    process.close()


@posix
def test_ctrl_c_at_a_terminal_is_the_parents_affair():
    process = shared()
    os.kill(process.pid, signal.SIGINT)
    assert os.getpgid(process.pid) != os.getpgid(0)
    with pytest.raises(EncoderError, match="TensorFlow says"):  # an answer, so it lives
        process.ask(do="attach", memory="none", shape=[1] * 4, signature=["", "", ""])
    process.close()


PARENT = """
import sys
sys.path.insert(0, sys.argv[1])
from histostore.encoders._tensorflow_process import TensorflowProcess

process = TensorflowProcess("test")
process.share((2, 4, 8, 3), ("serving_default", "x", "output_0"))
print(process.pid, flush=True)
sys.stdin.readline()
"""


@posix
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "ended"])
def test_the_process_ends_with_its_parent_and_nothing_is_left(killed):
    before = segments()
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as parent:
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        if killed:
            parent.kill()
        _, err = parent.communicate("\n" if not killed else None, timeout=30)
    assert err == ""
    assert gone(pid)
    assert segments() <= before


# Builds ------------------------------------------------------------------------------------


def rows(store_url):
    (features,) = open_store(store_url).values()
    return {name: features.bag(name).embedding for name in sorted(features.image_ids)}


@posix
def test_a_build_whose_process_is_killed_stops_in_one_line_and_resumes(encoder, options, tmp_path):
    table = make_cohort(tmp_path / "study", n=12)
    cohort = Cohort.read(str(table))
    what = BuildOptions(
        encoder=options, grid=PatchGrid(patch_size=32), tissue=TissueFilter(method="none")
    )
    store = str(tmp_path / "store")
    build(cohort.limit(3), store, what)
    kept = rows(store)
    pids = []
    real = encoder._encoded

    def encoded(process, patches):  # one batch of this build is through when the kill comes
        pids.append(process.pid)
        if len(pids) == 2:
            os.kill(process.pid, signal.SIGKILL)
        return real(process, patches)

    encoder._encoded, encoder._batch_size = encoded, 8
    try:
        with pytest.raises(EncoderError, match="SIGKILL"):
            build(cohort, store, what)
    finally:
        del encoder._encoded
        encoder._batch_size = CARD.batch_size
    assert rows(store).keys() >= kept.keys()
    assert len(rows(store)) < 12

    words = ("--encoder", options.name, "--weights", options.weights, "--patch-size", 32, "--tissue", "none", "--threads", 1)  # fmt: skip
    done = call("histostore", "build", table, store, *words)
    assert (done.code, encoder._process.pid != pids[0]) == (0, True)
    again = call("histostore", "build", table, tmp_path / "other", *words)
    assert again.code == 0
    mended, whole = rows(store), rows(str(tmp_path / "other"))
    assert mended.keys() == whole.keys()
    assert len(whole) == 12
    for name, vectors in whole.items():
        np.testing.assert_array_equal(mended[name], vectors)

    os.kill(encoder._process.pid, signal.SIGKILL)
    done = call("histostore", "build", table, tmp_path / "third", *words)
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert "was killed (SIGKILL)" in done.err

    # It would start again, but not with other weights.
    encoder._folder = encoder._folder.parent / "narrow"
    with pytest.raises(EncoderError, match="has changed since path-foundation was loaded"):
        encoder.encode(np.zeros((1, 8, 8, 3), np.uint8))
    encoder._folder = encoder._folder.parent / "good"


def test_a_card_must_say_what_memory_to_share():
    with pytest.raises(EncoderError, match="must say its input size"):
        TensorflowEncoder(Path(), card=replace(CARD, n_features=None), batch_size=1, threads=1)
