"""What is searched where nobody says what: small spaces, as data.

Ranges are the usual ones of each setting's field. They are small on purpose: with some dozens of
trials and inner scores from some dozens of images, a larger space finds more luck, not more skill.
"""

from __future__ import annotations

__all__ = ["AROUND", "COMMON", "HEADS", "SWITCHED_ON"]

AROUND: dict[str, float] = {"lr": 10.0, "weight_decay": 10.0}
"""Settings of a recipe that vary by this factor to either side of its own value."""

SWITCHED_ON: dict[str, str] = {
    "label_smoothing": "0:0.3",
    "focal_gamma": "0:4",
    "r_drop": "0.1:5:log",
    "patch_dropout": "0:0.5",
    "embedding_noise": "0:0.2",
    "mixup": "0.1:2:log",
}
"""Settings of a recipe that vary where it uses them."""

COMMON: dict[str, str] = {
    "hidden": "64,128,256,512",
    "attention": "64,128,256",
    "dropout": "0:0.6",
}
"""Settings of any head that has them and is not named in :data:`HEADS`."""

_STATISTICS = "mean,mean+sd,mean+sd+min+max,mean+q10+q25+q50+q75+q90"

HEADS: dict[str, dict[str, str]] = {
    "gated-mil": {**COMMON, "attention": "48,96,192", "bag_dropout": "0:0.6"},
    "mlp-improved": {**COMMON, "depth": "1:3"},
    "patch-mean": {**COMMON, "depth": "1:3"},
    "clam-sb": {**COMMON, "bag_weight": "0.5:1"},
    "clam-mb": {**COMMON, "bag_weight": "0.5:1"},
    "dsmil": {"query": "64,128,256", "dropout": "0:0.6"},
    "transmil": {"hidden": "128,256,512", "dropout": "0:0.5"},
    "dtfd": {**COMMON, "n_groups": "2,4,8"},
    "acmil": {"attention": "64,128,256", "n_branches": "1:8", "mask_share": "0:0.9"},
    "attention-pool": {"hidden": "128,256,512", "depth": "1:3", "dropout": "0:0.6"},
    "graph": {**COMMON, "depth": "1:3", "attention": "32,64,128"},
    "fusion": {"hidden": "512,1024", "bottleneck": "256,512", "dropout": "0.2:0.7"},
    "logistic": {"statistics": _STATISTICS, "inverse_penalty": "1e-4:10:log"},
    "svm": {"statistics": _STATISTICS, "penalty": "0.1:1000:log"},
    "set-kernel": {"width": "none,0.25,0.5,1,2", "penalty": "none,0.01,0.1,1,10,100,1000"},
    "fisher": {"components": "none,1,2,4,8,16", "variance": "none,0.8,0.9,1"},
    "knn": {"statistics": _STATISTICS, "n_neighbours": "1:30:log", "metric": "cosine,euclidean"},
    "extra-trees": {
        "statistics": _STATISTICS,
        "n_trees": "200,500,1000",
        "min_bags": "1:10",
        "column_share": "none,0.1,0.3",
    },
    "lightgbm": {
        "statistics": _STATISTICS,
        "rounds": "50:500:log",
        "learning_rate": "0.01:0.2:log",
        "leaves": "3:31:log",
        "min_bags": "2:20",
        "column_share": "0.05:1:log",
        "l2": "0:10",
    },
}
"""Settings that vary, by head."""
