"""The table of encoders: every row is built, and every name of a parameter accounted for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from histostore.encoders.architectures import blueprint
from histostore.encoders.cards import EncoderCard, read_cards
from histostore.encoders.catalog import card
from histostore.encoders.hub import from_hub
from histostore.encoders.pooling import POOLINGS, pool, pooled_forward
from histostore.encoders.translations import DROPPABLE, TRANSLATIONS
from histostore.errors import EncoderError

ROWS = read_cards()
TORCH = [row for row in ROWS if row.loader.startswith("histostore.encoders.torch:")]
SHAPES = [row for row in TORCH if not row.is_pattern]


def test_the_names_of_the_table_are_its_own():
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", SHAPES, ids=lambda row: row.name)
def test_a_row_is_a_forward_pass_of_the_width_it_says(row):
    """On torch's meta device, which has shapes and no numbers: a billion parameters cost nothing."""
    with torch.device("meta"), torch.inference_mode():
        plan = blueprint(row)
        side = plan.input_px or 64
        vectors = plan.forward(plan.module.eval(), torch.empty(2, 3, side, side))
    assert tuple(vectors.shape) == (2, row.n_features)
    assert row.verified == "architecture"
    if row.pooling is not None:
        assert plan.pooling == row.pooling


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_says_where_its_facts_are_from_and_how_its_weights_are_had(row):
    assert row.verified in {"architecture", "card"}
    assert row.keys is None or row.keys in TRANSLATIONS
    if row.is_pattern or row.name in {"texture", "squeezenet1_1", "cell-graph"}:
        return
    assert row.url
    assert row.source
    if row.gated:
        assert row.hub
    if row in TORCH:
        assert row.pooling in {*POOLINGS, "average", "attentional"}
        # Enough to get weights: a repository, a file of one's own, or those of the library.
        own = row.architecture.partition(":")[0] in {"timm", "torchvision"}
        assert row.hub or row.needs_weights or own


def test_what_is_not_confirmed_is_said_and_known():
    unsure = {row.name for row in ROWS if "NOT CONFIRMED" in row.source}
    assert unsure == {
        "h0-mini",
        "hibou-l",
        "lunit-dino-s16",
        "lunit-dino-s8",
        "midnight-12k",
        "openmidnight",
        "phikon-v2",
    }


@pytest.mark.parametrize("pooling", POOLINGS)
def test_registers_and_the_class_token_are_no_squares(pooling):
    tokens = torch.randn(3, 1 + 4 + 9, 5)
    changed = tokens.clone()
    changed[:, 1:5] += 100  # the registers
    pooled = pool(tokens, 5, pooling)
    assert pooled.shape == (3, 10 if "+" in pooling else 5)
    torch.testing.assert_close(pool(changed, 5, pooling), pooled)
    changed[:, 0] += 100
    assert torch.equal(pool(changed, 5, pooling), pooled) == (pooling == "patches")


def test_a_network_without_tokens_cannot_be_pooled_by_them():
    with pytest.raises(EncoderError, match="no class token to pool by 'token'"):
        pooled_forward(torch.nn.Conv2d(3, 3, 1), "token")


def test_the_weights_of_a_gated_model_are_asked_for_where_access_is_granted():
    with pytest.raises(EncoderError, match=r"access is granted on https://\S+UNI2-h") as caught:
        from_hub(card("uni2-h"), "MahmoodLab/UNI2-h")
    assert "\n" not in str(caught.value)
    assert "--weights" in str(caught.value)


def _tiny(name: str, **changed) -> EncoderCard:
    """Make a card of the same names of parameters, on a network that is quickly run."""
    row = card(name)
    values = {key: getattr(row, key) for key in EncoderCard.__dataclass_fields__}
    small = {"img_size": 28, "embed_dim": 32, "depth": 2, "num_heads": 4}
    options = {**row.options, **small}
    extra = {"n_features": None, "input_px": 28, "options": options}
    return EncoderCard(**{**values, **extra, **changed})


def test_a_checkpoint_of_dinov2_with_registers_fits(tmp_path):
    """Its class token takes the first entry of the table of positions along."""
    from histostore.encoders.torch import load

    row = _tiny("openmidnight")
    with torch.random.fork_rng(devices=[]):
        state = blueprint(row).module.state_dict()
        state = {name: torch.randn_like(value) for name, value in state.items()}
        table = torch.randn(1, 1 + 4, 32)
    theirs = dict(state)
    theirs["register_tokens"] = theirs.pop("reg_token")
    theirs["pos_embed"] = table
    theirs["mask_token"] = torch.zeros(1, 32)
    for block in range(2):  # the feed-forward layers under DINOv2's names
        for theirs_name, ours in (("w12", "fc1"), ("w3", "fc2")):
            for kind in ("weight", "bias"):
                value = theirs.pop(f"blocks.{block}.mlp.{ours}.{kind}")
                theirs[f"blocks.{block}.mlp.{theirs_name}.{kind}"] = value
    save_file(theirs, tmp_path / "theirs.safetensors")
    encoder = load(card=row, weights=str(tmp_path / "theirs.safetensors"), device="cpu", threads=1)
    loaded = encoder._module.state_dict()
    torch.testing.assert_close(loaded["pos_embed"], table[:, 1:])
    torch.testing.assert_close(loaded["cls_token"], state["cls_token"] + table[:, :1])
    for name in state.keys() - {"pos_embed", "cls_token"}:
        assert torch.equal(loaded[name], state[name]), name
    theirs["pos_embed"] = torch.randn(1, 1 + 16, 32)  # of another grid
    save_file(theirs, tmp_path / "theirs.safetensors")
    with pytest.raises(EncoderError, match="pos_embed is"):
        load(card=row, weights=str(tmp_path / "theirs.safetensors"), device="cpu", threads=1)


def test_every_head_that_may_be_dropped_belongs_to_a_translation():
    assert DROPPABLE.keys() == TRANSLATIONS.keys()


def test_the_page_on_encoders_is_fresh(monkeypatch):
    """``WRITE_DOCS=1`` writes it anew."""
    import os

    from histostore.encoders.cards import table

    page = Path(__file__).parents[2] / "docs" / "encoders.md"
    text = page.read_text(encoding="utf-8")
    start, end = "<!-- table of encoders: generated -->\n", "<!-- end of the table -->\n"
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    fresh = f"{before}{start}\n{table(ROWS)}\n{end}{after}"
    if os.environ.get("WRITE_DOCS"):
        page.write_text(fresh, encoding="utf-8")
    assert text == fresh or os.environ.get("WRITE_DOCS"), "stale: run with WRITE_DOCS=1"
