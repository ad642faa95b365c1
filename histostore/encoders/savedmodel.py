"""SavedModels: where one is, what it is called by content, and whether it is what is wanted.

A SavedModel is a folder: ``saved_model.pb``, ``variables/`` and perhaps ``assets/``. Nothing
here needs TensorFlow.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.errors import EncoderError, MissingExtra

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from histostore.encoders.cards import EncoderCard

__all__ = ["SIGNATURE", "digest", "find", "function_of"]

SIGNATURE = "serving_default"

GRAPH = "saved_model.pb"
_FOLDERS = ("assets", "variables")
_WANTED = [GRAPH, *(f"{folder}/*" for folder in _FOLDERS)]
_SECONDS_TO_ANSWER = 10.0


def find(card: EncoderCard, weights: str | None) -> Path:
    """Find the folder of a SavedModel: given, in the cache, or to be downloaded.

    Parameters
    ----------
    card
        Which encoder; names the repository.
    weights
        A local folder; ``None`` takes the published one; ``FOLDER#sha256=HEX`` asks that the
        folder have this digest.

    Raises
    ------
    EncoderError
        If there is none, it has another digest, or it cannot be had from here.
    """
    if weights is None:
        return _published(card)
    path, asked, wanted = weights.partition("#sha256=")
    folder = Path(path).expanduser()
    if (folder / GRAPH).is_file():
        if asked and digest(folder) != f"sha256:{wanted.lower()}":
            raise EncoderError(f"{folder} has the digest {digest(folder)}, not sha256:{wanted}")
        return folder
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "is not there"
        raise EncoderError(
            f"{folder} {kind}; {card.name} wants the folder of a SavedModel, with {GRAPH} in it"
        )
    there = sorted(path.name for path in folder.iterdir())[:4]
    held = f"holds {', '.join(there)}" if there else "is empty"
    raise EncoderError(f"{folder} is no SavedModel: it {held}, and no {GRAPH}")


def digest(folder: Path) -> str:
    """Digest what decides the vectors of a SavedModel.

    Per file of the graph, the variables and the assets, in the order of their names: a line of
    JSON with the name and the size, then the content. A README beside them is left out, so
    that a download and a clone have one identity.

    Returns
    -------
    digest
        ``sha256:`` and 64 hex digits.

    Raises
    ------
    EncoderError
        If a file cannot be read.
    """
    total = hashlib.sha256()
    try:
        for path in _files(folder):
            name = path.relative_to(folder).as_posix()
            total.update(json.dumps([name, path.stat().st_size]).encode() + b"\n")
            with path.open("rb") as stream:
                while block := stream.read(1 << 20):
                    total.update(block)
    except OSError as error:
        raise EncoderError(f"the SavedModel at {folder} cannot be read: {error}") from error
    return f"sha256:{total.hexdigest()}"


def _files(folder: Path) -> Iterator[Path]:
    inside = (path for name in _FOLDERS for path in (folder / name).rglob("*") if path.is_file())
    return iter(sorted([folder / GRAPH, *inside], key=lambda path: path.relative_to(folder).parts))


def function_of(
    signatures: Mapping[str, Any], *, card: EncoderCard, folder: Path
) -> tuple[str, str, str]:
    """Check that a SavedModel turns pixels into vectors as its card says.

    Parameters
    ----------
    signatures
        Name → ``{"inputs": …, "outputs": …}``, each name → (type, shape), with ``None`` for
        what the model leaves open.
    card
        Side of the input and width of the output.
    folder
        For the message.

    Returns
    -------
    (signature, input, output)
        Names.

    Raises
    ------
    EncoderError
        If it does not; the message says what was found.
    """

    def refused(found: str, wanted: str) -> EncoderError:
        return EncoderError(f"{folder} is not {card.name}: {found}; wanted: {wanted}")

    if SIGNATURE not in signatures:
        there = ", ".join(sorted(signatures)) or "none"
        raise refused(f"its signatures are {there}", SIGNATURE)
    inputs, outputs = signatures[SIGNATURE]["inputs"], signatures[SIGNATURE]["outputs"]
    side, width = card.input_px, card.n_features
    pixels, vectors = [None, side, side, 3], [None, width]
    if len(inputs) != 1 or not all(_fits(given, pixels) for given in inputs.values()):
        raise refused(f"{SIGNATURE} takes {_told(inputs)}", f"one float32 (any, {side}, {side}, 3)")
    output = str(card.options.get("output", "output_0"))
    if output not in outputs or not _fits(outputs[output], vectors):
        raise refused(f"{SIGNATURE} gives {_told(outputs)}", f"{output} float32 (any, {width})")
    return SIGNATURE, next(iter(inputs)), output


def _fits(given: tuple[str, list[int | None] | None], wanted: list[int | None]) -> bool:
    """Tell whether a type and shape may be what is wanted; what is left open may."""
    dtype, shape = given
    if dtype != "float32" or shape is None:
        return dtype == "float32"
    return (
        len(shape) == len(wanted)
        and shape[0] is None
        and all(
            there is None or there == size
            for there, size in zip(shape[1:], wanted[1:], strict=True)
        )
    )


def _told(specs: Mapping[str, tuple[str, list[int | None] | None]]) -> str:
    """Say what a function takes or gives.

    Examples
    --------
    >>> _told({"x": ("float32", [None, 384])})
    'x float32 (any, 384)'
    """

    def sizes(shape: list[int | None] | None) -> str:
        if shape is None:
            return "of any shape"
        return f"({', '.join('any' if size is None else str(size) for size in shape)})"

    told = [f"{name} {dtype} {sizes(shape)}" for name, (dtype, shape) in sorted(specs.items())]
    return ", ".join(told) or "nothing"


# -- the hub ------------------------------------------------------------------------------------


def _published(card: EncoderCard) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors
    except ModuleNotFoundError as error:
        raise MissingExtra.named("huggingface_hub", extra="tensorflow") from error
    library: Any = huggingface_hub
    # Errors of the hub's HTTP library, whichever that is in its version, are not all OSErrors.
    failures: tuple[type[Exception], ...] = (
        OSError,
        ValueError,
        getattr(errors, "HTTPError", OSError),
    )
    fetch = {"repo_id": card.hub, "allow_patterns": _WANTED}
    try:
        # The cache first: what was fetched once needs no network, nor a wait for one.
        cached = Path(library.snapshot_download(**fetch, local_files_only=True))
        if (cached / GRAPH).is_file():
            return cached
    except (OSError, ValueError):  # not there, or not all of it
        pass
    if constants.HF_HUB_OFFLINE:
        raise _no_weights(card, "HF_HUB_OFFLINE is set, and they are not cached")
    try:
        return Path(library.snapshot_download(**fetch, etag_timeout=_SECONDS_TO_ANSWER))
    except errors.GatedRepoError as error:
        raise _no_weights(card, "the hub wants to know who has accepted the terms") from error
    except failures as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise _no_weights(card, reason.rstrip(".")) from error


def _no_weights(card: EncoderCard, reason: str) -> EncoderError:
    page = f"https://huggingface.co/{card.hub}"
    return EncoderError(
        f"the weights of {card.name} cannot be had from {page}: {reason}. Accept the terms "
        f"({card.licence}) on that page and log in (hf auth login, or HF_TOKEN); or give "
        "the folder of the SavedModel with --weights"
    )
