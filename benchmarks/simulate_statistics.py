"""How often intervals hold the truth, and how often equal classifiers are called different.

    python -m benchmarks.simulate_statistics                    # a few seconds, rough
    python -m benchmarks.simulate_statistics --repeats 400 --resamples 300 --out docs/figures
    python -m benchmarks.simulate_statistics --only numbers --out docs/figures

Images are drawn of which the truth is known: a score for each class is normal, ``d`` higher for the
true one, ``d`` chosen for an AUROC; half of the noise is the patient's, who has one class and one
to five images. True numbers are normal, and predicted with an error in their standard deviations.
Beside what the zoo does stand the usual ways to make an interval of resamples. Written are
``statistics.json`` and ``coverage.svg``; what is not simulated anew is kept.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from zoo.intervals import metric_interval, percentile_interval
from zoo.metrics import metric_heading
from zoo.metrics.classes import Scorer
from zoo.metrics.regression import NumberScorer
from zoo.significance import delong, mcnemar
from zoo.statistics import paired_bootstrap, patient_draws

COVERED = ("macro_f1", "accuracy", "balanced_accuracy", "kappa", "auroc", "auprc", "log_loss")
PATIENTS = (50, 100, 300)
AREAS = (0.75, 0.9, 0.98)
COHORTS = {"three classes": (3, 3), "two classes": (2, 3), "three classes, one image each": (3, 1)}
"""Name to number of classes and mean number of images of a patient."""
SHARES = {2: (0.6, 0.4), 3: (0.5, 0.3, 0.2)}
METHODS = ("zoo", "percentile", "bca")
METRICS = ("accuracy", "macro_f1", "auroc")
SIZES = (30, 60, 100, 374)
ERRORS = (0.4, 1.0)
NUMBERED = (30, 50, 100)
"""Patients whose numbers are predicted."""
LEVEL = 0.95


def draw(rng, n, accuracy, *, correlation=0.0, images_per_patient=1):
    """Draw truth, two score columns of equally good classifiers, and patients."""
    patients = np.repeat(np.arange(n), images_per_patient)
    y = rng.integers(2, size=len(patients))
    d = 2 * ndtri(accuracy)
    noise = rng.normal(size=(3, len(patients)))
    if images_per_patient > 1:  # half of the variance is the patient's
        noise = np.sqrt(0.5) * (noise + rng.normal(size=(3, n))[:, patients])
    scores = np.sqrt(correlation) * noise[0] + np.sqrt(1 - correlation) * noise[1:] + d * (y - 0.5)
    return y, [np.c_[1 - ndtr(s), ndtr(s)] for s in scores], patients.astype(str)


def draw_cohort(rng, n_patients, n_classes, images, d):
    """Draw truth, probabilities and patients, every class among them."""
    while True:
        label = rng.choice(n_classes, size=n_patients, p=SHARES[n_classes])
        if len(np.unique(label)) == n_classes:
            break
    sizes = rng.integers(1, 2 * images, size=n_patients)
    patients = np.repeat(np.arange(n_patients), sizes)
    y, noise = label[patients], rng.normal(size=(sizes.sum(), n_classes))
    if images > 1:
        noise = np.sqrt(0.5) * (noise + rng.normal(size=(n_patients, n_classes))[patients])
    odds = np.exp(noise + d * np.eye(n_classes)[y])
    return y, odds / odds.sum(axis=1, keepdims=True), patients


def truth_at(area, n_classes):
    """Give the distance of scores that leads to an AUROC, and all metrics of very many images."""
    low, high = 0.0, 8.0
    for _ in range(14):
        d = (low + high) / 2
        seen = truths(d, n_classes, 40_000)["auroc"]
        low, high = (d, high) if seen < area else (low, d)
    return d, truths(d, n_classes, 600_000)


def truths(d, n_classes, n):
    y, prob, _ = draw_cohort(np.random.default_rng(1), n, n_classes, 1, d)
    return {name: value[0] for name, value in Scorer(y, prob)(np.ones((1, n))).items()}


def bca(value, draws, jackknife, share):
    """Efron & Tibshirani 1993, eq. 14.10, 14.15."""
    less = np.mean(draws < value) + np.mean(draws == value) / 2
    z0 = ndtri(np.clip(less, 1 / len(draws), 1 - 1 / len(draws)))
    gap = np.mean(jackknife) - jackknife
    square = (gap**2).sum()
    a = (gap**3).sum() / (6 * square**1.5) if square > 0 else 0.0
    z = ndtri(share)
    return np.quantile(draws, ndtr(z0 + (z0 + z) / (1 - a * (z0 + z))))


def intervals(rng, y, prob, patients, n_resamples):
    """Give every metric's interval by every method."""
    n_images, n_patients, scorer = len(y), patients[-1] + 1, Scorer(y, prob)
    seed = int(rng.integers(2**31))
    drawn = [scorer(w) for w in patient_draws(patients.astype(str), n_resamples=n_resamples, seed=seed)]  # fmt: skip
    left_out = scorer(1.0 - (patients == np.arange(n_patients)[:, None]))
    whole = scorer(np.ones((1, n_images)))
    share = np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    for name in COVERED:
        value, draws = float(whole[name][0]), np.concatenate([found[name] for found in drawn])
        kept, spared = draws[~np.isnan(draws)], left_out[name][~np.isnan(left_out[name])]
        sizes = {"n_images": n_images, "n_patients": n_patients}
        yield name, "zoo", metric_interval(name, value, draws, **sizes)
        yield name, "percentile", np.quantile(kept, share)
        yield name, "bca", bca(value, kept, spared, share)


