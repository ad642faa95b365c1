"""How to make the same numbers again: commands, digests, versions."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from zoo.recipes import known_recipes
from zoo.split import VALIDATION_SHARE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zoo.report.sections import Experiment
    from zoo.run import Run

__all__ = ["commands", "digests", "versions"]


def commands(
    runs: Sequence[Run], out_dir: str, *, metric: str | None = None, external: Sequence[str] = ()
) -> tuple[str, ...]:
    """Write the commands that lead to this report, each once, in the order to run them."""
    documents = [run.document for run in runs]
    lines = [_build(d) for d in documents if d.get("store") and d.get("cohort")]
    lines += [_fit(run) for run in runs if not run.is_ensemble]
    lines += [_ensemble(run) for run in runs if run.is_ensemble]
    options = ["--metric", metric] if metric else []
    options += [word for path in external for word in ("--external", path)]
    paths = [str(run.path) for run in runs]
    lines.append(_join(["zoo", "report", *paths, *options, "-o", out_dir]))
    return tuple(dict.fromkeys(line for line in lines if line))


def digests(
    runs: Sequence[Run], experiment: Experiment | None = None
) -> tuple[tuple[str, str], ...]:
    """List what identifies the inputs, each once."""
    found: dict[tuple[str, str], None] = {}
    if experiment is not None:
        found["experiment", experiment.digest] = None
    for run in runs:
        document = run.document
        store = document.get("store") or {}
        cohort, split = document.get("cohort") or {}, document.get("split") or {}
        name = store.get("feature_set", "")
        for what, value in (
            ("cohort", cohort.get("digest")),
            ("split", split.get("digest")),
            (f"store snapshot of {name}", store.get("snapshot")),
        ):
            if value:
                found[what, str(value)] = None
        for member in document.get("members") or ():
            name = member.get("name") or member.get("run") or member.get("path")
            if member.get("digest"):
                found[f"member {name}", str(member["digest"])] = None
    return tuple(found)


def versions(runs: Sequence[Run]) -> tuple[tuple[str, str], ...]:
    """List the software, with every version that the runs were made with."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, version in (run.document.get("versions") or {}).items():
            found.setdefault(str(name), {})[str(version)] = None
    return tuple((name, ", ".join(found[name])) for name in sorted(found, key=str.casefold))


def _build(document: Mapping[str, Any]) -> str:
    store, cohort = document["store"], document["cohort"]
    spec = store.get("spec") or {}
    encoder, grid, tissue = (spec.get(key) or {} for key in ("encoder", "grid", "tissue"))
    if not encoder.get("name"):
        return ""
    words = ["histostore", "build", cohort.get("url", ""), store.get("url", "")]
    words += ["--encoder", encoder["name"]]
    for option, value in (
        ("--patch-size", grid.get("patch_size")),
        ("--stride", grid.get("stride")),
        ("--mpp", grid.get("mpp")),
        ("--tissue", tissue.get("method")),
        ("--min-tissue", tissue.get("min_tissue")),
        ("--top-k", tissue.get("top_k")),
        *_stain_options(spec.get("stain"), store),
        ("--min-sharpness", (spec.get("quality") or {}).get("min_sharpness")),
        ("--min-dark-share", (spec.get("quality") or {}).get("min_dark_share")),
        ("--dtype", spec.get("dtype")),
        ("--augment", _views(document)),
    ):
        if value is not None:
            words += [option, str(value)]
    return _join(words)


def _views(document: Mapping[str, Any]) -> str | None:
    """List every view that a run needs, each once; None where nothing is known of views."""
    own = [document["augmentation"]] if document.get("augmentation") else []
    more = [*document.get("train_views", ()), *document.get("test_views", ())]
    return ",".join(dict.fromkeys([*own, *more])) or None


def _stain_options(
    stain: str | Mapping[str, Any] | None, store: Mapping[str, Any]
) -> tuple[tuple[str, str | None], ...]:
    """Take the target of a normalised feature set out of the store, where it stands."""
    if not isinstance(stain, dict):
        return (("--stain", str(stain) if stain else None),)
    place = "/".join((str(store.get("url", "")).rstrip("/"), str(store.get("feature_set", ""))))
    return (("--stain", str(stain.get("method"))), ("--stain-from", place))


