"""Repair computes again what a build computed: given places and measured columns included."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histostore.build import BuildOptions, EncoderOptions, build
from histostore.build.repair import repair
from histostore.cohort import Cohort
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter
from histostore.store import open_store
from histostore.store.verify import verify
from tests.histostore.damage import damage

OPTIONS = BuildOptions(
    encoder=EncoderOptions(name="texture", threads=1),
    grid=PatchGrid(patch_size=24),
    tissue=TissueFilter(method="none"),
)


@pytest.fixture
def built(tmp_path):
    """A store of two images whose patches lie where tables say: (url, cohort)."""
    rows = []
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (60, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.csv").write_text("x,y\n3,5\n31,7\n50,30\n")
        rows.append(
            {"image_id": f"i{number}", "path": f"{number}.png", "coordinates": f"{number}.csv"}
        )
    pd.DataFrame(rows).to_csv(tmp_path / "cohort.csv", index=False)
    cohort = Cohort.read(str(tmp_path / "cohort.csv"))
    build(cohort, str(tmp_path / "store"), OPTIONS)
    return str(tmp_path / "store"), cohort


def rows_of(url):
    loaded = open_store(url).feature_set().load()
    columns = {name: values.tobytes() for name, values in loaded.columns.items()}
    return loaded.embedding.tobytes(), loaded.coords.tolist(), columns


@pytest.mark.parametrize("pattern", ["embedding/c.0.0.0", "x/c.0", "sharpness/c.0"])
def test_given_places_and_columns_are_mended_from_the_cohort(built, pattern):
    url, cohort = built
    before = rows_of(url)
    assert before[1][:3] == [[3, 5], [31, 7], [50, 30]]
    assert {"sharpness", "brightness", "dark-share"} <= before[2].keys()
    damage(url, f"*/fragments/*/{pattern}")
    assert not verify(url).ok
    [outcome] = repair(url, EncoderOptions(threads=1), cohort=cohort).outcomes
    assert not outcome.kept, outcome
    assert verify(url).ok
    assert rows_of(url) == before


def test_a_change_of_file_alone_does_not_move_given_places(built, tmp_path):
    url, cohort = built
    before = rows_of(url)
    (tmp_path / "0.png").touch()
    damage(url, "*/fragments/*/embedding/c.0.0.0")
    again = Cohort.read(cohort.url)
    [outcome] = repair(url, EncoderOptions(threads=1), cohort=again, accept_changed=True).outcomes
    assert not outcome.kept, outcome
    assert rows_of(url) == before


def test_places_that_changed_or_are_not_given_are_not_taken_for_the_old_ones(built, tmp_path):
    url, cohort = built
    damage(url, "*/fragments/*/embedding/c.0.0.0")
    [outcome] = repair(url, EncoderOptions(threads=1)).outcomes
    assert "give the cohort" in outcome.kept
    (tmp_path / "0.csv").write_text("x,y\n3,5\n31,7\n50,29\n")
    again = Cohort.read(cohort.url)
    [outcome] = repair(url, EncoderOptions(threads=1), cohort=again).outcomes
    assert outcome.kept.endswith(f"has changed: {tmp_path}/0.csv")
    [outcome] = repair(url, EncoderOptions(threads=1), cohort=again, accept_changed=True).outcomes
    assert not outcome.kept
    assert rows_of(url)[1][:3] == [[3, 5], [31, 7], [50, 29]]


def test_the_scale_that_a_cohort_gave_is_recorded_and_another_one_is_not_taken(built, tmp_path):
    _, cohort = built
    url, plain = str(tmp_path / "scaled"), cohort.table[["image_id", "path"]]
    given = {mpp: Cohort.from_frame(plain.assign(mpp=mpp), cohort.url) for mpp in (0.25, 0.5)}
    made = build(given[0.5], url, replace(OPTIONS, grid=PatchGrid(patch_size=24, mpp=0.5)))
    assert made.n_patches == 2 * 12
    before = rows_of(url)
    damage(url, "*/fragments/*/embedding/c.0.0.0")
    [outcome] = repair(url, EncoderOptions(threads=1), cohort=given[0.25]).outcomes
    assert "embedded at the scale of 0.5" in outcome.kept
    [outcome] = repair(url, EncoderOptions(threads=1)).outcomes
    assert not outcome.kept, outcome
    assert rows_of(url) == before
