"""Weights from the Hugging Face hub, read as every other weights file is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histostore.encoders.blueprints import no_download
from histostore.encoders.torchvision_guard import import_guarded
from histostore.encoders.weights import read_state
from histostore.errors import EncoderError

if TYPE_CHECKING:
    from histostore.encoders.cards import EncoderCard
    from histostore.encoders.weights import State

__all__ = ["candidates", "from_hub"]


def from_hub(card: EncoderCard, repository: str | None, filename: str | None = None) -> State:
    """Download a weights file, or take it from the local cache, and read its tensors.

    Parameters
    ----------
    card
        Whose weights, for the messages.
    repository
        ``owner/name``.
    filename
        In the repository; see :func:`candidates`.

    Raises
    ------
    EncoderError
        If it cannot be had, or holds anything but tensors. Nothing in it is executed.
    """
    if not repository:
        raise EncoderError(f"nobody publishes weights of {card.name}; give the file with --weights")
    hub = import_guarded("huggingface_hub")
    absent = import_guarded("huggingface_hub.errors").EntryNotFoundError
    reason: Exception | None = None
    for name in candidates(filename):
        try:
            path = hub.hf_hub_download(repository, name)
        except (absent, OSError, RuntimeError, ValueError) as error:
            reason = error
            if not isinstance(error, absent):
                break  # no network, or no access: another name would fare no better
        else:
            return read_state(path)
    offline = import_guarded("huggingface_hub.constants").HF_HUB_OFFLINE
    told = "HF_HUB_OFFLINE is set, and they are not cached" if offline else str(reason)
    raise no_download(card, f"Hugging Face repository {repository}", told) from reason


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