def coverage(repeats, n_resamples):
    rows = []
    for cohort, (n_classes, images) in COHORTS.items():
        for area in AREAS:
            d, truth = truth_at(area, n_classes)
            for n in PATIENTS:
                rng = np.random.default_rng([n_classes, images, round(100 * area), n])
                found = {}
                for _ in range(repeats):
                    y, prob, patients = draw_cohort(rng, n, n_classes, images, d)
                    for name, method, (low, high) in intervals(rng, y, prob, patients, n_resamples):
                        held = low - 1e-12 <= truth[name] <= high + 1e-12
                        found.setdefault((name, method), []).append((held, high - low))
                rows += [
                    {
                        "metric": name,
                        "cohort": cohort,
                        "auroc": area,
                        "patients": n,
                        "method": method,
                        "truth": round(float(truth[name]), 4),
                        **_summary(seen),
                    }
                    for (name, method), seen in found.items()
                ]
    return rows


def draw_numbers(rng, n, error, images):
    """Draw true numbers, predicted ones, and patients, whose part is half of either's variance."""
    patients = np.repeat(np.arange(n), rng.integers(1, 2 * images, size=n))
    truth, noise = rng.normal(size=(2, len(patients)))
    if images > 1:
        own = rng.normal(size=(2, n))[:, patients]
        truth, noise = np.sqrt(0.5) * (np.stack([truth, noise]) + own)
    return truth[:, None], (truth + error * noise)[:, None], patients.astype(str)


def numbers(repeats, n_resamples):
    rows = []
    for images, error, n in itertools.product((1, 3), ERRORS, NUMBERED):
        rng = np.random.default_rng([images, round(10 * error), n])
        many = NumberScorer(*draw_numbers(np.random.default_rng(1), 600_000, error, 1)[:2])
        truth = {name: told[0] for name, told in many(np.ones((1, many.n_images))).items()}
        found = {}
        for k in range(repeats):
            y, told, patients = draw_numbers(rng, n, error, images)
            scorer = NumberScorer(y, told)
            whole = scorer(np.ones((1, len(y))))
            drawn = [scorer(w) for w in patient_draws(patients, n_resamples=n_resamples, seed=k)]
            for name in scorer.names:
                value = float(whole[name][0])
                draws = np.concatenate([part[name] for part in drawn])
                sizes = {"n_images": len(y), "n_patients": n}
                ends = metric_interval(name, value, draws, **sizes), percentile_interval(draws)
                for method, (low, high) in zip(METHODS, ends, strict=False):
                    held = low <= truth[name] <= high
                    found.setdefault((name, method), []).append((held, high - low))
        rows += [
            {
                "metric": name,
                "images_per_patient": images,
                "error": error,
                "patients": n,
                "method": method,
                "truth": round(float(truth[name]), 4),
                **_summary(seen),
            }
            for (name, method), seen in found.items()
        ]
    return rows


