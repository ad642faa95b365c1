"""Images in reports: those of the store, and what is said of those that cannot be shown."""

import shutil

import numpy as np
import pytest

from tests.zoo.reports import CLASSES
from zoo.report import collect, write_report
from zoo.report.images import choose_examples


def test_kept_and_rejected_patches_are_those_of_the_store(embedded, tmp_path):
    _, run, _ = embedded
    data = collect([run])
    (counts,) = data.patches
    assert (counts.n_images, data.image_notes) == (18, ())
    assert sum(n for *_, n in counts.bins) == 18
    assert len(data.examples) == 6
    for example in data.examples:
        picture = example.picture
        assert picture is not None
        assert (len(picture.kept), len(picture.rejected)) == (example.n_kept, example.n_rejected)
        assert example.n_kept + example.n_rejected == 4 * 3  # 256 x 160 px in 64 px patches
        assert not set(picture.kept) & set(picture.rejected)
        # tissue stands on the left, so no rejected patch lies left of all kept ones
        assert min(x for x, _ in picture.kept) == 0
    html = write_report([run], tmp_path).read_text("utf-8")
    assert html.count("data:image/jpeg;base64,") == 6
    assert len(html) < 3_000_000


def test_missing_images_are_named_and_the_rest_is_drawn(embedded, tmp_path):
    root, run, _ = embedded
    shown = collect([run]).examples
    moved = tmp_path / "moved"
    shutil.copytree(root, moved)
    (moved / f"{shown[0].image_id}.png").unlink()
    (moved / f"{shown[1].image_id}.png").write_bytes(b"")
    data = collect([run], cohort=moved / "cohort.csv")
    assert [e.picture is None for e in data.examples] == [True, True, False, False, False, False]
    assert [note.split()[0] for note in data.image_notes] == [e.image_id for e in shown[:2]]
    html = write_report([run], tmp_path / "out", cohort=moved / "cohort.csv").read_text("utf-8")
    assert html.count("image not available") == 2
    assert f"{shown[0].image_id} is not shown" in html


def test_an_image_that_changed_after_the_build_is_not_drawn(embedded, tmp_path):
    from PIL import Image

    root, run, _ = embedded
    moved = tmp_path / "moved"
    shutil.copytree(root, moved)
    first = next(e for e in collect([run]).examples if e.n_kept > 4)
    Image.new("RGB", (64, 64), "purple").save(moved / f"{first.image_id}.png")
    notes = collect([run], cohort=moved / "cohort.csv").image_notes
    assert len(notes) == 1
    assert "changed after the build" in notes[0]


@pytest.mark.parametrize(
    ("cohort", "words"),
    [
        pytest.param("nowhere.csv", "the cohort cannot be read", id="cohort gone"),
        pytest.param(None, "", id="all there"),
    ],
)
def test_a_lost_cohort_is_said(embedded, cohort, words):
    _, run, _ = embedded
    data = collect([run], cohort=cohort)
    assert any(words in note for note in data.image_notes) == bool(words)
    assert data.patches


def test_a_lost_store_is_said(page):
    assert "the store cannot be read" in page.read_text("utf-8")
    assert "the store cannot be read" in (page.parent / "report.md").read_text("utf-8")


def test_too_many_patches_are_bleached_instead_of_outlined(embedded, monkeypatch):
    _, run, _ = embedded
    monkeypatch.setattr("zoo.report.images.MOST_OUTLINES", 3)
    pictures = [e.picture for e in collect([run]).examples]
    assert all(p.is_shaded and not p.kept and not p.rejected for p in pictures)


def test_hard_images_are_those_with_the_largest_loss(runs):
    from zoo.run import Run

    run = Run.load(runs[0])
    examples = choose_examples(run)
    assert [e.why for e in examples[:3]] == [f"typical {c}" for c in CLASSES]
    assert all(e.target == e.predicted for e in examples[:3])
    hardest = [e.loss for e in examples[3:]]
    _, _, y, prob = run.test_probabilities()
    assert hardest == pytest.approx(sorted(-np.log(prob[np.arange(len(y)), y]))[::-1][:3])
