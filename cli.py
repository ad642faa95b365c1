"""The two commands, ``histostore`` and ``zoo``.

A command parses, calls one function of a library, prints. Errors of ours become one line and
exit status 1; misuse 2; images that failed 3; Ctrl-C 130. Heavy libraries are imported by the
command that needs them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

SOME_FAILED = 3
INTERRUPTED = 130


def run(group: click.Group) -> None:
    """Run a command and turn what it raises into an exit status and one line."""
    from histostore.errors import HistostoreError

    try:
        status = group.main(standalone_mode=False)
    except HistostoreError as error:
        click.echo(f"Error: {error}", err=True)
        for problem in error.problems if len(error.problems) > 1 else ():
            click.echo(f"  - {problem}", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted: what was finished is kept; run the command again.", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


def histostore_main() -> None:
    """Entry point of ``histostore``."""
    run(histostore_group)


def zoo_main() -> None:
    """Entry point of ``zoo``."""
    run(zoo_group)


# Options that several commands share -------------------------------------------------------


def _key_values(_: click.Context, __: click.Parameter, pairs: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` pairs; a value that is JSON (numbers, true, {...}) is taken as such."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"{pair!r} is not key=value")
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    return found


storage_option = click.option(
    "--storage-option",
    "storage_options",
    multiple=True,
    callback=_key_values,
    metavar="KEY=VALUE",
    help="For the storage driver, e.g. endpoint_url=http://localhost:9000; may be repeated.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
feature_set_option = click.option(
    "--feature-set", metavar="NAME", help="Needed where the store has several."
)


def _print(document: Any, text: str, *, as_json: bool) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False) if as_json else text)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Align rows under their keys; numbers to the right."""
    if not rows:
        return "(nothing)"
    cells = [list(rows[0]), *([_cell(row[key]) for key in rows[0]] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    numeric = [isinstance(value, int | float) for value in rows[0].values()]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in cells
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


# histostore --------------------------------------------------------------------------------


@click.group("histostore", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="histostore", prog_name="histostore")
def histostore_group() -> None:
    """Embed histology images once, and keep the embeddings for good."""


@histostore_group.command()
@click.argument("cohort")
@click.argument("store")
@click.option("--encoder", default="texture", show_default=True, help="See: histostore encoders.")
@click.option("--weights", metavar="PATH", help="Weights on disk, instead of a download.")
@click.option("--patch-size", default=256, show_default=True, help="Patch edge in pixels.")
@click.option("--stride", type=int, help="Distance of patches in pixels; default: their edge.")
@click.option("--mpp", type=float, help="µm per pixel of the patches; default: as the image is.")
@click.option(
    "--tissue", default="hsv", show_default=True, type=click.Choice(["hsv", "otsu", "none"])
)
@click.option("--min-tissue", default=0.1, show_default=True, help="Least tissue share of a patch.")
@click.option("--top-k", type=int, metavar="K", help="Keep the K patches with most tissue.")
@click.option(
    "--augment", default="identity", show_default=True, help="Views, e.g. identity,rot90 or d4."
)
@click.option("--stain", default="none", show_default=True, type=click.Choice(["none"]))
@click.option(
    "--dtype", default="float32", show_default=True, type=click.Choice(["float16", "float32"])
)
@click.option(
    "--precision",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Arithmetic of the encoder.",
)
@click.option(
    "--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"])
)
@click.option("--batch-size", type=int, help="Patches per call of the encoder.")
@click.option("--threads", type=int, help="Threads of the encoder; default: all cores.")
@click.option("--workers", type=int, help="Processes on this machine, one thread each.")
@click.option("--scheduler", metavar="ADDRESS", help="A running dask.distributed scheduler.")
@click.option("--shard", metavar="I/N", help="The I-th of N parts of the cohort, for job arrays.")
@click.option("--limit", type=int, metavar="N", help="The first N images only.")
@storage_option
@json_option
def build(cohort: str, store: str, shard: str | None, limit: int | None, as_json: bool, storage_options: dict[str, Any], **given: Any) -> int:  # fmt: skip
    """Embed what STORE lacks of COHORT (a CSV or Parquet table of images).

    Nothing is computed twice: after a crash, or for more images, run it again.
    """
    from histostore.build import build as build_store
    from histostore.cohort import Cohort

    images = Cohort.read(cohort, storage_options=storage_options)
    if shard:
        images = images.shard(*_shard(shard))
    if limit is not None:
        images = images.limit(limit)
    where = {"workers": given.pop("workers"), "scheduler": given.pop("scheduler")}
    with _build_progress() as progress:
        report = build_store(
            images,
            store,
            _build_options(**given),
            storage_options=storage_options,
            progress=progress,
            **where,
        )
    _print(report.to_json(), _say_built(report), as_json=as_json)
    return SOME_FAILED if report.failed else 0


