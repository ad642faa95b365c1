"""How bags and runs show themselves: in one line, and as a notebook draws them.

What they show is text of their own, so this stands below both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from histostore.showing import html_card, html_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from zoo.bags import Bags

__all__ = ["bags_html", "bags_line", "run_html", "run_line"]


def bags_line(lengths: NDArray[np.int64], n_features: int, classes: Sequence[str]) -> str:
    """Say in one line what bags hold.

    Parameters
    ----------
    lengths
        Patches per bag, ``(bag,)``.
    n_features
        Length of an embedding.
    classes
        Names of the classes.
    """
    return (
        f"Bags({len(lengths)} images, {int(lengths.sum())} patches, {n_features} features, "
        f"classes {', '.join(classes) or 'none'})"
    )


def bags_html(bags: Bags) -> str:
    """Draw bags for a notebook."""
    lengths, store = bags.lengths, bags.source.get("store", {})
    facts = {
        "patients": len(set(bags.patient_ids)),
        "patches": int(lengths.sum()),
        "patches per image": _range(lengths) if len(bags) else None,
        "features": bags.n_features,
        "feature set": store.get("feature_set"),
        "view": bags.augmentation,
        "target": bags.target or None,
        "task": None if bags.task.kind == "classification" else bags.task.kind,
        "without a label": bags.n_unlabelled or None,
        "failed in the build": bags.n_failed or None,
    }
    rows = [
        {"class": name, "images": int((bags.labels == code).sum())}
        for code, name in enumerate(bags.classes if bags.task.one_class else ())
    ]
    return html_card("Bags", f"{len(bags):,} images", facts, [html_table(rows)])


def run_line(document: Mapping[str, Any], metric: str) -> str:
    """Say in one line what a run is, and its first metric.

    Parameters
    ----------
    document
        ``run.json``.
    metric
        Name of the metric.
    """
    told = document["metrics"]["test"][metric]
    value = "–" if told["value"] is None else f"{told['value']:.3f}"
    what = "Ensemble" if document["kind"] == "ensemble" else "Run"
    return f"<{what} {document['name']}: {_head(document)}, {metric} {value}>"


def run_html(document: Mapping[str, Any], titles: Mapping[str, str], *, path: str) -> str:
    """Draw a run or an ensemble for a notebook.

    Parameters
    ----------
    document
        ``run.json``.
    titles
        Metrics to show, in order, and what they are called.
    path
        Where the run lies.
    """
    store, split = document.get("store") or {}, document.get("split") or {}
    recipe = (document.get("recipe") or {}).get("name")
    members = [str(member["run"]) for member in document.get("members", ())]
    facts = {
        "head": _head(document),
        "recipe": recipe,
        "members": members or None,
        "feature set": None if members else store.get("feature_set"),
        "target": document.get("target"),
        "classes": document.get("classes") or None,
        "folds": f"{split.get('method')}, {split.get('n_folds')} × {split.get('repeats')}",
        "seeds": len(document["seeds"]),
        "path": path,
    }
    test = document["metrics"]["test"]
    rows = [
        {"metric": title, "test": test[name]["value"], "95 % interval": _interval(test[name])}
        | ({"over seeds, sd": test[name]["seed_sd"]} if len(document["seeds"]) > 1 else {})
        for name, title in titles.items()
    ]
    kind = "Ensemble" if members else "Run"
    return html_card(kind, str(document["name"]), facts, [html_table(rows)])


def _range(lengths: NDArray[np.int64]) -> str:
    low, high = int(lengths.min()), int(lengths.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _interval(told: Mapping[str, Any]) -> str:
    if told["low"] is None or told["high"] is None:
        return ""
    return f"{told['low']:.3f} to {told['high']:.3f}"


def _head(document: Mapping[str, Any]) -> str:
    head = document.get("head") or {}
    rule = document.get("rule")
    return f"ensemble by {rule}" if rule else str(head.get("name", ""))
