"""The two commands, ``histostore`` and ``zoo``.

A command parses, calls one function of a library, prints: results to standard output, progress
and notes to standard error. Errors of ours become one line and exit status 1; misuse 2; images
that failed 3; Ctrl-C 130. Heavy libraries are imported by the command that needs them, so that
``--help`` answers at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from difflib import get_close_matches
from functools import partial, reduce, wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from histostore.errors import HistostoreError, MissingExtra, refusal
from histostore.progress import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

SOME_FAILED = 3
INTERRUPTED = 130
COMMANDLINE = click.core.ParameterSource.COMMANDLINE

LIBRARIES_OF_ZOO = ("filelock", "jinja2", "lightgbm", "lion_pytorch", "markupsafe", "matplotlib", "safetensors", "sklearn", "threadpoolctl", "torch")  # fmt: skip


class Commands(click.Group):
    """A group that turns what its commands raise into an exit status and one line."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command and exit."""
        try:
            status = super().main(*args, **{**kwargs, "standalone_mode": False})
        except HistostoreError as error:
            _complain(str(error), [text for text in error.problems if text not in str(error)])
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            click.echo("Interrupted: what was finished is kept; run the same again.", err=True)
            sys.exit(INTERRUPTED)
        except ModuleNotFoundError as error:
            library = str(error.name).partition(".")[0]
            if library not in LIBRARIES_OF_ZOO:
                raise
            _complain(str(MissingExtra.named(library, extra="zoo")))
        except (OSError, MemoryError) as error:
            _complain(refusal(error))
        sys.exit(status if isinstance(status, int) else 0)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; where there is none, say which there are."""
        name, there = args[0], self.list_commands(ctx)
        if name not in there and not name.startswith("-"):
            near = get_close_matches(name, there, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(there)}"
            raise click.UsageError(f"No such command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


def _complain(message: str, problems: Sequence[str] = ()) -> None:
    click.echo("\n  - ".join([f"Error: {message}", *problems]), err=True)
    sys.exit(1)


def _start(group: click.Group) -> None:
    """Run a group as a process of its own."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # a closed one
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    # Batch systems end a job by SIGTERM first: that is as good as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        group()
    finally:
        # What is finished is being written; whoever asks again, will not wait for it.
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))


# What several commands share ---------------------------------------------------------------


