"""How often intervals hold the truth, and how often equal classifiers are called different.

    python -m benchmarks.simulate_statistics                    # a few seconds, rough
    python -m benchmarks.simulate_statistics --repeats 600 --resamples 400 --out docs/figures

Images are drawn of which the truth is known: scores are normal, ``d`` higher for the true class,
``d`` chosen for an accuracy. Beside what the zoo does stand the usual ways to make an interval of
resamples. Written are ``statistics.json`` and ``coverage.svg``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from scipy.special import ndtr, ndtri

from zoo.intervals import share_interval
from zoo.metrics.classes import Ranking
from zoo.significance import delong, mcnemar
from zoo.statistics import paired_bootstrap, patient_draws

METRICS = ("accuracy", "macro_f1", "auroc")
SIZES = (30, 60, 100, 374)
ACCURACIES = (0.6, 0.8, 0.9, 0.98)
METHODS = ("zoo", "percentile", "bca", "bayesian")
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


def truths(accuracy):
    """Give the metrics of endlessly many images."""
    return {
        "accuracy": accuracy,
        "macro_f1": accuracy,
        "auroc": float(ndtr(2 * ndtri(accuracy) / np.sqrt(2))),
    }


def bca(value, draws, jackknife, share):
    """Efron & Tibshirani 1993, eq. 14.10, 14.15."""
    less = np.mean(draws < value) + np.mean(draws == value) / 2
    z0 = ndtri(np.clip(less, 1 / len(draws), 1 - 1 / len(draws)))
    gap = np.mean(jackknife) - jackknife
    square = (gap**2).sum()
    a = (gap**3).sum() / (6 * square**1.5) if square > 0 else 0.0
    z = ndtri(share)
    return np.quantile(draws, ndtr(z0 + (z0 + z) / (1 - a * (z0 + z))))


def three_metrics(y, prob):
    """Do what ``Scorer`` does, for three metrics of two classes and in a fifth of the time."""
    told, rank = prob.argmax(axis=1), Ranking(prob[:, 1], y == 1)
    cells = np.eye(4)[2 * y + told]

    def score(weights):
        right_0, false_1, false_0, right_1 = (weights @ cells).T
        wrong = false_0 + false_1
        with np.errstate(invalid="ignore"):
            f1 = [2 * right / (2 * right + wrong) for right in (right_0, right_1)]
        accuracy = (right_0 + right_1) / weights.sum(axis=1)
        return {
            "accuracy": accuracy,
            "macro_f1": np.nanmean(f1, axis=0),
            "auroc": rank.areas(weights)[0],
        }

    return score


def intervals(rng, y, prob, patients, n_resamples):
    """Give every metric's interval by every method."""
    n = len(y)
    scorer = three_metrics(y, prob)
    (weights,) = patient_draws(patients, n_resamples=n_resamples, seed=int(rng.integers(2**31)))
    whole = {k: v[0] for k, v in scorer(np.ones((1, n))).items()}
    drawn, left_out = scorer(weights), scorer(1 - np.eye(n))
    bayes = scorer(rng.exponential(size=weights.shape))
    share = np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    for name in METRICS:
        value, kept = whole[name], drawn[name][~np.isnan(drawn[name])]
        if np.isnan(value):
            continue
        spared = left_out[name][~np.isnan(left_out[name])]
        n_patients = len(np.unique(patients))
        yield name, "zoo", share_interval(value, kept, n_images=n, n_patients=n_patients)
        yield name, "percentile", np.quantile(kept, share)
        yield name, "bca", bca(value, kept, spared, share)
        yield name, "bayesian", np.quantile(bayes[name], share)


def coverage(repeats, n_resamples, sizes, images_per_patient=1, methods=METHODS):
    rng, rows = np.random.default_rng(images_per_patient), []
    for accuracy in ACCURACIES:
        truth = truths(accuracy)
        for n in sizes:
            found = {}
            for _ in range(repeats):
                y, (prob, _), patients = draw(
                    rng, n, accuracy, images_per_patient=images_per_patient
                )
                for name, method, (low, high) in intervals(rng, y, prob, patients, n_resamples):
                    held = low - 1e-12 <= truth[name] <= high + 1e-12
                    found.setdefault((name, method), []).append((held, high - low))
            rows += [
                {
                    "metric": name,
                    "accuracy": accuracy,
                    "n": n,
                    "images_per_patient": images_per_patient,
                    "method": method,
                    "coverage": round(float(np.mean([held for held, _ in seen])), 3),
                    "width": round(float(np.mean([width for _, width in seen])), 4),
                }
                for (name, method), seen in found.items()
                if method in methods
            ]
    return rows


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
        names = [*(f"bootstrap {name}" for name in METRICS), "mcnemar", "mcnemar mid-p", "delong"]
        names += ["delong, patients ignored", "mcnemar mid-p, patients ignored"]
        p = np.array([[np.nan if v is None else v for v in line] for line in found], float)
        shares = (p <= 0.05).mean(axis=0)
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


