"""The two commands as tests call them, in this process or as processes of their own."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from PIL import Image

import cli

ROOT = Path(__file__).resolve().parents[1]
BUILD = ("--patch-size", "32", "--tissue", "none", "--threads", "1")


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        """Standard output as strict JSON: no NaN, nothing beside the document."""
        return json.loads(self.out, parse_constant=refuse)


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def call(program, *args, **options):
    """Run a command in this process; what it raises and does not turn into a message, is raised."""
    group = {"histostore": cli.histostore_group, "zoo": cli.zoo_group}[program]
    result = CliRunner().invoke(group, [str(arg) for arg in args], **options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


def build(table, store, *options):
    """Build a store, of small patches without looking for tissue."""
    return call("histostore", "build", table, store, *BUILD, *options)


def fit(store, table, out, *options):
    """Fit logistic regression, in two folds where the options do not say."""
    quick = () if "--folds" in options else ("--folds", 2)
    words = ("zoo", "fit", store, table, "--head", "logistic", "-o", out, "--workers", 1)
    return call(*words, *quick, *options)


def command(program, *args):
    """Give the words that start a command as a process of its own."""
    code = f"import cli; cli.{program}_main()"
    return [sys.executable, "-c", code, *map(str, args)]


def start(program, *args, **options):
    """Start a command as a process of its own."""
    return begin(command(program, *args), **options)


def begin(words, **options):
    """Start a process whose output can be read."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    return subprocess.Popen(words, **pipes | options)


def end(process):
    """Wait for a process."""
    out, err = process.communicate(timeout=120)
    return Done(process.returncode, out, err)


def picture(seed, *, height=64, width=96, colour=(205, 130, 190)):
    """Draw noise around a colour."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(colour, 25, (height, width, 3)), 0, 255).astype(np.uint8)


def encoded(suffix):
    """Give the bytes of a picture's file."""
    file = BytesIO()
    Image.fromarray(picture(0)).save(file, format=suffix)
    return file.getvalue()


def make_cohort(folder, n=12, classes=("benign", "malignant"), prefix="i", **columns):
    """Write images whose colour tells the class, and their table; give its path."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(n):
        label = number % len(classes)
        path = folder / "images" / f"{number}.png"
        Image.fromarray(picture(number, colour=(205, 130 - 50 * label, 190))).save(path)
        rows.append({"image_id": f"{prefix}{number}", "path": f"images/{number}.png"})
        rows[-1]["label"] = classes[label]
        rows[-1] |= {name: values[number] for name, values in columns.items()}
    return write_table(folder / "cohort.csv", rows)


def write_table(path, rows):
    """Write a cohort table."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