def _summary(seen):
    held, width = np.mean(seen, axis=0)
    return {"coverage": round(float(held), 3), "width": round(float(width), 4)}


def false_alarms(repeats, n_resamples, sizes, images_per_patient=1):
    """Count how often two equally good classifiers differ at 0.05."""
    rng, rows = np.random.default_rng(10 + images_per_patient), []
    for n in sizes:
        found = []
        for k in range(repeats):
            y, (one, other), patients = draw(
                rng, n, 0.8, correlation=0.6, images_per_patient=images_per_patient
            )
            gaps = paired_bootstrap(y, one, other, patients, n_resamples=n_resamples, seed=k)
            swap = mcnemar(y, one.argmax(1), other.argmax(1), patients)
            careless = delong(y, one, other).p, mcnemar(y, one.argmax(1), other.argmax(1)).mid_p
            area = delong(y, one, other, patients)
            told = [gaps[name].p for name in METRICS]
            found.append([*told, swap.p, swap.mid_p, area.p, *careless])
        boots = [f"bootstrap {name}" for name in METRICS]
        names = [*boots, "mcnemar", "mcnemar mid-p", "delong"]
        names += ["delong, patients ignored", "mcnemar mid-p, patients ignored"]
        p = np.array([[np.nan if v is None else v for v in line] for line in found], float)
        # What zoo.intervals.expanded_p makes of the tail, undone.
        plain = 2 * ndtr(stdtrit(n - 1, p[:, : len(boots)] / 2) * np.sqrt(n / (n - 1)))
        names += [f"{name}, percentiles" for name in boots]
        shares = (np.hstack([p, plain]) <= 0.05).mean(axis=0)
        rows += [
            {
                "test": name,
                "n": n,
                "images_per_patient": images_per_patient,
                "rejected": round(float(x), 3),
            }
            for name, x in zip(names, shares, strict=True)
        ]
    return rows


COLOURS = {"zoo": "#0b6e4f", "percentile": "#c1432e", "bca": "#d98e04"}
NAMES = {"zoo": "zoo", "percentile": "percentiles", "bca": "BCa"}
LEAST = 0.8
LEFT, TOP, PANEL, STEP, GAP, ABREAST = 196, 66, 146, 16, 26, 4
_TEXT = '<text x="{:.0f}" y="{:.0f}" text-anchor="{}" font-weight="{}">{}</text>'.format


