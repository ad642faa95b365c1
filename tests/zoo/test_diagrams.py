"""Drawings: well-formed, with every name and only the bars that belong."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import numpy as np
import pytest

from histostore.errors import OptionError
from zoo.calibration import reliability
from zoo.diagrams import rank_diagram, reliability_diagram
from zoo.significance import friedman

SVG = "{http://www.w3.org/2000/svg}"


def thick(tree):
    return [line for line in tree.iter(f"{SVG}line") if line.get("stroke-width") == "4"]


def test_runs_of_one_rank_share_a_bar_and_others_do_not():
    clear = friedman(np.tile([4.0, 3.0, 2.0, 1.0], (60, 1)))
    tree = ET.fromstring(rank_diagram(["a<b", "c", "d", "e"], clear))
    assert len(thick(tree)) == 1  # the scale alone
    words = [text.text for text in tree.iter(f"{SVG}text")]
    assert {"a<b 1.00", "c 2.00", "d 3.00", "e 4.00"} <= set(words)
    few = friedman(np.tile([4.0, 3.0, 2.0, 1.0], (5, 1)))
    drawn = thick(ET.fromstring(rank_diagram(list("abcd"), few)))[1:]
    assert few.critical_difference == pytest.approx(2.098, abs=1e-3)
    assert len(drawn) == 2  # a to c, b to d


def test_every_filled_bin_is_drawn():
    rng = np.random.default_rng(0)
    prob = rng.dirichlet([1, 1], 50)
    found = reliability(rng.integers(2, size=50), prob, of_class=1, n_bins=20)
    tree = ET.fromstring(reliability_diagram(found))
    assert len(list(tree.iter(f"{SVG}circle"))) == sum(bin_.n > 0 for bin_ in found.bins)


def test_names_that_do_not_fit_are_refused():
    with pytest.raises(OptionError, match="2 names for 3 runs"):
        rank_diagram(["a", "b"], friedman(np.eye(3)))