def _build_options(
    *,
    encoder: str,
    weights: str | None,
    patch_size: int,
    stride: int | None,
    mpp: float | None,
    tissue: str,
    min_tissue: float,
    top_k: int | None,
    augment: str,
    stain: str,
    dtype: str,
    **running: Any,
) -> Any:
    """Turn the options of ``build`` into values; ``running`` is device, threads and the like."""
    from histostore.build import BuildOptions, EncoderOptions
    from histostore.grid import PatchGrid
    from histostore.images.tissue import TissueFilter
    from histostore.views import parse_views

    del stain  # only "none" is there yet
    return BuildOptions(
        encoder=EncoderOptions(name=encoder, weights=weights, **running),
        grid=PatchGrid(patch_size=patch_size, stride=stride, mpp=mpp),
        tissue=TissueFilter(method=tissue, min_tissue=min_tissue, top_k=top_k),
        views=parse_views(augment),
        dtype=dtype,
    )


def _shard(text: str) -> tuple[int, int]:
    """Read ``I/N``."""
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise click.BadParameter(f"{text!r} is not I/N with 1 <= I <= N", param_hint="--shard")
    return int(part), int(parts)


def _say_built(report: Any) -> str:
    rate = report.n_patches / report.seconds if report.seconds else 0.0
    lines = [
        f"{report.feature_set}: {report.n_embedded:,} images embedded, {report.n_done:,} were there"
        f" ({report.n_patches:,} patches, {rate:,.0f}/s, {report.seconds:.1f} s)"
    ]
    lines += [f"changed since it was embedded, not read again: {name}" for name in report.changed]
    if report.failed:
        lines.append(f"{len(report.failed):,} failed; the next build tries them again:")
        lines += [f"  {failure.image_id}: {failure.reason}" for failure in report.failed]
    return "\n".join(lines)