def figure(rows, repeats):
    """Draw one panel per metric, one line per cohort, AUROC and size, one dot per method."""
    lines = [(c, a, n) for c in COHORTS for a in AREAS for n in PATIENTS]
    place = {one: TOP + STEP * i + GAP * (i // 9) for i, one in enumerate(lines)}
    block = place[lines[-1]] + 36
    blocks = -(-len(COVERED) // ABREAST)
    width, height = LEFT + ABREAST * PANEL + 16, blocks * block + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12" role="img" '
        'aria-label="Share of samples whose 95 % interval holds the truth, by metric and method">',
        f'<rect width="100%" height="{height}" fill="#fff"/>',
    ]
    for k in range(blocks):
        parts.append(f'<g transform="translate(0 {k * block})">')
        for (cohort, area, n), y in place.items():
            if (area, n) == (AREAS[0], PATIENTS[0]):
                parts.append(_TEXT(8, y - 15, "start", "bold", cohort))
            parts.append(_TEXT(LEFT - 10, y + 4, "end", "normal", f"AUROC {area}, {n} patients"))
        for i, metric in enumerate(COVERED[k * ABREAST : (k + 1) * ABREAST]):
            mine = [row for row in rows if row["metric"] == metric]
            parts += panel(mine, place, metric, LEFT + i * PANEL)
        parts.append("</g>")
    for i, method in enumerate(METHODS):
        x = LEFT + 10 + 100 * i
        parts.append(f'<circle cx="{x}" cy="{height - 14}" r="4" fill="{COLOURS[method]}"/>')
        parts.append(_TEXT(x + 9, height - 10, "start", "normal", NAMES[method]))
    told = f"per cent of {repeats} samples; shaded: 93 to 97"
    parts.append(_TEXT(width - 16, height - 10, "end", "normal", told))
    return "\n".join([*parts, "</svg>", ""])


def panel(rows, place, metric, start):
    """Draw one metric."""
    top, bottom = TOP - 12, max(place.values()) + 12

    def at(share):
        return start + 8 + (PANEL - 26) * (max(share, LEAST) - LEAST) / (1 - LEAST)

    parts = [
        _TEXT(at(0.9), 22, "middle", "bold", metric_heading(metric).replace(" (quadratic)", "")),
        f'<rect x="{at(0.93):.1f}" y="{top}" width="{at(0.97) - at(0.93):.1f}" '
        f'height="{bottom - top}" fill="#dfeee7"/>',
    ]
    for tick, anchor in ((0.8, "start"), (0.9, "middle"), (0.95, ""), (1.0, "end")):
        x = at(tick)
        parts.append(f'<path d="M{x:.1f} {top}V{bottom}" stroke="#bbb" stroke-width=".7"/>')
        if anchor:
            parts.append(_TEXT(x, bottom + 16, anchor, "normal", f"{100 * tick:.0f}"))
    for row in sorted(rows, key=lambda row: row["method"] == "zoo"):
        y = place[row["cohort"], row["auroc"], row["patients"]]
        r = 4.5 if row["method"] == "zoo" else 3
        parts.append(
            f'<circle cx="{at(row["coverage"]):.1f}" cy="{y}" r="{r}" '
            f'fill="{COLOURS[row["method"]]}" fill-opacity=".85"/>'
        )
    return parts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=4, help="samples per setting")
    parser.add_argument("--resamples", type=int, default=200, help="resamples per interval")
    parser.add_argument("--only", choices=("coverage", "numbers", "alarms"), help="one of them")
    parser.add_argument("--out", type=Path, default=None, help="folder of the JSON and the figure")
    given = parser.parse_args()
    path = given.out and given.out / "statistics.json"
    document = json.loads(path.read_text("utf-8")) if path and path.is_file() else {}
    document["level"] = LEVEL
    for part, simulate in (("coverage", coverage), ("numbers", numbers), ("alarms", alarms)):
        if given.only in (None, part):
            started = time.process_time()
            rows = simulate(given.repeats, given.resamples)
            document[part] = {
                "repeats": given.repeats,
                "resamples": given.resamples,
                "cpu_seconds": round(time.process_time() - started),
                "rows": rows,
            }
            for row in rows:
                print(*row.values(), sep="\t")
    if path:
        given.out.mkdir(parents=True, exist_ok=True)
        told = json.dumps(document, indent=None).replace("}, {", "},\n{")
        path.write_text(told + "\n", encoding="utf-8")
        drawn = figure(document["coverage"]["rows"], document["coverage"]["repeats"])
        (given.out / "coverage.svg").write_text(drawn, encoding="utf-8")


def alarms(repeats, n_resamples):
    single = false_alarms(repeats, n_resamples, SIZES)
    return single + false_alarms(repeats, n_resamples, (30, 100), 3)


if __name__ == "__main__":
    main()