def _fit(run: Run) -> str:
    document = run.document
    if "trained_on" in document:
        return _finetune(run)
    store, cohort = document.get("store") or {}, document.get("cohort") or {}
    head, recipe = document.get("head") or {}, document.get("recipe") or {}
    split = document.get("split") or {}
    tuning = document.get("tuning") or {}
    words = ["zoo", "tune" if tuning else "fit", store.get("url", ""), cohort.get("url", "")]
    words += ["--head", head.get("name", "")]
    if recipe.get("name"):
        words += ["--recipe", recipe["name"]]
    words += ["--feature-set", store.get("feature_set", "")]
    words += ["--target", document.get("target", ""), *_task_options(document)]
    words += _split_options(split)
    if document.get("augmentation") not in {None, "identity"}:
        words += ["--augmentation", document["augmentation"]]
    for option, key in (("--train-views", "train_views"), ("--test-views", "test_views")):
        if document.get(key):
            words += [option, ",".join(document[key])]
    words += ["--seeds", str(len(document.get("seeds") or ()))]
    settings = head.get("settings") or {}
    varied = {key.partition(".")[2] for key in tuning.get("space") or {}}
    # What was searched has no value of its own: trial 0 takes the defaults.
    words += _settings({k: v for k, v in settings.items() if k not in varied}, recipe)
    return _join([*words, *_tuning_options(tuning), "-o", str(run.path)])


def _finetune(run: Run) -> str:
    """Write how a network was trained on pixels."""
    from zoo.finetune.spelling import network_options

    document = run.document
    words = ["zoo", "finetune", (document.get("cohort") or {}).get("url", "")]
    words += [*network_options(document), "--target", document.get("target", "")]
    words += _split_options(document.get("split") or {})
    words += ["--seeds", str(len(document.get("seeds") or ()))]
    return _join([*words, "-o", str(run.path)])


def _task_options(document: Mapping[str, Any]) -> list[str]:
    """Write what says that other things than classes are learned."""
    task = document.get("task") or {}
    if task.get("kind") in {None, "classification"}:
        return []
    words = ["--task", str(task["kind"])]
    if task["kind"] == "ordinal":
        words += ["--levels", ",".join(map(str, document.get("classes") or ()))]
    if task.get("loss"):
        words += ["--loss", str(task["loss"])]
    if task.get("loss") == "hazards":
        words += ["--intervals", str(task.get("intervals"))]
    return words


def _tuning_options(tuning: Mapping[str, Any]) -> list[str]:
    """Write budget and search space."""
    words: list[str] = []
    for option in ("trials", "timeout", "inner_folds", "metric"):
        if tuning.get(option):
            words += [f"--{option.replace('_', '-')}", f"{tuning[option]}"]
    words += ["--prune"] if tuning.get("prune") else []
    words += ["--search-seed", str(tuning["seed"])] if tuning.get("seed") else []
    for name, part in (tuning.get("space") or {}).items():
        words += ["--space", f"{name}={part}"]
    return words


def _settings(head: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[str]:
    """Write ``--set`` options; a key that head and recipe share says whose it is."""
    changed = _changed(recipe)
    words: list[str] = []
    for owner, mine, others in (("head", head, recipe), ("recipe", changed, head)):
        for key, value in mine.items():
            name = f"{owner}.{key}" if key in others else key
            words += ["--set", f"{name}={_value(value)}"]
    return words


def _value(value: Any) -> str:
    """Write a value as JSON, but a text as it is, unless it would be taken for JSON."""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    try:
        json.loads(value)
    except json.JSONDecodeError:
        return value
    return json.dumps(value, ensure_ascii=False)


def _changed(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the settings of a recipe that differ from those that its name stands for."""
    presets = {preset.name: preset.to_json() for preset, _ in known_recipes()}
    plain = presets.get(str(recorded.get("name")), {})
    missing = object()
    return {
        key: value
        for key, value in recorded.items()
        if plain.get(key, missing) != value and key != "name"
    }


def _split_options(split: Mapping[str, Any]) -> list[str]:
    method = str(split.get("method", ""))
    if "leave" in method:
        return ["--folds", "leave-one-patient-out"]
    if method == "column":
        return ["--split", str(split.get("column") or "COLUMN")]
    options = ["--folds", str(split.get("n_folds", ""))]
    if split.get("seed"):
        options += ["--split-seed", str(split["seed"])]
    share = split.get("validation_share", VALIDATION_SHARE)
    if share != VALIDATION_SHARE:
        options += ["--validation-share", f"{share:g}"]
    if int(split.get("repeats") or 1) > 1:
        options += ["--repeats", str(split["repeats"])]
    return options


def _ensemble(run: Run) -> str:
    document = run.document
    members = [str(path) for path in run.member_paths()]
    rule = document.get("rule") or (document.get("head") or {}).get("settings", {}).get("rule")
    options = ["--rule", str(rule)] if rule else []
    options += ["--calibrate", str(document["calibrate"])] if document.get("calibrate") else []
    return _join(["zoo", "ensemble", *members, *options, "-o", str(run.path)])


def _join(words: Sequence[object]) -> str:
    return shlex.join([str(word) for word in words])
