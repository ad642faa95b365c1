"""What ensembles of members that know nothing seem to gain, and how often equal runs look unequal.

    python -m benchmarks.simulate_ensembles                  # some seconds, rough
    python -m benchmarks.simulate_ensembles --repeats 200 --out docs/figures

Ten members tell probabilities of three classes at random, for images of which no member knows
anything; an ensemble can be right by chance alone. Weights are learned as the zoo learns them, in
nested folds, and beside that on the same images on which the ensemble is then judged. Written is
the part ``noise`` of ``statistics.json``, and ``claims.svg``, which draws it beside the false alarms
of :mod:`benchmarks.simulate_statistics`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from zoo.blending import LEARNED, Members, Pool, blend

N_MEMBERS, N_CLASSES, N_FOLDS = 10, 3, 5
SIZES = (60, 120, 374)
WAYS = {"nested": "in nested folds, as the zoo does", "same": "on the images judged"}
COLOURS = {"nested": "#0b6e4f", "same": "#c1432e"}
LEFT, WIDTH, STEP, TOP = 216, 300, 18, 62
_TEXT = '<text x="{:.0f}" y="{:.0f}" text-anchor="{}" font-weight="{}">{}</text>'.format


def noise(rng, n):
    """Draw members that know nothing: truth of even classes, folds, one patient each image."""
    order = rng.permutation(n)
    return Members(
        prob=rng.dirichlet(np.ones(N_CLASSES), size=(N_MEMBERS, n)),
        y_true=order % N_CLASSES,
        patient_ids=np.arange(n).astype(str).astype(object),
        fold=rng.permutation(n) % N_FOLDS,
        role=np.full(n, "test"),
        n_folds=N_FOLDS,
    )


def gains(members, rule):
    """Give accuracy above chance of weights learned in nested folds, and on the same images."""
    blended = blend(members, rule)
    learned_on_all = Pool(rule=rule, mix=blended.final)(members.prob)
    return {
        way: float((prob.argmax(axis=1) == members.y_true).mean()) - 1 / N_CLASSES
        for way, prob in (("nested", blended.prob), ("same", learned_on_all))
    }


def simulate(repeats):
    rows = []
    for rule in LEARNED:
        for n in SIZES:
            rng = np.random.default_rng([7, n])
            found = [gains(noise(rng, n), rule) for _ in range(repeats)]
            for way in WAYS:
                seen = np.array([one[way] for one in found])
                rows.append(
                    {
                        "rule": rule,
                        "n": n,
                        "learned": way,
                        "gain": round(float(seen.mean()), 4),
                        "standard_error": round(float(seen.std() / np.sqrt(repeats)), 4),
                    }
                )
    return rows


def figure(alarms, rows):
    """Draw false alarms, and beside them what ensembles of noise seem to gain."""
    names = dict.fromkeys(row["test"] for row in alarms)
    tests = [name for name in names if not name.endswith((", patients ignored", ", percentiles"))]
    rules = [(rule, n) for rule in LEARNED for n in SIZES]
    height = TOP + STEP * max(len(tests), len(rules)) + 70
    second = LEFT + WIDTH + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {second + LEFT + WIDTH} {height}" '
        'font-family="sans-serif" font-size="12" role="img" '
        'aria-label="False alarms of each test, and gains of ensembles of members that know nothing">',
        f'<rect width="100%" height="{height}" fill="#fff"/>',
    ]
    parts += alarms_panel(alarms, tests, height)
    parts.append(f'<g transform="translate({second - 60} 0)">')
    parts += gains_panel(rows, rules, height)
    return "\n".join([*parts, "</g>", "</svg>", ""])


def axis(ticks, at, bottom, name):
    """Draw lines of an axis and its name."""
    parts = []
    for tick, label in ticks:
        x = at(tick)
        parts.append(f'<path d="M{x:.1f} {TOP - 14}V{bottom}" stroke="#bbb" stroke-width=".7"/>')
        parts.append(_TEXT(x, bottom + 16, "middle", "normal", label))
    middle = (at(ticks[0][0]) + at(ticks[-1][0])) / 2
    return [*parts, _TEXT(middle, bottom + 36, "middle", "normal", name)]


def alarms_panel(alarms, tests, height):
    """Draw a line per test, a dot per number of patients and images."""
    bottom = height - 56

    def at(share):
        return LEFT + WIDTH * 0.8 * share / 0.1

    parts = [
        _TEXT(LEFT, 24, "start", "bold", "Two equal heads are called different"),
        f'<rect x="{at(0)}" y="{TOP - 14}" width="{at(0.05) - at(0):.1f}" '
        f'height="{bottom - TOP + 14}" fill="#dfeee7"/>',
        *axis([(0, "0"), (0.05, "5 %"), (0.1, "10 %")], at, bottom, "of 400 pairs, at level 5 %"),
    ]
    told = "one dot: patients (30 to 374) and images of each (1, 3)"
    parts.append(_TEXT(LEFT, 44, "start", "normal", told))
    for i, test in enumerate(tests):
        y = TOP + STEP * i
        name = test.replace("macro_f1", "macro-F1").replace("auroc", "AUROC")
        parts.append(_TEXT(LEFT - 12, y + 4, "end", "normal", name))
        parts += [
            f'<circle cx="{at(row["rejected"]):.1f}" cy="{y}" r="4" fill="#0b6e4f" '
            f'fill-opacity=".6"><title>{row["n"]} patients, {row["images_per_patient"]} images each: '
            f"{row['rejected']:.1%}</title></circle>"
            for row in alarms
            if row["test"] == test
        ]
    return parts


def gains_panel(rows, rules, height):
    """Draw a line per rule and number of images, a dot per way to learn, with twice its error."""
    bottom, most = height - 56, 0.15

    def at(gain):
        return LEFT + 40 + WIDTH * 0.75 * gain / most

    ticks = [(0, "chance"), (0.05, "+5 points"), (0.1, "+10"), (0.15, "+15")]
    parts = [
        _TEXT(LEFT, 24, "start", "bold", "Ensembles of ten members that know nothing"),
        *axis(ticks, at, bottom, "accuracy above chance"),
    ]
    for i, (rule, n) in enumerate(rules):
        y = TOP + STEP * i
        parts.append(_TEXT(LEFT - 12, y + 4, "end", "normal", f"{rule}, {n} images"))
        for row in rows:
            if (row["rule"], row["n"]) == (rule, n):
                x, wide = at(row["gain"]), at(2 * row["standard_error"]) - at(0)
                colour = COLOURS[row["learned"]]
                parts.append(f'<path d="M{x - wide:.1f} {y}h{2 * wide:.1f}" stroke="{colour}"/>')
                parts.append(f'<circle cx="{x:.1f}" cy="{y}" r="4" fill="{colour}"/>')
    for i, (way, name) in enumerate(WAYS.items()):
        x = LEFT + 40 + 130 * i
        parts.append(f'<circle cx="{x}" cy="41" r="4" fill="{COLOURS[way]}"/>')
        label = name if way == "nested" else f"learned {name}"
        parts.append(_TEXT(x + 9, 45, "start", "normal", label.replace(", as the zoo does", "")))
    return parts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=4, help="cohorts per setting")
    parser.add_argument("--out", type=Path, default=None, help="folder of the JSON and the figure")
    given = parser.parse_args()
    started = time.process_time()
    rows = simulate(given.repeats)
    for row in rows:
        print(*row.values(), sep="\t")
    if given.out:
        path = given.out / "statistics.json"
        document = json.loads(path.read_text("utf-8"))
        spent = round(time.process_time() - started)
        document["noise"] = {"repeats": given.repeats, "cpu_seconds": spent, "rows": rows}
        told = json.dumps(document, indent=None).replace("}, {", "},\n{")
        path.write_text(told + "\n", encoding="utf-8")
        drawn = figure(document["alarms"]["rows"], rows)
        (given.out / "claims.svg").write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