def _build_progress() -> Any:
    """Show images, patches per second and time left, where a person is looking."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    @contextmanager
    def show() -> Iterator[Callable[[Any], None]]:
        columns = (
            TextColumn("embedding"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("images · {task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("·"),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("build", total=None, rate="")

            def update(now: Any) -> None:
                elapsed = bar.tasks[0].elapsed or 1.0
                rate = f"{now.n_patches / elapsed:,.0f} patches/s"
                failed = f" · {now.n_failed} failed" if now.n_failed else ""
                bar.update(task, total=now.n_total, completed=now.n_images, rate=rate + failed)

            yield update

    return show()


@histostore_group.command()
@click.argument("store")
@storage_option
@json_option
def info(store: str, storage_options: dict[str, Any], as_json: bool) -> None:
    """Say what STORE holds: feature sets, images, patches, what failed."""
    from histostore.store import open_store
    from histostore.store.describe import describe

    found = [
        describe(features)
        for features in open_store(store, storage_options=storage_options).values()
    ]
    columns = (
        "name",
        "encoder",
        "n_features",
        "dtype",
        "n_images",
        "n_patches",
        "n_fragments",
        "n_failed",
    )
    text = _table([{key: row[key] for key in columns} for row in found])
    _print({"url": store, "feature_sets": found}, text, as_json=as_json)


@histostore_group.command()
@click.argument("store")
@feature_set_option
@storage_option
@json_option
def ls(store: str, feature_set: str | None, storage_options: dict[str, Any], as_json: bool) -> None:
    """List the images in a feature set of STORE."""
    from histostore.store import open_store
    from histostore.store.describe import list_images

    rows = list_images(open_store(store, storage_options).feature_set(feature_set))
    _print(rows, _table(rows), as_json=as_json)


@histostore_group.command()
@json_option
def encoders(as_json: bool) -> None:
    """List the encoders there are."""
    from dataclasses import asdict

    from histostore.encoders.catalog import known_encoders

    rows = [asdict(card) for card in known_encoders()]
    columns = ("name", "n_features", "input_px", "licence", "summary")
    shown = [{key: "" if row[key] is None else row[key] for key in columns} for row in rows]
    _print(rows, _table(shown), as_json=as_json)


@histostore_group.command()
@click.argument("layout", type=click.Choice(["folder", "breakhis", "bach", "lymphoma"]))
@click.argument("folder", type=click.Path())
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False), help="Table to write."
)
@json_option
def cohort(layout: str, folder: str, output: str, as_json: bool) -> None:
    """Make a cohort table from FOLDER, laid out as LAYOUT says."""
    from histostore import datasets

    frame = getattr(datasets, layout)(folder)
    datasets.write_cohort(frame, output)
    counts = {str(label): int(n) for label, n in frame["label"].value_counts().items()}
    text = f"{output}: {len(frame):,} images; " + ", ".join(f"{k} {v:,}" for k, v in counts.items())
    _print({"path": output, "n_images": len(frame), "labels": counts}, text, as_json=as_json)


# zoo ---------------------------------------------------------------------------------------


@click.group("zoo", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="histostore", prog_name="zoo")
def zoo_group() -> None:
    """Train heads on stored embeddings; compare, ensemble and report them."""


@zoo_group.command()
@click.argument("store")
@click.argument("cohort")
@click.option("--head", required=True, metavar="NAME", help="See: zoo heads.")
@click.option(
    "--recipe", default="default", show_default=True, metavar="NAME", help="See: zoo recipes."
)
@feature_set_option
@click.option("--target", default="label", show_default=True, help="Column of COHORT to predict.")
@click.option(
    "--augmentation", default="identity", show_default=True, help="Stored view to train on."
)
@click.option("--folds", default="5", show_default=True, metavar="K|leave-one-patient-out")
@click.option(
    "--split",
    "split_column",
    metavar="COLUMN",
    help="Column with train, validation, test; instead of --folds.",
)
@click.option("--repeats", default=1, show_default=True, help="Deal the folds anew, this often.")
@click.option("--split-seed", default=0, show_default=True, help="Decides the folds.")
@click.option("--seeds", default=1, show_default=True, help="Fits per fold, seeds 0, 1, …")
@click.option(
    "--set",
    "settings",
    multiple=True,
    callback=_key_values,
    metavar="KEY=VALUE",
    help="A setting of the head or the recipe; may be repeated.",
)
@click.option(
    "--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"])
)
@click.option("--workers", type=int, help="Processes to fit in; default: what pays.")
@click.option(
    "-o", "--output", required=True, type=click.Path(file_okay=False), help="Directory for the run."
)
@storage_option
@json_option
def fit(store: str, cohort: str, head: str, recipe: str, feature_set: str | None, target: str, augmentation: str, settings: dict[str, Any], seeds: int, device: str, workers: int | None, output: str, storage_options: dict[str, Any], as_json: bool, **dealing: Any) -> None:  # fmt: skip
    """Fit a head to the images of COHORT in STORE, over all folds and seeds."""
    from histostore.cohort import Cohort
    from histostore.store import open_store
    from zoo.bags import Bags
    from zoo.configure import configure
    from zoo.fit import Execution, fit_run, make_split

    spec, chosen = configure(head, recipe, settings)
    features = open_store(store, storage_options=storage_options).feature_set(feature_set)
    images = Cohort.read(_absolute(cohort), storage_options=storage_options, check_files=False)
    bags = Bags(features, images, target, augmentation)
    if bags.n_unlabelled:
        click.echo(f"{bags.n_unlabelled:,} images without {target!r} are left out", err=True)
    split = make_split(bags, images, **dealing)
    with _steps("fitting") as progress:
        run = fit_run(
            bags,
            spec,
            split=split,
            recipe=chosen,
            seeds=seeds,
            out=output,
            store_url=_absolute(store),
            execution=Execution(device=device, workers=workers, progress=progress),
        )
    _print(run.document, _say_run(run), as_json=as_json)


@zoo_group.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@click.option("--rule", default="mean", show_default=True, type=click.Choice(["mean"]))
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False))
@json_option
def ensemble(runs: tuple[str, ...], rule: str, output: str, as_json: bool) -> None:
    """Combine the out-of-fold predictions of RUNS into one."""
    from zoo.ensembles import ensemble as combine

    made = combine(runs, rule=rule, out=output)
    _print(made.document, _say_run(made), as_json=as_json)


@zoo_group.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@json_option
def compare(runs: tuple[str, ...], as_json: bool) -> None:
    """Rank RUNS, with intervals over patients and differences to the best."""
    from zoo.comparison import compare as compare_runs

    comparison = compare_runs(runs)
    _print(comparison.to_json(), comparison.to_text(), as_json=as_json)


@zoo_group.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False))
@click.option("--cohort", help="The table, where it has moved since.")
@storage_option
@json_option
def report(runs: tuple[str, ...], output: str, cohort: str | None, storage_options: dict[str, Any], as_json: bool) -> None:  # fmt: skip
    """Write one page about RUNS, as HTML, Markdown and JSON."""
    from zoo.report import write_report

    page = write_report(runs, output, cohort=cohort, storage_options=storage_options)
    _print({"path": str(page)}, str(page), as_json=as_json)


@zoo_group.command()
@json_option
def heads(as_json: bool) -> None:
    """List the heads and what each can be told."""
    from zoo.heads.catalog import known_heads

    cards = known_heads()
    rows = [{"name": card.name, "summary": card.summary, "source": card.source} for card in cards]
    if not as_json:
        click.echo(_table(rows))
        return
    document = [{**row, "settings": card.settings()} for row, card in zip(rows, cards, strict=True)]
    _print(document, "", as_json=True)


@zoo_group.command()
@json_option
def recipes(as_json: bool) -> None:
    """List the recipes: named ways of training."""
    from zoo.recipes import known_recipes

    documents = [{**made.to_json(), "summary": summary} for made, summary in known_recipes()]
    shown = [{"name": row["name"], "summary": row["summary"]} for row in documents]
    _print(documents, _table(shown), as_json=as_json)


@zoo_group.command()
@click.option("-o", "--output", default="demo", show_default=True, type=click.Path(file_okay=False))
@json_option
def demo(output: str, as_json: bool) -> None:
    """Go the whole way on synthetic images: store, heads, ensemble, report."""
    from zoo.demo import run_demo

    done = run_demo(output, say=lambda line: click.echo(line, err=True))
    _print(done.to_json(), done.to_text(), as_json=as_json)


def _absolute(url: str) -> str:
    """Give a local path from the root, so that what is recorded holds from anywhere."""
    from pathlib import Path

    return url if "://" in url else str(Path(url).resolve())


def _say_run(run: Any) -> str:
    test = run.document["metrics"]["test"]
    lines = [
        f"{run.path}: {run.name}, {run.document['cohort']['n_images']:,} images"
        f", {len(run.classes)} classes"
    ]
    for key in ("macro_f1", "accuracy", "auroc"):
        score = test[key]
        if score["value"] is None:
            continue
        interval = f"[{score['low']:.3f}, {score['high']:.3f}]"
        spread = f"  seeds ± {score['seed_sd']:.3f}" if score.get("seed_sd") else ""
        lines.append(f"  {key:<9} {score['value']:.3f} {interval}{spread}")
    return "\n".join(lines)


def _steps(what: str) -> Any:
    """Show how many of a number of steps are done, where a person is looking."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    @contextmanager
    def show() -> Iterator[Callable[[int, int, str], None]]:
        columns = (
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[message]}"),
        )
        console = Console(stderr=True)
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task(what, total=None, message="")
            yield lambda done, total, message: bar.update(
                task, completed=done, total=total, message=message
            )

    return show()


if __name__ == "__main__":
    histostore_main()
