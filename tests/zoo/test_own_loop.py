"""The guide to one's own training loop: its code runs as it stands, and learns."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from zoo.training.threads import limited

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "your-own-training-loop.md"


def test_the_guide_runs_from_top_to_bottom_and_learns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"^```python\n(.*?)^```$", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert len(blocks) == 7
    names: dict[str, object] = {}
    with limited(1):
        for block in blocks:
            exec(compile(block, str(GUIDE), "exec"), names)
    losses = names["losses"]
    assert losses[-1] < losses[0]
    whole = names["train"].embedding
    assert np.isfinite(whole).all()
    assert np.allclose(names["mean"], names["bags"].embedding.mean(axis=0), atol=1e-4)
    assert names["bags"].folder.parent == Path("cache")
    assert "24 images of texture-" in capsys.readouterr().out
