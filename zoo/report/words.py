"""Short phrases about runs and splits, shared by the page and the Markdown file."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from zoo.report.text import bracket, count, duration, number, p_value, signed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zoo.report.model import Difference, Facts, Interval, Learning, ReportData, RunView
    from zoo.report.sections import ClassCurves, Pair, Range

__all__ = [
    "board_metrics",
    "curve_rows",
    "difference",
    "image_words",
    "learning_rows",
    "member_name",
    "metric_order",
    "pair_table",
    "percent",
    "run_words",
    "score",
    "seed_sd",
    "seed_spread",
    "seed_words",
    "spec_rows",
    "split_words",
    "unit",
    "views_words",
    "wrapped",
]


def difference(told: Difference) -> tuple[str, str]:
    """Write a difference with its p-value, and its interval."""
    p = f"p {p_value(told.p)}" if told.p < 0.001 else f"p = {number(told.p)}"
    return f"{signed(told.value)} ({p})", f"[{signed(told.low)}, {signed(told.high)}]"


def image_words(facts: Facts) -> str:
    """Say how many images of how many patients there are, and how many were left out."""
    words = count(facts.n_images, "labelled image")
    words += f" of {count(facts.n_patients, 'patient')}" if facts.has_patients else ""
    if facts.n_unlabelled:
        words += f"; {count(facts.n_unlabelled, 'image')} without a label left out"
    if facts.n_test != facts.n_images:
        words += f"; {facts.n_test} of them judged"
    return words


def percent(part: int, whole: int) -> str:
    """Write a share in whole per cent.

    Examples
    --------
    >>> percent(1, 3), percent(0, 0)
    ('33 %', '–')
    """
    return f"{100 * part / whole:.0f} %" if whole else "–"


def score(interval: Interval | Range | None, digits: int = 3) -> str:
    """Write a value with its interval on one line."""
    if interval is None:
        return "–"
    return f"{number(interval.value, digits)} {bracket(interval, digits)}".rstrip()


def split_words(split: Mapping[str, Any]) -> str:
    """Describe a split.

    Examples
    --------
    >>> split_words({"method": "k-fold", "n_folds": 5, "repeats": 2, "seed": 0, "digest": "ab" * 32})
    'k-fold, 5 folds, 2 repeats, seed 0, digest abababababab'
    """
    if not split:
        return "not recorded"
    words = [str(split.get("method", "unknown method"))]
    if split.get("n_folds"):
        words.append(count(int(split["n_folds"]), "fold"))
    if int(split.get("repeats") or 1) > 1:
        words.append(count(int(split["repeats"]), "repeat"))
    if split.get("seed") is not None:
        words.append(f"seed {split['seed']}")
    if split.get("digest"):
        words.append(f"digest {str(split['digest'])[:12]}")
    return ", ".join(words)


def seed_words(seeds: Sequence[int]) -> str:
    """List seeds, briefly where they are a range.

    Examples
    --------
    >>> seed_words((0, 1, 2, 3)), seed_words((0, 7)), seed_words(())
    ('4 (0 to 3)', '2 (0, 7)', 'none recorded')
    """
    if not seeds:
        return "none recorded"
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{len(seeds)} ({seeds[0]} to {seeds[-1]})"
    return f"{len(seeds)} ({', '.join(map(str, seeds))})"


def run_words(run: RunView) -> str:
    """Describe a run in one line."""
    words = [f"rule {rule}"] if run.is_ensemble and (rule := run.settings.get("rule")) else []
    if run.is_ensemble:
        words.append(count(len(run.members), "member"))
    else:
        words += [f"Head {run.head}"] if run.head else []
        words += [f"recipe {run.recipe['name']}"] if run.recipe.get("name") else []
        words += [count(len(run.seeds), "seed")] if run.seeds else []
        words += [count(run.learning.n_fits, "fit")] if run.learning.n_fits else []
    words += [run.feature_set] if run.feature_set else []
    words.append(duration(run.seconds))
    return " · ".join(words)


def metric_order(run: RunView) -> tuple[str, ...]:
    """List the metrics of a run, as it has them."""
    return tuple({**run.test, **run.validation})


def board_metrics(data: ReportData) -> tuple[str, ...]:
    """List the metrics beside the one that ranks, for the leaderboard."""
    usual = ("macro_f1", "accuracy", "auroc")
    known = data.runs[0].test
    names = usual if data.facts.task == "classification" else tuple(known)[:3]
    return tuple(name for name in names if name != data.facts.metric and name in known)


def learning_rows(learning: Learning, most: int = 12) -> tuple[tuple[int, str, str, str], ...]:
    """Tabulate learning curves at evenly spaced epochs: epoch, training, validation, gap."""
    train, validation, gap = learning.train, learning.validation, learning.gap
    if train is None or validation is None or gap is None:
        return ()
    step = -(-len(train.epoch) // most)
    told = [
        {e: (m, s) for e, m, s in zip(curve.epoch, curve.mean, curve.sd, strict=True)}
        for curve in (train, validation, gap)
    ]
    chosen = sorted({*train.epoch[::step], train.epoch[-1]})

    def cell(curve: Mapping[int, tuple[float, float]], epoch: int, write: Any) -> str:
        found = curve.get(epoch)
        return "–" if found is None else f"{write(found[0])} ± {number(found[1])}"

    return tuple(
        (e, cell(told[0], e, number), cell(told[1], e, number), cell(told[2], e, signed))
        for e in chosen
    )


def views_words(run: RunView) -> str:
    """Say which views were trained on and tested."""
    train, test = (", ".join(views) for views in (run.train_views, run.test_views))
    return train if train == test else f"training {train or '–'}; test {test or '–'}"


def curve_rows(
    curves: Sequence[ClassCurves], kind: str
) -> tuple[tuple[float, tuple[float, ...]], ...]:
    """Read curves at eleven places: the true positive rate, or the precision, of each class."""
    rows = []
    for tenth in range(11):
        at, found = tenth / 10, []
        for curve in curves:
            line = curve.roc if kind == "roc" else curve.pr
            reached = [y for x, y in zip(line.x, line.y, strict=True) if x <= at + 1e-9]
            ahead = [y for x, y in zip(line.x, line.y, strict=True) if x >= at - 1e-9]
            # As the curves are drawn: the highest step reached, or the next recall's precision.
            found.append(
                (reached[-1] if reached else 0.0) if kind == "roc" else (ahead or [0.0])[0]
            )
        rows.append((at, tuple(found)))
    return tuple(rows)


def pair_table(
    data: ReportData,
) -> tuple[tuple[RunView, ...], tuple[tuple[Pair | None, ...], ...]]:
    """Give runs, and for each the pairs in which it is first; None on and below the diagonal."""
    numbers = sorted({n for pair in data.pairs for n in (pair.first, pair.second)})
    known = {(pair.first, pair.second): pair for pair in data.pairs}
    rows = tuple(tuple(known.get((a, b)) for b in numbers) for a in numbers)
    return tuple(data.runs[n - 1] for n in numbers), rows


def seed_sd(run: RunView, metric: str = "macro_f1") -> str:
    """Write the spread of a metric over seeds; a dash where there is one seed only."""
    interval = run.test.get(metric)
    if interval is None or len(interval.seeds) < 2:
        return "–"
    return number(interval.seed_sd)


def seed_spread(interval: Interval | None) -> str:
    """Write mean ± standard deviation over seeds; a dash where there is one seed only."""
    if interval is None or len(interval.seeds) < 2:
        return "–"
    return f"{number(interval.seed_mean)} ± {number(interval.seed_sd)}"


def member_name(member: Mapping[str, Any]) -> str:
    """Name a member of an ensemble."""
    return str(member.get("name") or member.get("run") or member.get("path") or "unnamed")


def unit(facts: Facts) -> str:
    """Name what intervals are drawn over."""
    return "patients" if facts.has_patients else "images"


def wrapped(command: str, most: int = 88) -> str:
    r"""Break a command line before options, so that it still is one command.

    Examples
    --------
    >>> print(wrapped("zoo report a b --set x=1 -o 'my report'", most=24))
    zoo report a b \
        --set x=1 \
        -o 'my report'
    """
    groups: list[str] = []
    for word in shlex.split(command):
        quoted = shlex.quote(word)
        if groups and not word.startswith("-"):
            groups[-1] += f" {quoted}"
        else:
            groups.append(quoted)
    lines = groups[:1]
    for group in groups[1:]:
        if len(lines[-1]) + len(group) + 3 <= most:
            lines[-1] += f" {group}"
        else:
            lines.append(f"    {group}")
    return " \\\n".join(lines)


def spec_rows(spec: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Describe how a feature set was made, in the order of making it.

    Examples
    --------
    >>> spec_rows({"grid": {"patch_size": 224, "stride": 112, "mpp": None}})
    (('Patches', '224 px, every 112 px'),)
    """
    encoder, grid, tissue = (spec.get(key) or {} for key in ("encoder", "grid", "tissue"))
    rows = []
    if grid.get("patch_size"):
        size, stride = grid["patch_size"], grid.get("stride")
        words = f"{size} px" + (f", every {stride} px" if stride and stride != size else "")
        rows.append(("Patches", words + (f", at {grid['mpp']:g} µm/px" if grid.get("mpp") else "")))
    if tissue.get("method"):
        words = str(tissue["method"])
        if words != "none":
            words += f", at least {100 * float(tissue.get('min_tissue') or 0):g} % tissue"
        words += f", best {tissue['top_k']}" if tissue.get("top_k") else ""
        rows.append(("Tissue filter", words))
    stain = spec.get("stain")
    if stain:
        method = stain.get("method") if isinstance(stain, dict) else stain
        rows.append(("Stain normalisation", str(method)))
    if spec.get("quality"):
        limits = (f"{key.replace('_', ' ')} {value:g}" for key, value in spec["quality"].items())
        rows.append(("Quality filter", ", ".join(limits)))
    if encoder.get("name"):
        rows.append(("Encoder", f"{encoder['name']}, {encoder.get('precision', '')}".rstrip(", ")))
        rows.append(("Weights", str(encoder.get("weights", "none"))))
    if spec.get("n_features"):
        rows.append(("Features", f"{spec['n_features']}, stored as {spec.get('dtype', '')}"))
    return tuple(rows)
