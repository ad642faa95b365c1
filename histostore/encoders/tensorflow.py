"""TensorFlow SavedModels as encoders, each in a process of its own."""

from __future__ import annotations

from collections import deque
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from histostore.encoders import savedmodel
from histostore.encoders._tensorflow_process import TensorflowProcess
from histostore.encoders.base import EncoderIdentity, check_patches
from histostore.errors import EncoderError, MissingExtra

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from histostore.encoders.cards import EncoderCard

__all__ = ["TensorflowEncoder", "load", "resize"]

SLOTS = 2
"""Batches on their way: one is filled while the other is encoded."""

FORWARD = 16
"""Patches in one forward pass at most; more at once are no quicker on a CPU."""


class TensorflowEncoder:
    """A frozen TensorFlow model, patch to vector, on the CPU of another process.

    Patches are resized whole, without a crop, by Pillow's antialiased bilinear filter, as
    those of torch encoders are, and divided by 255. If the process dies, the call that finds
    out raises, and the next one starts another process.

    Parameters
    ----------
    folder
        The SavedModel.
    card
        What it must be: input, output, name.
    batch_size
        Patches that :meth:`encode` likes to see at once.
    threads
        Threads of TensorFlow.

    Raises
    ------
    EncoderError
        If the model cannot be loaded, or is not what the card says.
    """

    def __init__(self, folder: Path, *, card: EncoderCard, batch_size: int, threads: int) -> None:
        if card.input_px is None or card.n_features is None:
            raise EncoderError(f"the card of {card.name} must say its input size and its width")
        self._folder = folder
        self._card = card
        self._batch_size = batch_size
        self._threads = threads
        self._input_px, self._n_features = card.input_px, card.n_features
        self._step = min(batch_size, FORWARD)
        self._weights = ""
        self._process: TensorflowProcess | None = self._started()

    @property
    def identity(self) -> EncoderIdentity:
        """What decides its vectors."""
        return EncoderIdentity(
            name=self._card.name,
            weights=self._weights,
            preprocessing={
                "input_px": self._input_px,
                "interpolation": "bilinear, antialiased",
                "channels": "RGB",
                "mean": [0.0, 0.0, 0.0],
                "std": [1.0, 1.0, 1.0],
            },
        )

    @property
    def n_features(self) -> int:
        """Width of its vectors."""
        return self._n_features

    @property
    def batch_size(self) -> int:
        """Patches that it likes to see at once; it takes them in turns of fewer."""
        return self._batch_size

    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn patches into vectors.

        Parameters
        ----------
        patches
            ``(patch, y, x, channel)``, uint8 RGB, any square size.

        Returns
        -------
        embedding
            ``(patch, feature)``, float32, finite.

        Raises
        ------
        EncoderError
            If the patches are not of this shape and type, the process has died, or a vector
            is not finite.
        """
        check_patches(patches)
        if self._process is None:
            self._process = self._started()
        try:
            embedding = self._encoded(self._process, patches)
        except BaseException:
            self.close()  # what it still has to answer is not known any more
            raise
        if not np.isfinite(embedding).all():
            raise EncoderError(
                f"{self._card.name} gave vectors that are not finite; check the weights"
            )
        return embedding

    def close(self) -> None:
        """End the process; the next call of :meth:`encode` starts another."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def _started(self) -> TensorflowProcess:
        process = TensorflowProcess(self._card.name)
        try:
            process.send(do="load", folder=str(self._folder.absolute()), threads=self._threads)
            self._read_weights()  # here too, while TensorFlow comes up
            answer = process.receive()
            names = savedmodel.function_of(
                answer["signatures"], card=self._card, folder=self._folder
            )
            process.share((SLOTS, self._step, self._input_px, self._n_features), names)
        except BaseException:
            process.close()
            raise
        return process

    def _read_weights(self) -> None:
        """Take the digest; of a process that is started again, it must be what it was."""
        weights = savedmodel.digest(self._folder)
        if self._weights not in {"", weights}:
            raise EncoderError(
                f"{self._folder} has changed since {self._card.name} was loaded; start anew"
            )
        self._weights = weights

    def _encoded(
        self, process: TensorflowProcess, patches: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        """Fill one slot while the other is encoded."""
        embedding = np.empty((len(patches), self._n_features), np.float32)
        in_work: deque[tuple[int, slice]] = deque()

        def collect() -> None:
            slot, part = in_work.popleft()
            process.receive()
            embedding[part] = process.views()[1][slot, : part.stop - part.start]

        for number, start in enumerate(range(0, len(patches), self._step)):
            slot, part = number % SLOTS, slice(start, min(start + self._step, len(patches)))
            if len(in_work) == SLOTS:
                collect()
            resize(patches[part], process.views()[0][slot])
            process.send(do="encode", slot=slot, n=part.stop - part.start)
            in_work.append((slot, part))
        while in_work:
            collect()
        return embedding


def resize(patches: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Resize square patches by Pillow's antialiased bilinear filter.

    Parameters
    ----------
    patches
        ``(patch, y, x, channel)`` uint8.
    out
        ``(patch, y, x, channel)`` uint8 of the wanted size; its first rows are filled.
    """
    side = out.shape[1]
    if patches.shape[1] == side:
        out[: len(patches)] = patches
        return
    for patch, row in zip(patches, out, strict=False):
        image = Image.fromarray(np.ascontiguousarray(patch))
        row[...] = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def load(
    *,
    card: EncoderCard,
    weights: str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    threads: int,
    precision: str = "float32",
) -> TensorflowEncoder:
    """Load a TensorFlow encoder.

    Parameters
    ----------
    card
        Which one; see :func:`histostore.encoders.catalog.card`.
    weights
        Folder of a SavedModel; ``None`` takes the published one, from the cache of the hub or
        downloaded.
    device
        ``auto`` or ``cpu``.
    batch_size
        Patches that it likes to see at once; ``None`` takes the card's.
    threads
        Threads of TensorFlow.
    precision
        ``float32`` only.

    Raises
    ------
    EncoderError
        If another device or precision is asked for, the weights cannot be had, or they are
        not what the card says.
    MissingExtra
        If TensorFlow is not installed.
    """
    if device not in {"auto", "cpu"}:
        raise EncoderError(f"{card.name} runs on the CPU, not on {device}; use device auto or cpu")
    if precision != "float32":
        raise EncoderError(f"{card.name} runs in float32, not {precision}; leave the precision out")
    if find_spec("tensorflow") is None:
        raise MissingExtra.named("tensorflow", extra="tensorflow")
    folder = savedmodel.find(card, weights)
    size = card.batch_size if batch_size is None else batch_size
    return TensorflowEncoder(folder, card=card, batch_size=size, threads=threads)