COLOURS = {"zoo": "#0b6e4f", "percentile": "#c1432e", "bca": "#d98e04", "bayesian": "#5b6abf"}


def figure(rows):
    """Draw one panel per metric, one line per accuracy and size, one dot per method."""
    lines = [(a, n) for a in ACCURACIES for n in sorted({row["n"] for row in rows})]
    step, top, left, panel = 17, 46, 130, 190
    height = top + step * len(lines) + 40
    text = '<text x="{:.0f}" y="{:.0f}" text-anchor="{}" font-weight="{}">{}</text>'.format
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + 3 * panel + 20} {height}" '
        'font-family="sans-serif" font-size="11" role="img" '
        'aria-label="Share of samples whose 95 % interval holds the truth, by method">',
        f'<rect width="100%" height="{height}" fill="#fff"/>',
    ]
    for i, (accuracy, n) in enumerate(lines):
        told = f"accuracy {accuracy}, n = {n}"
        parts.append(text(left - 8, top + step * i + 4, "end", "normal", told))
    for k, metric in enumerate(METRICS):
        start = left + k * panel

        def at(share, start=start):
            return start + 10 + (panel - 30) * (max(share, 0.5) - 0.5) / 0.5

        bottom = top + step * len(lines) - 8
        parts.append(
            f'<rect x="{at(0.93):.1f}" y="{top - 10}" width="{at(0.97) - at(0.93):.1f}" '
            f'height="{bottom - top + 10}" fill="#dfeee7"/>'
        )
        for tick in (0.5, 0.75, 0.95):
            x = at(tick)
            parts.append(
                f'<path d="M{x:.1f} {top - 10}V{bottom}" stroke="#bbb" stroke-width=".7"/>'
            )
            label = "≤ 0.5" if tick == 0.5 else f"{tick}"
            parts.append(text(x, bottom + 14, "middle", "normal", label))
        parts.append(text(at(0.75), top - 18, "middle", "bold", metric.replace("_", "-")))
        for row in rows:
            if row["metric"] == metric:
                y = top + step * lines.index((row["accuracy"], row["n"]))
                r = 4.5 if row["method"] == "zoo" else 3
                parts.append(
                    f'<circle cx="{at(row["coverage"]):.1f}" cy="{y}" r="{r}" '
                    f'fill="{COLOURS[row["method"]]}" fill-opacity=".85"/>'
                )
    for i, method in enumerate(METHODS):
        x = left + 10 + 130 * i
        parts.append(
            f'<circle cx="{x}" cy="{height - 12}" r="4" fill="{COLOURS[method]}"/>'
            + text(x + 9, height - 8, "start", "normal", method)
        )
    return "\n".join([*parts, "</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20, help="samples per setting")
    parser.add_argument("--resamples", type=int, default=200, help="resamples per interval")
    parser.add_argument("--out", type=Path, default=None, help="folder of the JSON and the figure")
    given = parser.parse_args()
    started = time.process_time()
    rows = coverage(given.repeats, given.resamples, SIZES)
    clustered = coverage(given.repeats, given.resamples, (30, 100), 3, ("zoo", "percentile"))
    alarms = false_alarms(given.repeats, given.resamples, SIZES)
    alarms += false_alarms(given.repeats, given.resamples, (30, 100), 3)
    document = {
        "repeats": given.repeats,
        "resamples": given.resamples,
        "level": LEVEL,
        "cpu_seconds": round(time.process_time() - started),
        "coverage": rows,
        "coverage_of_patients_with_three_images": clustered,
        "false_alarms": alarms,
    }
    for row in [*rows, *clustered, *alarms]:
        print(*row.values(), sep="\t")
    print(document["cpu_seconds"], "CPU seconds")
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        told = json.dumps(document, indent=None).replace("}, {", "},\n{")
        (given.out / "statistics.json").write_text(told + "\n", encoding="utf-8")
        (given.out / "coverage.svg").write_text(figure(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