def _key_values(_: click.Context, __: click.Parameter, pairs: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` pairs; a value that is JSON (numbers, true, {...}) is taken as such."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"{pair!r} is not key=value")
        if key in found:
            raise click.BadParameter(f"{key} is given twice")
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    return found


def _names(_: click.Context, __: click.Parameter, text: str | None) -> tuple[str, ...]:
    """Read ``NAME,NAME``, if any."""
    return tuple(name.strip() for name in text.split(",")) if text else ()


def _absolute(_: click.Context, __: click.Parameter, url: str | None) -> str | None:
    """Give a local path, if any, from the root, so that what is recorded holds from anywhere."""
    if url == "":  # as of a shell's variable that is not set
        raise click.BadParameter("is empty")
    return url if url is None or "://" in url else str(Path(url).expanduser().absolute())


def _completing(where: str) -> Callable[..., list[str]]:
    """Complete names of ``module:TABLE``, or of what ``module:function`` opens at STORE."""

    def complete(ctx: click.Context, _: click.Parameter, begun: str) -> list[str]:
        module, attribute = where.split(":")
        try:
            names = getattr(import_module(module), attribute)
            # The option's value is still to come: click has not told arguments apart yet.
            given = zip((p.name for p in ctx.command.params if p.nargs == 1 and isinstance(p, click.Argument)), ctx.args, strict=False)  # fmt: skip
            found = names(dict(given)["store"]) if callable(names) else names
        except (KeyError, ImportError, OSError, ValueError):  # a shell is told nothing, then
            return []
        return [name for name in found if name.startswith(begun) and not name.endswith(":NAME")]

    return complete


HELP = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100}
cohort_argument = click.argument("cohort", callback=_absolute)
store_argument = click.argument("store", callback=_absolute)
run_argument = click.argument("run", type=click.Path())
runs_argument = click.argument("runs", nargs=-1, required=True, type=click.Path())
names_argument = partial(click.argument, "names", nargs=-1, metavar="[NAME]...")
metric_option = click.option("--metric", metavar="NAME", help="To rank by; default: macro-F1, or the first of the task.")  # fmt: skip
image_option = click.option("--image", "image_id", required=True, metavar="ID", help="Its image_id.")  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
feature_set_option = click.option("--feature-set", metavar="NAME", help="If STORE has several.", shell_complete=_completing("histostore.store:open_store"))  # fmt: skip
head_option = partial(click.option, "--head", metavar="NAME", shell_complete=_completing("zoo.heads.catalog:HEADS"))  # fmt: skip
recipe_option = click.option("--recipe", default="default", metavar="NAME", help="See: zoo recipes.", shell_complete=_completing("zoo.recipes:PRESETS"))  # fmt: skip


def whole(name: str, meaning: str, *, default: int | None = None, low: int = 1) -> Decorator:
    """Make an option for a whole number."""
    kind = click.IntRange(min=low)
    return click.option(name, default=default, type=kind, metavar="N", help=meaning)


def choice(name: str, among: Sequence[str], meaning: str, *, required: bool = False) -> Decorator:
    """Make an option for one of some words, the first by default unless one must be named."""
    default: dict[str, Any] = {"required": True} if required else {"default": among[0]}
    return click.option(name, type=click.Choice(among), help=meaning, **default)


def layout_option(*among: str) -> Decorator:
    """Make the option for the files of others."""
    return choice("--layout", among, "How others lay features out.", required=True)


def file_option(meaning: str, **more: Any) -> Decorator:
    """Make the option for a file to write."""
    return click.option(
        "-o", "--output", required=True, help=meaning, **{"metavar": "FILE", **more}
    )


def weights_option(meaning: str) -> Decorator:
    """Make the option for weights, one text for all that is given."""
    return click.option(
        "--weights",
        multiple=True,
        callback=lambda _, __, given: ",".join(given) or None,
        metavar="[NAME=]PATH",
        help=meaning,
    )


def pairs(name: str, dest: str, meaning: str) -> Decorator:
    """Make an option for ``KEY=VALUE``, as often as wanted."""
    return click.option(
        name, dest, multiple=True, callback=_key_values, metavar="KEY=VALUE", help=meaning
    )


def with_options(*options: Decorator) -> Decorator:
    """Give a command arguments and options, before its own."""
    return lambda command: reduce(lambda done, option: option(done), reversed(options), command)


class Printed(NamedTuple):
    """What a command prints, and how it ends."""

    document: Any
    text: str
    status: int = 0


def printing(command: Callable[..., Any]) -> Callable[..., int]:
    """Add ``--json``, and print what a command gives, after notes; images that failed are 3."""

    @json_option
    @wraps(command)
    def printed(*, as_json: bool, **given: Any) -> int:
        done = command(**given)
        if not isinstance(done, Printed):
            _note(*getattr(done, "notes", ()))
            status = SOME_FAILED if getattr(done, "failed", ()) else 0
            done = Printed(done.to_json(), done.to_text(), status)
        _print(done.document, done.text, as_json=as_json)
        return done.status

    return printed


def _print(document: Any, text: str, *, as_json: bool) -> None:
    """Print a result; a reader that has seen enough (``| head``) is no error."""
    try:
        click.echo(json.dumps(document, indent=2) if as_json else text)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _note(*notes: str) -> None:
    """Say what is to be known beside a result."""
    for note in notes:
        click.echo(f"Note: {note}", err=True)


storage_option = pairs(
    "--storage-option",
    "storage_options",
    "For the storage driver, e.g. endpoint_url=http://localhost:9000; may be repeated.",
)
last_options = with_options(storage_option, printing)
device_option = choice("--device", ("auto", "cpu", "cuda"), "auto takes a GPU where there is one.")
mpp_option = click.option("--mpp", type=float, help="µm per pixel of the patches; default: as the image is.")  # fmt: skip
annotated_option = click.option("--min-annotated", type=float, help="Least share of a patch in the annotations; default: its centre.")  # fmt: skip
TO_WRITE = "Directory to write, new or empty."
DIRECTORY = click.Path(file_okay=False)
output_option = click.option("-o", "--output", required=True, type=DIRECTORY, help=TO_WRITE)


# histostore --------------------------------------------------------------------------------


@click.group(
    "histostore",
    cls=Commands,
    context_settings=HELP,
    epilog="""\b
    histostore cohort folder images/ -o cohort.csv
    histostore build cohort.csv store --encoder texture
    histostore info store""",
)
@click.version_option(package_name="histostore", prog_name="histostore")
def histostore_group() -> None:
    """Embed histology images once, and keep the embeddings for good."""


PATCHES = (
    whole("--patch-size", "Patch edge in pixels.", default=256),
    whole("--stride", "Distance of patches in pixels; default: their edge."),
    mpp_option,
    choice("--tissue", ("hsv", "otsu", "none"), "How tissue is told from glass."),
    click.option("--min-tissue", default=0.1, help="Least tissue share of a patch."),
    whole("--top-k", "Keep the N patches with most tissue."),
    annotated_option,
)


def _shard(_: click.Context, __: click.Parameter, text: str) -> tuple[int, int]:
    """Read ``I/N``."""
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise click.BadParameter(f"{text!r} is not I/N with 1 <= I <= N")
    return int(part), int(parts)


@histostore_group.command()
@cohort_argument
@store_argument
@click.option("--encoder", default="texture", metavar="NAME", help="See: histostore encoders.", shell_complete=_completing("histostore.encoders.catalog:ENCODERS"))  # fmt: skip
@weights_option("Weights on disk, instead of a download; of a+b: once per member.")
@with_options(*PATCHES)
@click.option("--augment", default="identity", help="Views, e.g. identity,rot90 or d4.")
@click.option("--min-sharpness", type=float, metavar="F", help="Least variance of the Laplacian.")
@click.option("--min-dark-share", type=float, metavar="F", help="Least share of grey below 220.")
@choice("--stain", ("none", "reinhard", "macenko"), "Stain normalisation.")
@click.option(
    "--stain-from",
    metavar="URL",
    callback=lambda *given: given[-1] and _absolute(*given),
    help="Take the target from STORE[/FEATURE_SET], or a JSON file; implies --stain.",
)
@choice("--dtype", ("float32", "float16"), "Type of the stored embeddings.")
@choice("--precision", ("float32", "bfloat16", "float16"), "Arithmetic of the encoder.")
@device_option
@whole("--batch-size", "Patches per call of the encoder.")
@whole("--threads", "Threads of the encoder; default: all cores.")
@whole("--workers", "Processes on this machine, one thread each.")
@click.option("--scheduler", metavar="ADDRESS", help="A running dask.distributed scheduler.")
@click.option("--shard", default="1/1", metavar="I/N", callback=_shard, help="Part I of N parts.")
@whole("--limit", "The first N images only.")
@click.option("--reembed-changed", is_flag=True, help="Embed again what has changed since.")
@last_options
def build(cohort: str, store: str, shard: tuple[int, int], limit: int | None, workers: int | None, scheduler: str | None, reembed_changed: bool, stain_from: str | None, storage_options: dict[str, Any], **given: Any) -> Any:  # fmt: skip
    """Embed what STORE lacks of COHORT.

    COHORT is a CSV or Parquet table with the columns image_id and path. Nothing is computed
    twice: after a crash, or for more images, run it again. Images that fail are listed and
    recorded, and the exit status is 3; the next build tries them again.
    """
    from histostore.build.configure import build_options, build_part

    options, notes = build_options(**given)
    _note(*notes)
    return build_part(
        cohort,
        store,
        options,
        stage=shown,
        say=_note,
        shard=shard,
        limit=limit,
        stain_from=stain_from,
        storage_options=storage_options,
        workers=workers,
        scheduler=scheduler,
        reembed_changed=reembed_changed,
    )


@histostore_group.command()
@store_argument
@last_options
def info(store: str, storage_options: dict[str, Any]) -> Any:
    """Say what STORE holds, what failed and why."""
    from histostore.store import open_store
    from histostore.store.describe import describe, summary

    found = [describe(features) for features in open_store(store, storage_options).values()]
    text = summary(found) if found else f"{store} holds no feature set yet"
    return Printed({"url": store, "feature_sets": found}, text)


@histostore_group.command()
@store_argument
@feature_set_option
@last_options
def ls(store: str, feature_set: str | None, storage_options: dict[str, Any]) -> Any:
    """List the images in a feature set of STORE."""
    from histostore.store import open_store
    from histostore.store.describe import list_images
    from histostore.text import table

    opened = open_store(store, storage_options)
    features = opened.feature_set(feature_set)
    for name in opened if feature_set is None else ():
        if name != features.name:  # it would be ambiguous which one is meant otherwise
            _note(f"left out feature set {name}, which holds no image")
    rows = list_images(features)
    return Printed(rows, table(rows))


@histostore_group.command()
@cohort_argument
@output_option
@with_options(*PATCHES)
@whole("--limit", "The first N images only.")
@last_options
def preview(cohort: str, output: str, limit: int | None, storage_options: dict[str, Any], **given: Any) -> Any:  # fmt: skip
    """Draw which patches a build would take of COHORT.

    One picture per image, kept patches bright and outlined, and a page with all of them. The
    options are those of build. Images that cannot be read are listed, and the exit status is 3.
    """
    from histostore.build.configure import patch_options
    from histostore.cohort import Cohort
    from histostore.images.contact_sheet import preview_cohort

    images = Cohort.read(cohort, storage_options=storage_options)
    images = images.limit(limit) if limit else images
    grid, kept = patch_options(**given)
    with shown("drawing images") as show:
        return preview_cohort(
            images, output, grid, kept, storage_options=storage_options, progress=show
        )


@histostore_group.command()
@printing
def encoders() -> Any:
    """List the encoders there are."""
    from dataclasses import asdict

    from histostore.encoders.catalog import known_encoders
    from histostore.text import table

    rows = [asdict(card) for card in known_encoders()]
    return Printed(rows, table(rows, ("name", "n_features", "input_px", "licence", "summary")))


@histostore_group.command()
@click.argument("layout", type=click.Choice(["folder", "breakhis", "bach", "lymphoma", "nct-crc"]))
@click.argument("folder", type=click.Path())
@file_option("Table to write.", type=click.Path(dir_okay=False))
@click.option(
    "--map-labels",
    "mapping",
    metavar="OLD=NEW,…|NAME",
    help="Other labels, e.g. FL=other,MCL=other,CLL=CLL or bach-to-breakhis.",
)
@printing
def cohort(layout: str, folder: str, output: str, mapping: str | None) -> Any:
    """Make a cohort table of the images in FOLDER.

    folder: one folder per class; those called train, val, test become the column split.
    breakhis, bach, lymphoma, nct-crc: those data sets, as published.
    """
    from histostore.tabulate import tabulate

    return tabulate(layout, folder, output, mapping)


@histostore_group.command()
@cohort_argument
@click.option("--min-sharpness", default=75.0, metavar="F", help="Least variance of the Laplacian.")
@click.option("--min-dark-share", default=0.4, metavar="F", help="Least share of grey below 220.")
@file_option("Table to write.", type=click.Path(), metavar="PATH")
@last_options
def quality(cohort: str, min_sharpness: float, min_dark_share: float, output: str, storage_options: dict[str, Any]) -> Any:  # fmt: skip
    """Measure the images of COHORT and say which are good enough.

    The table has image_id, sharpness, brightness, dark-share and passes. Images that cannot be
    read do not pass, and the exit status is 3.
    """
    from histostore.build.screening import screen
    from histostore.cohort import Cohort
    from histostore.images.quality import QualityFilter

    wanted = QualityFilter(min_sharpness=min_sharpness, min_dark_share=min_dark_share)
    images = Cohort.read(cohort, storage_options=storage_options)
    with shown("measuring images") as show:
        found = screen(images, wanted, storage_options=storage_options, progress=show)
    found.write(output)
    status = SOME_FAILED if found.failed else 0
    return Printed({"path": output, **found.to_json()}, f"{output}: {found.to_text()}", status)


@histostore_group.command()
@store_argument
@feature_set_option
@click.option("--repair", is_flag=True, help="Embed again what is damaged, from its images.")
@weights_option("Weights of the encoder, for --repair.")
@click.option("--cohort", metavar="COHORT", help="Where the images are now, for --repair.")
@click.option("--accept-changed", is_flag=True, help="With --repair: from changed images, too.")
@last_options
def verify(store: str, repair: bool, weights: str | None, cohort: str | None, accept_changed: bool, **where: Any) -> Any:  # fmt: skip
    """Read all of STORE and name what is damaged.

    Every object is held against the digest that its commit record names. The exit status is 0
    where all is sound, or was mended; 1 where something is damaged; and with --repair 3 where
    something damaged could not be mended, and was kept as it is.
    """
    from histostore.build import EncoderOptions
    from histostore.build.repair import repair as mend
    from histostore.cohort import Cohort
    from histostore.store.verify import verify as check

    with shown("MiB read") as show:
        where["progress"] = lambda done, total: show(done >> 20, total >> 20)
        found: Any
        if repair:
            images = Cohort.read(cohort, where["storage_options"]) if cohort else None
            encoder = EncoderOptions(weights=weights)
            found = mend(store, encoder, cohort=images, accept_changed=accept_changed, **where)
            status = SOME_FAILED if found.kept else 0
        else:
            found = check(store, **where)
            status = 0 if found.ok else 1
    return Printed(found.to_json(), found.to_text(), status)


@histostore_group.command()
@store_argument
@feature_set_option
@last_options
def compact(store: str, feature_set: str | None, storage_options: dict[str, Any]) -> Any:  # fmt: skip
    """Merge small fragments of STORE into large ones.

    Without --feature-set, those of all of them. What is damaged is left as it is and listed,
    and the exit status is 3.
    """
    from histostore.store.compact import compact_store

    with shown("fragments") as show:
        reports = compact_store(store, feature_set, storage_options=storage_options, progress=show)
    status = SOME_FAILED if any(report.skipped for report in reports) else 0
    text = "\n".join(report.to_text() for report in reports)
    return Printed([report.to_json() for report in reports], text, status)


@histostore_group.command()
@store_argument
@click.option("--min-age", default=24.0, metavar="HOURS", help="Leave what is younger.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and leave it.")
@last_options
def gc(store: str, min_age: float, dry_run: bool, storage_options: dict[str, Any]) -> Any:  # fmt: skip
    """Remove from STORE what killed builds left behind.

    What a build that still runs may yet commit is younger than a day, and stays.
    """
    from histostore.store.gc import collect_garbage

    return collect_garbage(store, storage_options, min_age_s=min_age * 3600, dry_run=dry_run)


@histostore_group.command("import")
@click.argument("source", callback=_absolute)
@store_argument
@layout_option("trident", "clam", "stamp", "slide2vec", "raw2features", "npz")
@click.option("--name", help="The encoder, if you answer for it: sources of one name are joined.")
@click.option("--mpp", type=float, help="µm per level-0 pixel of all images; for stamp alone.")
@click.option("--cohort", "cohort_out", metavar="CSV", help="Write a table of the images here.")
@last_options
def import_(source: str, store: str, layout: str, **given: Any) -> Any:
    """Bring into STORE what others computed, at SOURCE.

    What is there already is not read again; nothing in a file is executed. Files that are not
    sound are listed and recorded, and the exit status is 3.
    """
    from histostore.bridges import import_layout
    from histostore.bridges.report import beside_patches

    with shown("importing images") as show:
        return import_layout(source, store, layout, progress=beside_patches(show), **given)


@histostore_group.command()
@store_argument
@click.argument("target", callback=_absolute)
@layout_option("trident", "clam", "anndata", "parquet", "npz")
@feature_set_option
@click.option("--augmentation", default="identity", help="Stored view to write.")
@click.option("--overwrite", is_flag=True, help="Write even if TARGET is there.")
@last_options
def export(store: str, target: str, layout: str, **given: Any) -> Any:
    """Write a feature set of STORE for other tools.

    Images that lack the view are left out and counted.
    """
    from histostore.bridges import export_layout
    from histostore.bridges.report import beside_patches

    with shown("exporting images") as show:
        return export_layout(store, target, layout, progress=beside_patches(show), **given)


# zoo ---------------------------------------------------------------------------------------


@click.group(
    "zoo",
    cls=Commands,
    context_settings=HELP,
    epilog="""\b
    zoo fit store cohort.csv --head gated-mil --recipe r-drop --seeds 3 -o runs/mil
    zoo fit store cohort.csv --head lightgbm --seeds 3 -o runs/lightgbm
    zoo ensemble runs/mil runs/lightgbm -o runs/ensemble
    zoo compare runs/*""",
)
@click.version_option(package_name="histostore", prog_name="zoo")
def zoo_group() -> None:
    """Train heads on stored embeddings; compare, ensemble and report them."""


# fmt: off
# What is learned, and in which folds: of heads and of networks alike.
TARGETS = (
    click.option("--target", default="label", help="Column of COHORT to predict."),
    choice("--task", ("auto", "classification", "ordinal", "multi-label", "regression", "survival"), "What --target holds; auto is classification."),
    click.option("--levels", callback=_names, metavar="LOW,…,HIGH", help="Of ordinal; default: numbers in order."),
    click.option("--loss", metavar="NAME", help="regression: huber, squared; survival: cox, hazards."),
    whole("--intervals", "Intervals of time, for hazards.", default=4, low=2),
)
DEALING = (
    click.option("--folds", default="5", metavar="N|leave-one-patient-out", help="A patient stays whole."),
    click.option("--split", "split_column", metavar="COLUMN", help="Holds train, validation, test; instead of --folds."),
    whole("--repeats", "Deal the folds anew, this often.", default=1),
    whole("--split-seed", "Decides the folds.", default=0, low=0),
    click.option("--validation-share", default=0.125, help="Of what is not tested: watched, not learned; 0: none."),
)
# What fit and tune share.
FITTING = (
    recipe_option,
    feature_set_option,
    *TARGETS,
    click.option("--augmentation", default="identity", help="Stored view to learn and predict."),
    click.option("--train-views", default="", metavar="VIEWS", help="Draw each patch from these."),
    click.option("--test-views", default="", metavar="VIEWS", help="Average these: names, d4, r7 or all."),
    *DEALING,
    whole("--seeds", "Fits per fold, seeds 0, 1, …", default=1),
    pairs("--set", "settings", "A setting of the head or the recipe; may be repeated."),
    device_option,
    whole("--workers", "Processes to fit in; default: what pays."),
    choice("--together", ("auto", "never", "always"), "All seeds of a fold at once; auto: on a GPU."),
    output_option,
    last_options,
)
FINETUNING = (
    cohort_argument,
    click.option("--model", required=True, metavar="NAME", help="Network; an unknown one lists all."),
    click.option("--recipe", default="default", metavar="NAME", help="An unknown one lists all."),
    weights_option("Weights on disk, instead of a download; none: drawn at random."),
    *TARGETS,
    *DEALING,
    whole("--seeds", "Trainings per fold, seeds 0, 1, …", default=1),
    whole("--px", "Side of the network's input; default: its own."),
    whole("--patches", "Most patches of an image, of networks that see bags; default: 400."),
    mpp_option,
    pairs("--set", "settings", "A setting of the recipe, or PHASE.KEY; may be repeated."),
    device_option,
    whole("--workers", "Processes that read images ahead; default: beside a GPU, up to 8.", low=0),
    output_option,
    last_options,
)
# fmt: on
WHAT_TO_FIT = (store_argument, cohort_argument, head_option(help="See: zoo heads.", required=True))
FILE_OR_STORE = (
    click.argument("store", callback=_absolute, metavar="STORE|FILE.toml"),
    click.argument("cohort", required=False, callback=_absolute),
    head_option(help="Needed with STORE; see: zoo heads."),
)


def _fit_with(fit_run: Callable[..., Any], spec: Any, recipe: Any, *, what: str, seeds: int, device: str, workers: int | None, together: str, output: str, **given: Any) -> Any:  # fmt: skip
    """Read the bags of a cohort, deal the folds, fit, and print the run."""
    from zoo.fit import Execution
    from zoo.study import Study

    told = click.get_current_context().get_parameter_source("folds")
    if given["split_column"] and told == COMMANDLINE:
        _note(f"--folds is not used: column {given['split_column']!r} says who is tested")
    study = Study(**given)
    spec.check_task(study.learned, recipe)
    bags, split = study.read(say=_note)
    with shown(what) as show:
        machine = Execution(device=device, workers=workers, together=together, progress=show)
        run = fit_run(
            bags,
            spec,
            split=split,
            recipe=recipe,
            seeds=seeds,
            out=output,
            store_url=study.store,
            execution=machine,
        )
    return Printed(run.document, run.to_text())


@zoo_group.command()
@with_options(*FILE_OR_STORE, *FITTING)
@click.option("--dry-run", is_flag=True, help="Of FILE.toml: say what would be fitted.")
def fit(store: str, cohort: str | None, head: str | None, recipe: str, settings: dict[str, Any], dry_run: bool, **given: Any) -> Any:  # fmt: skip
    """Fit a head over all folds and seeds, or all of FILE.toml.

    The images are those of COHORT, a CSV or Parquet table, with their embeddings in STORE.
    Those without a label, and those that failed in the build, are left out and counted. A fit
    that was stopped goes on where it was when the same command is run again.

    FILE.toml is an experiment: heads, recipes, feature sets and settings, their ensembles, and
    one report. Runs that are finished are not fitted again; those that fail are listed (exit 3).

    --target takes several columns for two tasks: the labels (0 or 1) of multi-label, and
    TIME,EVENT of survival.
    """
    if store.endswith(".toml"):
        return _experiment(store, dry_run=dry_run, **given)
    if cohort is None or head is None or dry_run:
        missing = "--dry-run is for FILE.toml" if dry_run else "Missing option '--head'."
        raise click.UsageError("Missing argument 'COHORT'." if cohort is None else missing)
    from zoo.configure import configure
    from zoo.fit import fit_run

    spec, chosen = configure(head, recipe, settings)
    return _fit_with(fit_run, spec, chosen, what="fitting", store=store, cohort=cohort, **given)


def _experiment(path: str, *, dry_run: bool, output: str, storage_options: dict[str, Any], **given: Any) -> Any:  # fmt: skip
    """Do what a file asks for; refuse options whose place is in the file."""
    from zoo.experiments import conduct
    from zoo.fit import Execution

    ctx, where = click.get_current_context(), ("device", "workers", "together")
    known = {"store", "dry_run", "output", "storage_options", "as_json", *where}
    for option in ctx.command.params:
        told = ctx.get_parameter_source(option.name or "")
        if option.name not in known and told == COMMANDLINE:
            raise click.UsageError(f"{option.get_error_hint(ctx)} belongs into FILE.toml", ctx)
    with shown("fitting") as show:
        machine = Execution(progress=show, **{key: given[key] for key in where})
        return conduct(path, output, machine, storage_options=storage_options, dry_run=dry_run)


@zoo_group.command()
@with_options(*WHAT_TO_FIT, *FITTING)
@whole("--inner-folds", "Folds inside each training part.", default=3, low=2)
@whole("--trials", "Most trials in each fold.", default=30)
@click.option("--timeout", type=float, metavar="SECONDS", help="For the trials of all folds.")
@pairs("--space", "space", "KEY=low:high[:log] or KEY=a,b,c; default: the head's own.")
@click.option("--metric", default="", metavar="NAME", help="Decides; default: the task's first.")
@click.option("--prune", is_flag=True, help="End trials early that do worse than half.")
@whole("--search-seed", "Decides what is tried.", default=0, low=0)
def tune(head: str, recipe: str, settings: dict[str, Any], space: dict[str, Any], search_seed: int, **given: Any) -> Any:  # fmt: skip
    """Choose settings and fit a head, over all folds and seeds.

    In every fold, settings are tried on folds inside its training part; the best are fitted to
    all of that, and predict the test part, which had no say in them. The output is a run as
    that of fit, and says which settings each fold got. A search that was stopped goes on where
    it was when the same command is run again.
    """
    from zoo import tuning
    from zoo.configure import configure

    spec, chosen = configure(head, recipe, settings)
    spaces = partial(tuning.read_space, space) if space else tuning.default_space
    limits = {
        key: given.pop(key) for key in ("trials", "timeout", "inner_folds", "metric", "prune")
    }
    search = tuning.Search(
        space=spaces(spec, chosen, fixed=tuple(settings)), seed=search_seed, **limits
    )
    return _fit_with(partial(tuning.tune, search=search), spec, chosen, what="tuning", **given)


@zoo_group.command()
@with_options(*FINETUNING)
def finetune(cohort: str, model: str, recipe: str, settings: dict[str, Any], target: str, task: str, levels: tuple[str, ...], loss: str | None, intervals: int, device: str, workers: int | None, output: str, storage_options: dict[str, Any], weights: str | None, px: int | None, patches: int | None, mpp: float | None, **given: Any) -> Any:  # fmt: skip
    """Train a network on pixels, over all folds and seeds.

    The output is a run as that of fit: the same images have the same folds, so compare, ensemble
    and report take both. Images without a label are left out and counted, those that cannot be
    read are listed (exit 3). A training that was stopped goes on from its last epoch when the
    same command is run again.
    """
    from histostore.cohort import Cohort
    from zoo.finetune.data import read_images
    from zoo.finetune.from_table import finetune_images
    from zoo.finetune.presets import preset
    from zoo.finetune.spec import FinetuneSpec, Machine
    from zoo.tasks import Task

    learned = Task.of(task, target, loss=loss, intervals=intervals)
    table = Cohort.read(cohort, storage_options=storage_options)
    with shown("training") as progress:
        run = finetune_images(
            read_images(table, learned, levels),
            FinetuneSpec(model=model, weights=weights, px=px, patches=patches, mpp=mpp),
            preset(recipe, **settings),
            out=output,
            storage_options=storage_options,
            machine=Machine(device=device, workers=workers),
            say=_note,
            progress=progress,
            **given,
        )
    status = SOME_FAILED if run.document["cohort"]["n_failed"] else 0
    return Printed(run.document, run.to_text(), status)


@zoo_group.command()
@runs_argument
@choice(
    "--rule",
    ("mean", "rank", "weighted", "greedy", "stack"),
    "Mean of predictions, or of their ranks; or weights learned from other folds.",
)
@choice(
    "--calibrate", ("none", "temperature"), "Make the result as sure as other folds say it may be."
)
@output_option
@printing
def ensemble(runs: tuple[str, ...], rule: str, calibrate: str, output: str) -> Any:
    """Combine the predictions of RUNS into one run.

    Only what was not seen in training is combined: the runs must share images and folds.

    What weighted (a weighted mean), greedy (selection with replacement), stack (a logistic model;
    of numbers, a linear one) and --calibrate learn for one fold, they learn from the other folds of
    its repeat, by the loss of the task. Members are found again where RUNS and the result move together.
    """
    from zoo.ensembles import ensemble as combine
    from zoo.ensembles import learned_text

    made = combine(runs, rule=rule, out=output, calibrate=calibrate)
    text = "\n".join(filter(None, [made.to_text(), learned_text(made.document)]))
    return Printed(made.document, text)


@zoo_group.command()
@run_argument
@store_argument
@click.argument("cohort", required=False, callback=_absolute)
@feature_set_option
@click.option("--augmentation", metavar="NAMES", help="Stored views to average; default: as run.")
@click.option("--target", metavar="COLUMN", help="With the truth; default: as the training.")
@click.option("--label-map", metavar="OLD=NEW,…", help="Labels of COHORT as the run's; or a name.")
@file_option("To write, .csv or .parquet.")
@last_options
def predict(run: str, store: str, cohort: str | None, output: str, **given: Any) -> Any:  # fmt: skip
    """Predict the images of STORE with all heads of RUN.

    RUN is a run or an ensemble. Images are those of COHORT, or all. Where COHORT has labels, the
    predictions are judged, and the scores are written to FILE.json too. Where RUN was trained on
    pixels, COHORT stands in the place of STORE.
    """
    from zoo.panel import on_pixels
    from zoo.prediction import check_output
    from zoo.prediction import predict as predict_images
    from zoo.run import Run

    check_output(output, store, cohort)
    asked = Run.load(run)
    with shown("predicting") as progress:
        if on_pixels(asked):
            from zoo.pixel_prediction import predict_cohort

            if any([given.pop("feature_set"), given.pop("augmentation")]):
                raise click.UsageError(f"{run} was trained on pixels: it has no --feature-set and no --augmentation")  # fmt: skip
            made = predict_cohort(asked, cohort or store, progress=progress, **given)
        else:
            made = predict_images(asked, store, cohort, progress=progress, **given)
    made.write(output)
    return made


@zoo_group.command()
@run_argument
@store_argument
@image_option
@click.option("--cohort", callback=_absolute, help="Says where the image is now.")
@feature_set_option
@click.option("--unseen", is_flag=True, help="Ask only heads that were not trained on it.")
@file_option("To write, .png, .geojson (for QuPath) or .csv; may be repeated.", multiple=True)
@last_options
def explain(run: str, store: str, image_id: str, output: tuple[str, ...], **given: Any) -> Any:  # fmt: skip
    """Show which patches of an image RUN looked at.

    Draws the attention of all heads over the image; where no head has attention, what leaving
    out each patch does to the prediction.
    """
    from zoo.explaining import check_outputs
    from zoo.explaining import explain as explain_image

    check_outputs(output)
    told = explain_image(run, store, image_id, **given)
    told.write(*output)
    return told


@zoo_group.command()
@runs_argument
@cohort_argument
@image_option
@click.option("--class", "asked", metavar="NAME", help="Ask about it; default: what is predicted.")
@file_option("To write.", metavar="PNG")
@last_options
def cam(runs: tuple[str, ...], cohort: str, image_id: str, output: str, **given: Any) -> Any:  # fmt: skip
    """Show where networks of zoo finetune look in an image.

    RUNs stand side by side. Networks that see whole images are asked by Grad-CAM++, those that see bags show their
    attention. Those are asked that were not trained with the image, if there are any.
    """
    from zoo.explaining.cams import check_output, look_at

    check_output(output)
    told = look_at(runs, cohort, image_id, **given)
    told.write(output)
    return told


@zoo_group.command()
@run_argument
@click.option("--store", callback=_absolute, help="The training's; default: as RUN says.")
@weights_option("Weights of the encoder on disk, instead of a download.")
@device_option
@click.option("--abstain-below", type=float, metavar="P", help="Name no class below this confidence; default: chosen on validation images.")  # fmt: skip
@click.option("--host", default="127.0.0.1", help="Where to listen; the default is this machine alone.")  # fmt: skip
@whole("--port", "Where to listen.", default=7860)
@click.option("--max-mb", type=float, default=500, metavar="N", help="Largest upload, megabytes.")
@click.option("--open/--no-open", "open_browser", default=True, help="Open the browser.")
@storage_option
@json_option
def app(run: str, host: str, port: int, max_mb: float, open_browser: bool, as_json: bool, **given: Any) -> None:  # fmt: skip
    """Serve a page: upload an image, see what RUN says of it.

    RUN is a run or an ensemble. An image is prepared as those of the training were, all heads
    answer, and the page shows class, confidences with their spread, and what was looked at. For
    research only. Ctrl-C ends it.
    """
    from zoo.app import Predictor, Server, serve

    server = Server(host=host, port=port, max_mb=max_mb, open_browser=open_browser)
    predictor = Predictor.open(run, **given)
    _note(*predictor.notes)
    told = partial(_print, as_json=as_json)
    serve(predictor, server, ready=lambda url: told({"url": url}, f"{url}  (Ctrl-C ends it)"))


@zoo_group.command()
@runs_argument
@metric_option
@printing
def compare(runs: tuple[str, ...], metric: str | None) -> Any:
    """Rank RUNS, with intervals over patients.

    Each is compared to the best on the same draws of patients. Where they were fitted on several
    feature sets, each has a part of the table.
    """
    from zoo.comparison import compare as compare_runs

    return compare_runs(runs, metric=metric)


@zoo_group.command()
@runs_argument
@output_option
@metric_option
@click.option("--external", multiple=True, metavar="FILE", help="Predictions of labelled images, by zoo predict; may be repeated.")  # fmt: skip
@whole("--full", "Runs shown in full, the best; all stand in the tables.", default=10)
@click.option("--cohort", help="The table, where it has moved since.")
@last_options
def report(runs: tuple[str, ...], output: str, full: int, **given: Any) -> Any:
    """Write a page about RUNS: HTML, Markdown, JSON.

    With --external, it holds the external test of a run on another cohort, and the drop.
    """
    from zoo.report import write_report

    page = write_report(runs, output, n_full=full, **given)
    return Printed({"path": str(page)}, str(page))


@zoo_group.command()
@names_argument(shell_complete=_completing("zoo.heads.catalog:HEADS"))
@json_option
def heads(names: tuple[str, ...], as_json: bool) -> None:
    """List the heads; of those named, their settings."""
    from zoo.configure import cards, head_documents

    documents = head_documents(names, settings=bool(names) or as_json)
    _print(documents, cards(documents), as_json=as_json)


@zoo_group.command()
@names_argument(shell_complete=_completing("zoo.recipes:PRESETS"))
@json_option
def recipes(names: tuple[str, ...], as_json: bool) -> None:
    """List the recipes; of those named, their settings."""
    from zoo.configure import cards, recipe_documents

    documents = recipe_documents(names, settings=bool(names) or as_json)
    _print(documents, cards(documents), as_json=as_json)


@zoo_group.command()
@click.option("-o", "--output", default="demo", type=DIRECTORY, help=TO_WRITE)
@printing
def demo(output: str) -> Any:
    """Go the whole way on synthetic images.

    Draws them, builds a store, fits heads, makes an ensemble and a report.
    """
    from zoo.demo import run_demo

    return run_demo(output, say=partial(click.echo, err=True))


histostore_main = partial(_start, histostore_group)
"""Entry point of ``histostore``."""
zoo_main = partial(_start, zoo_group)
"""Entry point of ``zoo``."""

if __name__ == "__main__":
    histostore_main()
