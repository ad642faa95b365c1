"""Weights from the Hugging Face hub, read as every other weights file is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

from histostore.encoders.blueprints import no_download
from histostore.encoders.torchvision_guard import import_guarded
from histostore.encoders.weights import read_state
from histostore.errors import EncoderError

if TYPE_CHECKING:
    from histostore.encoders.cards import EncoderCard
    from histostore.encoders.weights import State

__all__ = ["candidates", "from_hub", "given"]

_HUB = "hf-hub:"
_PINNED = re.compile(
    r"(?P<repository>[^/@#\s]+/[^/@#\s]+)(@(?P<revision>[^/@#\s]+))?(/(?P<file>[^#]+))?"
    r"(?P<digest>#sha256=[0-9a-fA-F]{64})?"
)


def given(card: EncoderCard, weights: str) -> State:
    """Read the tensors of what ``--weights`` names: a file, or one in a repository of the hub.

    Parameters
    ----------
    card
        Whose weights; its file in the repository is taken where none is named.
    weights
        ``PATH[#sha256=HEX]`` as :func:`~histostore.encoders.weights.read_state` has it, or
        ``hf-hub:OWNER/NAME[@REVISION][/FILE][#sha256=HEX]``; a revision is a branch, a tag or a
        commit, a slash in it written ``%2F``.

    Raises
    ------
    EncoderError
        If it cannot be had, has another digest, or holds anything but tensors. Nothing in it is
        executed.
    """
    if not weights.startswith(_HUB):
        return read_state(weights)
    found = _PINNED.fullmatch(weights.removeprefix(_HUB))
    if found is None:
        raise EncoderError(
            f"weights {weights!r} name no file of the hub; say {_HUB}OWNER/NAME, and after it what "
            "shall be pinned: @REVISION, /FILE, #sha256= and 64 hex digits"
        )
    return from_hub(
        card,
        found["repository"],
        found["file"] or card.hub_file,
        revision=unquote(found["revision"] or "") or None,
        digest=found["digest"] or "",
    )


def from_hub(
    card: EncoderCard,
    repository: str | None,
    filename: str | None = None,
    *,
    revision: str | None = None,
    digest: str = "",
) -> State:
    """Download a weights file, or take it from the local cache, and read its tensors.

    Parameters
    ----------
    card
        Whose weights, for the messages.
    repository
        ``owner/name``.
    filename
        In the repository; see :func:`candidates`.
    revision
        Branch, tag or commit; the main branch where left out.
    digest
        ``#sha256=HEX`` that the file must have before anything in it is read.

    Raises
    ------
    EncoderError
        If it cannot be had, has another digest, or holds anything but tensors. Nothing in it is
        executed.
    """
    if not repository:
        raise EncoderError(f"nobody publishes weights of {card.name}; give the file with --weights")
    hub = import_guarded("huggingface_hub")
    absent = import_guarded("huggingface_hub.errors").EntryNotFoundError
    reason: Exception | None = None
    for name in candidates(filename):
        try:
            path = hub.hf_hub_download(repository, name, revision=revision)
        except (absent, OSError, RuntimeError, ValueError) as error:
            reason = error
            if not isinstance(error, absent):
                break  # no network, or no access: another name would fare no better
        else:
            return read_state(f"{path}{digest}")
    offline = import_guarded("huggingface_hub.constants").HF_HUB_OFFLINE
    told = "HF_HUB_OFFLINE is set, and they are not cached" if offline else str(reason)
    place = f"{repository} at revision {revision}" if revision else repository
    raise no_download(card, f"Hugging Face repository {place}", told) from reason


def candidates(filename: str | None) -> tuple[str, ...]:
    """List the names under which the same weights may lie, safetensors before pickles.

    Examples
    --------
    >>> candidates(None)
    ('model.safetensors', 'pytorch_model.safetensors', 'pytorch_model.bin')
    >>> candidates("GPFM.pth")
    ('GPFM.pth',)
    """
    given = filename or "pytorch_model.bin"
    if not given.endswith(".bin"):
        return (given,)
    safe = given.replace("pytorch_model.bin", "model.safetensors")
    return tuple(dict.fromkeys((safe, f"{given[:-4]}.safetensors", given)))
