"""The hybrid: its first phase is a head on stored vectors, number for number."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import histostore
import zoo
from histostore.build.options import BuildOptions, EncoderOptions
from histostore.build.run import build
from histostore.cohort import Cohort
from histostore.grid import PatchGrid
from histostore.images.readers import open_image
from histostore.images.tissue import TissueFilter
from histostore.synthetic import make_cohort
from zoo.finetune import fusionnet
from zoo.finetune.networks import network
from zoo.finetune.predicting import shifted
from zoo.finetune.presets import preset
from zoo.finetune.running import finetune, prepare_images
from zoo.finetune.spec import FinetuneSpec, Machine
from zoo.fit import fit_run, make_split
from zoo.heads.fusion import Fusion

# timm keeps these two for tests: 0.1 and 0.3 million parameters, both made for 160 px.
PAIR = {"cnn": "timm:test_efficientnet", "vit": "timm:test_vit"}
PX, N_IMAGES, SEED = 160, 24, 0
WITHOUT_DROPOUT = {"dropout": 0.0, "classifier_dropout": 0.0}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Write a weights file for each backbone, and say so as a command line does."""
    folder = tmp_path_factory.mktemp("weights")
    made = fusionnet.hybrid(PAIR, 2, name="pair", seed=5, weights="none", px=PX)
    given = []
    for branch, part in zip(PAIR, made.parts, strict=True):
        save_file(part.plan.module.state_dict(), folder / f"{branch}.safetensors")
        given.append(f"{PAIR[branch]}={folder / branch}.safetensors")
    return ",".join(given)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    table = make_cohort(
        folder, n_images=N_IMAGES, image_px=PX, patch_px=32, planted_share=0.6, images_per_patient=1
    )
    return Cohort.read(Path(table))


@pytest.fixture(scope="module")
def stored(cohort, weights, tmp_path_factory):
    """Build a store with the two frozen encoders, each image one patch."""
    url = str(tmp_path_factory.mktemp("store") / "store")
    options = BuildOptions(
        encoder=EncoderOptions(name="+".join(PAIR.values()), weights=weights, device="cpu"),
        grid=PatchGrid(patch_size=PX),
        tissue=TissueFilter(method="none"),
        dtype="float32",
    )
    build(cohort, url, options)
    store = histostore.open(url)
    return store[next(iter(store))]


def test_a_frozen_hybrid_gives_the_vectors_of_the_two_encoders(cohort, weights, stored):
    net = fusionnet.hybrid(PAIR, 2, name="pair", seed=SEED, weights=weights, px=PX)
    net.module.eval()
    plan = FinetuneSpec(model="unused").plan(net)
    for image_id, url in list(zip(cohort.image_ids, cohort.urls, strict=True))[:4]:
        with closing(open_image(url)) as reader:
            pixels, _ = plan.read(reader)
        seen = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2)
        with torch.inference_mode():
            vectors = net.module.features(shifted(seen, net)).numpy()
        np.testing.assert_allclose(vectors, stored.bag(image_id).embedding, atol=1e-5)


def test_the_block_is_drawn_as_head_fusion_draws_it():
    net = fusionnet.hybrid(PAIR, 3, name="pair", seed=7, weights="none", px=PX)
    torch.manual_seed(7)
    block = Fusion().build(sum(part.width for part in net.parts), 3)
    drawn = nn.Sequential(block.fuse, block.classify).state_dict()
    assert all(
        torch.equal(drawn[key], value) for key, value in net.module.head.state_dict().items()
    )


def test_phase_one_from_the_store_is_phase_one_from_pixels(
    cohort, weights, stored, tmp_path, monkeypatch
):
    # What is drawn at random while training differs between the two loops (the order of images,
    # dropout), so it is left out: one batch of all images, no dropout. All else is the recipe's.
    monkeypatch.setenv("HISTOSTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fusionnet, "Fusion", partial(Fusion, **WITHOUT_DROPOUT))
    monkeypatch.setattr(fusionnet, "r6_hybrid_small", partial(fusionnet.hybrid, PAIR))
    alike = {"sampler": "shuffle", "batch_size": N_IMAGES}
    spec = FinetuneSpec(model="r6-hybrid-small", weights=weights, px=PX)
    prepared = prepare_images(cohort, spec)
    split = make_split(prepared.images, folds=2)
    whole = preset("r6", augmentation="none", precision="float32", **alike)
    recipe = dataclasses.replace(whole, phases=whole.phases[:1])
    machine = Machine(device="cpu", workers=0, threads=1)
    pixels = finetune(
        prepared, spec, out=tmp_path / "pixels", recipe=recipe, split=split, machine=machine
    )
    bags = zoo.Bags(stored, cohort)
    head = zoo.spec("fusion", **WITHOUT_DROPOUT, standardise=False)
    from_store = zoo.recipe("r6-phase1", **alike)
    vectors = fit_run(bags, head, out=tmp_path / "vectors", recipe=from_store, split=split)

    assert len(pixels.history) == 2 * 7
    for column in ("train_loss", "validation_loss", "validation_macro_f1"):
        np.testing.assert_allclose(pixels.history[column], vectors.history[column], rtol=2e-4)
    keys = ["fold", "role", "image_id"]
    one, other = (run.predictions.sort_values(keys, ignore_index=True) for run in (pixels, vectors))
    probabilities = [name for name in one.columns if name.startswith("prob_")]
    np.testing.assert_allclose(one[probabilities], other[probabilities], atol=1e-4)
    # The head has moved, so that it is no comparison of two beginnings.
    fresh = network("r6-hybrid-small", 2, seed=0, weights=weights, px=PX).module.eval()
    seen = torch.from_numpy(np.array(prepared.pixels.image(0))).permute(0, 3, 1, 2)
    with torch.inference_mode():
        before = fresh(shifted(seen, network("r6-hybrid-small", 2, seed=0, weights=weights, px=PX)))
    rows = one[one["image_id"] == prepared.images.image_ids[0]]
    assert np.abs(rows[probabilities].to_numpy() - before.softmax(1).numpy()).max() > 1e-2
