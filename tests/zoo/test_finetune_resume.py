"""A training that was killed and goes on ends, bit for bit, where an unbroken one does."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from histostore.cohort import Cohort
from histostore.synthetic import make_cohort
from tests.commands import call, start
from zoo.errors import RunError
from zoo.finetune.checkpoint import read_tensors
from zoo.finetune.networks import Network
from zoo.finetune.phases import Phase
from zoo.finetune.presets import FinetuneRecipe
from zoo.finetune.running import finetune, prepare_images
from zoo.finetune.spec import FinetuneSpec, Machine
from zoo.fit import make_split
from zoo.run import Run

pytestmark = pytest.mark.usefixtures("own_cache")

ONE = Machine(device="cpu", workers=0, threads=1)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    return Path(make_cohort(folder, n_images=24, image_px=64, patch_px=32, images_per_patient=2))


def equal(first, second):
    """Every prediction, every epoch, every weight, to the last bit."""
    assert first.predictions.equals(second.predictions)
    assert first.history.equals(second.history)
    assert first.head_paths().keys() == second.head_paths().keys()
    for key, path in first.head_paths().items():
        assert path.read_bytes() == second.head_paths()[key].read_bytes()


def test_a_run_killed_in_mid_epoch_equals_an_unbroken_one(table, tmp_path):
    words = (
        "finetune", table, "--model", "amil-cnn", "--folds", 2, "--device", "cpu",
        "--set", "epochs=12", "--set", "augmentation=right-angles", "--set", "schedule=cosine",
        "--set", "sampler=balanced", "--set", "accumulation=3", "-o",
    )  # fmt: skip
    checkpoint = tmp_path / "killed" / "unfinished" / "0-0.checkpoint"
    process = start("zoo", *words, tmp_path / "killed")
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            with contextlib.suppress(RunError, KeyError):
                if read_tensors(checkpoint, "checkpoint")[0]["standing"]["done"] >= 2:
                    break
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert checkpoint.is_file()
    assert not (tmp_path / "killed" / "run.json").exists()
    assert call("zoo", *words, tmp_path / "killed").code == 0
    assert call("zoo", *words, tmp_path / "whole").code == 0
    killed, whole = Run.load(tmp_path / "killed"), Run.load(tmp_path / "whole")
    equal(killed, whole)
    assert whole.history.groupby("fold")["epoch"].apply(list).tolist() == [[*range(1, 13)]] * 2
    assert not (killed.path / "unfinished").exists()


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("after", [1, 2, 3, 5, 6])
def test_wherever_a_training_of_several_phases_is_stopped_it_ends_the_same(
    table, tmp_path, monkeypatch, after
):
    """Phases that freeze, plateaus, patience, momentum, batch norm and dropout are all taken up."""
    spec = FinetuneSpec(model="tiny", px=16)
    monkeypatch.setattr("zoo.finetune.spec.network", tiny)
    recipe = FinetuneRecipe(
        phases=(
            Phase(name="head", learning_rates={"head": 1e-2}, epochs=3, optimiser="sgd"),
            Phase(
                name="all",
                learning_rates={"all": 1e-2, "head": 1e-3},
                epochs=6,
                schedule="plateau",
                plateau_patience=0,
                patience=3,
                gradient_clip=0.5,
                precision="bfloat16",
            ),
        ),
        augmentation="right-angles",
        batch_size=5,
    )
    prepared = prepare_images(Cohort.read(table), spec)
    split = make_split(prepared.images, folds=2)

    def train(out, progress=lambda *_: None):
        return finetune(
            prepared, spec, out=out, recipe=recipe, split=split, machine=ONE, progress=progress
        )

    def stop(done, _total, _message):
        if done == after:
            raise Killed

    whole = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "stopped", stop)
    equal(train(tmp_path / "stopped"), whole)


def tiny(name, outputs, *, seed, weights=None, px=None):
    """A network with all that has a memory: batch statistics, dropout."""
    del weights
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
        )
        head = torch.nn.Sequential(
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
            torch.nn.Dropout(0.3),
            torch.nn.Linear(4, outputs),
        )
    module = torch.nn.Sequential()
    module.body, module.head = body, head
    names = [key for key, _ in module.named_parameters()]
    groups = {part: tuple(n for n in names if n.startswith(part)) for part in ("body", "head")}
    return Network(name=name, module=module, groups=groups, px=px, mean=(0.5,) * 3, std=(0.5,) * 3)


def test_a_damaged_checkpoint_is_named_and_another_recipe_is_refused(table, tmp_path):
    spec = FinetuneSpec(model="amil-cnn")
    prepared = prepare_images(Cohort.read(table), spec)
    split = make_split(prepared.images, folds=2)

    def stop(*_):
        raise Killed

    with pytest.raises(Killed):
        finetune(prepared, spec, out=tmp_path / "run", split=split, machine=ONE, progress=stop)
    checkpoint = tmp_path / "run" / "unfinished" / "0-0.checkpoint"
    assert read_tensors(checkpoint, "checkpoint")[0]["standing"]["done"] == 1
    shutil.copy(table, checkpoint)
    with pytest.raises(RunError, match="not a checkpoint that can be read"):
        finetune(prepared, spec, out=tmp_path / "run", split=split, machine=ONE)
    other = FinetuneRecipe(name="other")
    with pytest.raises(RunError, match="another recipe"):
        finetune(prepared, spec, out=tmp_path / "run", recipe=other, split=split, machine=ONE)
