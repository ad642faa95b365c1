"""Heads: the contract that all of them keep, their settings, and files that are not ours."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from histostore.errors import OptionError
from zoo.bags import Bags
from zoo.errors import NotSupported, RecipeError, RunError, SplitError, UnknownHead
from zoo.heads import HEADS, known_heads, load_head, spec
from zoo.heads.pooled import STATISTICS, pool
from zoo.recipes import recipe
from zoo.testing import check_head, toy_bags

QUICK = {
    "gated-mil": {"hidden": 16, "attention": 8, "bottleneck": 4},
    **{key: {"hidden": 32} for key in ("mean-pool", "max-pool", "patch-mean")},
    **{key: {"hidden": 32} for key in ("abmil", "clam-sb", "clam-mb", "dtfd", "acmil")},
    "transmil": {"hidden": 32},
    "graph": {"hidden": 16, "attention": 8},
    "knn": {"statistics": "mean"},
    "set-kernel": {"landmarks": 32},
    "fisher": {"components": 2},
    "extra-trees": {"n_trees": 60},
    "attention-pool": {"hidden": 32, "feed_forward": 32, "n_heads": 4},
    "fusion": {"hidden": 64, "bottleneck": 32},
}
OTHERWISE = {"transmil": {"lr": 5e-3, "epochs": 12}}
ONCE = recipe(epochs=1)


def quick(name):
    """Fit a small head in no time."""
    fitted = recipe() if not HEADS[name].gradient else ONCE
    return spec(name, **QUICK.get(name, {})).fit(toy_bags(), recipe=fitted)


@pytest.mark.parametrize("name", HEADS)
def test_every_head_keeps_the_contract(name):
    # Fewer and larger steps than the default's, and small networks: the checks fit six times.
    steps = recipe(**{"epochs": 25, "lr": 1e-2, **OTHERWISE.get(name, {})})
    check_head(spec(name, **QUICK.get(name, {})), steps if HEADS[name].gradient else None)


@pytest.mark.parametrize("name", ["r-drop", "swa", "focal-lion"])
def test_every_recipe_keeps_the_contract(name):
    check_head(spec("gated-mil", **QUICK["gated-mil"]), recipe(name, lr=5e-3, epochs=16))


def test_heads_on_single_patches_keep_the_contract():
    check_head(spec("mlp-improved", pool="probability", hidden=16), recipe(epochs=12, lr=5e-3))


def test_the_probability_of_a_bag_is_the_mean_over_its_patches():
    bags = toy_bags()
    head = spec("mlp-improved", pool="probability").fit(bags, recipe=recipe(epochs=3))
    rows = bags.embedding
    single = Bags.from_arrays(rows, np.arange(len(rows) + 1), classes=bags.classes)
    of_patches = head.predict_proba(single)
    means = [part.mean(axis=0) for part in np.split(of_patches, bags.offset[1:-1])]
    np.testing.assert_allclose(head.predict_proba(bags), means, atol=1e-6)


def test_only_heads_that_weigh_patches_say_so():
    for card in known_heads():
        head = quick(card.name)
        if card.attention:
            assert len(head.attention(toy_bags())) == len(toy_bags())
        else:
            with pytest.raises(NotSupported, match="does not weigh patches"):
                head.attention(toy_bags())


# ---------------------------------------------------------------------- settings


def test_settings_come_as_text_or_as_values():
    assert spec("gated-mil", hidden="32") == spec("gated-mil", hidden=32)
    assert spec("gated-mil", standardise="false").standardise is False
    assert spec("logistic", statistics="mean, max").statistics == ("mean", "max")
    assert spec("lightgbm", statistics=["q10"]).statistics == ("q10",)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gated-mil", {"hiden": 3}),
        ("gated-mil", {"hidden": "wide"}),
        ("gated-mil", {"hidden": 0}),
        ("gated-mil", {"dropout": 1}),
        ("gated-mil", {"squeeze": "all"}),
        ("gated-mil", {"standardise": "perhaps"}),
        ("logistic", {"statistics": "median"}),
        ("logistic", {"statistics": "mean,mean"}),
        ("logistic", {"statistics": ""}),
        ("lightgbm", {"leaves": 1}),
    ],
)
def test_settings_that_make_no_sense_are_refused(name, settings):
    with pytest.raises(RecipeError, match=r"known:|must be"):
        spec(name, **settings)


def test_an_unknown_head_is_refused_with_the_known_ones():
    with pytest.raises(UnknownHead, match="gated-mil"):
        spec("gated")


@pytest.mark.parametrize("name", HEADS)
def test_every_head_has_a_card_and_described_settings(name):
    card = HEADS[name]
    assert card.name == name == spec(name).name
    assert card.summary
    assert card.source
    assert {row["name"] for row in card.settings()} == set(spec(name).to_json()["settings"])
    assert json.loads(json.dumps(spec(name).to_json())) == spec(name).to_json()


# ---------------------------------------------------------------------- what fit refuses


@pytest.mark.parametrize("name", ["logistic", "lightgbm"])
def test_estimators_refuse_a_recipe_they_would_ignore(name):
    with pytest.raises(RecipeError, match="no gradient steps"):
        spec(name).fit(toy_bags(), recipe=recipe("r-drop"))
    with pytest.raises(RecipeError, match="epochs would mean nothing"):
        spec(name).fit(toy_bags(), recipe=recipe(epochs=3))


@pytest.mark.parametrize("name", HEADS)
def test_class_weights_help_the_rare_class(name):
    def draw(seed):
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 1], [90, 10])
        rows = rng.normal(size=(100, 4)).astype(np.float32)
        rows[:, 0] += labels
        return Bags.from_arrays(rows, np.arange(101), labels=labels, classes=("common", "rare"))

    small = spec(name, **QUICK.get(name, {}))
    if name == "extra-trees":  # leaves of one bag are pure, whatever it weighs
        small = spec(name, n_trees=60, min_bags=8)
    means = [
        small.fit(draw(0), recipe=recipe(class_weights=weights)).predict_proba(draw(1))[:, 1].mean()
        for weights in ("none", "balanced")
    ]
    assert means[1] > means[0] + 0.01


@pytest.mark.parametrize("name", HEADS)
def test_one_class_or_no_label_is_refused(name):
    bags = toy_bags()
    with pytest.raises(SplitError, match="'benign' only"):
        spec(name).fit(bags[bags.labels == 0])
    with pytest.raises(SplitError, match="no bag"):
        spec(name).fit(bags[:0])
    bare = Bags.from_arrays(bags.embedding, bags.offset, classes=bags.classes)
    with pytest.raises(SplitError, match="no label"):
        spec(name).fit(bare)


@pytest.mark.parametrize("name", HEADS)
def test_a_class_without_training_bags_is_no_stumbling_block(name):
    bags = toy_bags(30, classes=("a", "b", "c"))
    quick = spec(name, **QUICK.get(name, {}))
    steps = recipe(lr=5e-3) if HEADS[name].gradient else recipe()
    found = quick.fit(bags[bags.labels != 1], recipe=steps).predict_proba(bags)
    assert found.shape == (30, 3)
    assert np.isfinite(found).all()
    assert found[:, 1].mean() < 0.3


def test_validation_bags_must_be_alike():
    with pytest.raises(NotSupported, match="features"):
        spec("mlp-simple").fit(toy_bags(), toy_bags(n_features=9))
    with pytest.raises(SplitError, match="labelled"):
        spec("mlp-simple").fit(toy_bags(), toy_bags()[:0])


def test_an_unknown_device_is_refused():
    with pytest.raises(OptionError, match="auto, cpu or cuda"):
        spec("mlp-simple").fit(toy_bags(), device="tpu")


@pytest.mark.parametrize("name", [name for name in HEADS if HEADS[name].gradient])
def test_features_of_wildly_different_scale_are_learnt(name):
    bags = toy_bags(n_features=6)
    scale = np.array([1e-4, 1e4, 1, 1, 1e3, 0], np.float32)
    stretched = Bags.from_arrays(
        bags.embedding * scale + 7,
        bags.offset,
        labels=bags.labels,
        classes=bags.classes,
        coords=bags.coords,
    )
    fitted = spec(name, **QUICK.get(name, {})).fit(stretched, recipe=recipe(lr=5e-3, epochs=40))
    found = fitted.predict_proba(stretched).argmax(axis=1)
    assert np.mean(found == bags.labels) > 0.9


# ---------------------------------------------------------------------- pooled statistics


@given(
    rows=arrays.arrays(np.float64, (12, 2), elements=st.floats(-100, 100)),
    cuts=st.sets(st.integers(1, 11), max_size=4),
)
def test_pooled_statistics_are_those_of_numpy(rows, cuts):
    offset = np.array([0, *sorted(cuts), 12])
    found = pool(rows, offset, STATISTICS).reshape(len(offset) - 1, len(STATISTICS), 2)
    for bag, part in zip(found, np.split(rows, offset[1:-1]), strict=True):
        quantiles = np.quantile(part, [0.1, 0.25, 0.5, 0.75, 0.9], axis=0)
        expected = [part.mean(0), part.std(0), part.min(0), part.max(0), *quantiles]
        np.testing.assert_allclose(bag, expected, atol=1e-9)


# ---------------------------------------------------------------------- files


@pytest.fixture(scope="module", params=["gated-mil", "logistic", "lightgbm"])
def saved(request, tmp_path_factory):
    """Give a head and its file."""
    head = quick(request.param)
    path = tmp_path_factory.mktemp("heads") / f"0-0{head.suffix}"
    head.save(path)
    return head, path


def test_a_damaged_file_is_refused_wherever_it_is_cut(saved, tmp_path):
    _, path = saved
    content = path.read_bytes()
    broken = tmp_path / path.name
    for end in (0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1):
        broken.write_bytes(content[:end])
        with pytest.raises(RunError):
            load_head(broken)


def test_a_changed_byte_is_refused_or_harmless(saved, tmp_path):
    head, path = saved
    content = path.read_bytes()
    broken = tmp_path / path.name
    rng = np.random.default_rng(0)
    for place in rng.integers(0, min(len(content), 3000), 60):
        changed = bytearray(content)
        changed[place] ^= 0xFF
        broken.write_bytes(bytes(changed))
        try:
            found = load_head(broken).predict_proba(toy_bags(4))
        except RunError:
            continue
        assert found.shape == (4, len(head.classes))


@pytest.mark.parametrize("ending", [".safetensors", ".lightgbm.json", ".txt"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[" * 100_000,
        b"\x80\x04\x95 a pickle",
        (2**62).to_bytes(8, "little") + b"{}",
        b'{"format": 1, "kind": "zoo.head"}',
        b'{"format": 2, "kind": "zoo.head"}',
    ],
)
def test_a_file_that_is_not_ours_is_refused(tmp_path, ending, content):
    path = tmp_path / f"head{ending}"
    path.write_bytes(content)
    with pytest.raises(RunError, match="head"):
        load_head(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(RunError):
        load_head(tmp_path / "none.safetensors")
    with pytest.raises(RunError):
        load_head(tmp_path)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "weights.safetensors"
    save_file({"x": np.zeros(3, np.float32)}, path)
    with pytest.raises(RunError, match="not a head of this program"):
        load_head(path)


def rewritten(path, target, change):
    """Copy a saved head with its document changed."""
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    with safe_open(path, framework="numpy") as file:
        document = json.loads(file.metadata()["zoo"])
    change(document)
    save_file(load_file(path), target, metadata={"zoo": json.dumps(document)})
    return target


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["head"]["settings"].update(hidden=60_000),
        lambda d: d["head"]["settings"].update(colour="red"),
        lambda d: d["head"].update(name="os.system"),
        lambda d: d.update(n_features=9_999_999),
        lambda d: d.update(n_features="8"),
        lambda d: d.update(classes=["a"]),
        lambda d: d.update(classes=["a", "b", "c"]),
        lambda d: d.update(format=2),
        lambda d: d.update(recipe={"name": "x", "lr": -1}),
        lambda d: d.pop("recipe"),
        lambda d: d.update(head={"name": "lightgbm", "settings": {}}),
    ],
)
def test_a_document_that_does_not_fit_its_arrays_is_refused(tmp_path, change):
    head = quick("gated-mil")
    head.save(tmp_path / "good.safetensors")
    with pytest.raises(RunError):
        load_head(rewritten(tmp_path / "good.safetensors", tmp_path / "bad.safetensors", change))


def test_saving_where_nothing_can_be_written_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="cannot write"):
        quick("logistic").save(tmp_path / "no" / "such" / "folder.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_lists_and_constructors_need_no_heavy_library():
    import subprocess
    import sys

    code = (
        "import sys, zoo.heads, zoo.recipes, zoo.heads.logistic; "
        "heavy = {'torch', 'sklearn', 'lightgbm', 'safetensors'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------------- real data


@pytest.mark.real
@pytest.mark.slow
def test_musk1_is_learnt_about_as_well_as_published(real_data):
    table = np.load(real_data / "mil-tables" / "musk1.npz")
    order = np.argsort(table["bag"], kind="stable")
    _, counts = np.unique(table["bag"], return_counts=True)
    bags = Bags.from_arrays(
        table["X"][order], np.concatenate([[0], counts.cumsum()]), labels=table["y"].astype(int)
    )
    fold = np.random.default_rng(0).permutation(len(bags)) % 5
    guess = np.empty(len(bags), int)
    for k in range(5):
        head = spec("gated-mil").fit(bags[fold != k])
        guess[fold == k] = head.predict_proba(bags[fold == k]).argmax(axis=1)
    assert np.mean(guess == bags.labels) > 0.78  # published: 0.900 ± 0.050 over ten folds


def test_trees_use_no_more_threads_than_they_are_told(monkeypatch):
    head = quick("lightgbm")
    asked = []
    predict = type(head.booster).predict

    def watched(self, *args, **options):
        asked.append(options["num_threads"])
        return predict(self, *args, **options)

    monkeypatch.setattr(type(head.booster), "predict", watched)
    for told, wanted in (("1", 1), (None, 1)):
        if told is None:
            monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        else:
            monkeypatch.setenv("OMP_NUM_THREADS", told)
        head.predict_proba(toy_bags(4))
        assert asked[-1] == wanted
