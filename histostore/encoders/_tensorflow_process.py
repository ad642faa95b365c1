"""The parent's side of a process that runs TensorFlow.

torch and TensorFlow never share a process: each has thread pools and a claim to the GPU of its
own. The child (:mod:`histostore.encoders._tensorflow_child`) sees no GPU and holds the model;
patches and vectors lie in memory that both see, and only a few bytes travel per batch.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import weakref
from contextlib import ExitStack, suppress
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from histostore.encoders import _tensorflow_child as child
from histostore.errors import EncoderError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["TensorflowProcess"]

SECONDS_TO_END = 5.0
"""How long the child may take to end by itself; then it is killed."""

_LAST_BYTES = 4096
_CHATTER = re.compile(r"WARNING: All log messages|[IW]\d{4} ")
_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"}


class TensorflowProcess:
    """A process that runs TensorFlow for this one.

    It ends when it is closed, when nobody refers to it any more, and when this process ends,
    in whatever way. Its memory has no name by the time it holds pixels, so none can be left
    behind.

    Parameters
    ----------
    name
        Of the encoder, for messages.

    Raises
    ------
    EncoderError
        If no process can be started.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._memory: SharedMemory | None = None
        self._shape = (0, 0, 0, 0)
        self._held = ExitStack()
        # A file, not a pipe: nobody has to read along, and the last lines are there at the end.
        self._stderr = self._held.enter_context(TemporaryFile())  # noqa: SIM115 - held
        # -P: a file that is called like a library must not be taken for it.
        words = [sys.executable, "-P", str(Path(child.__file__))]
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env={**os.environ, **_ENVIRONMENT},
                start_new_session=True,  # a terminal's Ctrl-C goes to the parent alone
            )
        except OSError as error:
            self._held.close()
            raise EncoderError(f"cannot start a process for {name}: {error}") from error
        self._requests = cast("BinaryIO", self._process.stdin)
        self._answers = cast("BinaryIO", self._process.stdout)
        self._held.callback(_end, self._process)
        self.close = weakref.finalize(self, _close, os.getpid(), self._held)
        """Ends the process and lets go of its memory; more than once does no harm."""

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises
        ------
        EncoderError
            If the process has died, or says that the request went wrong.
        """
        self.send(**request)
        return self.receive()

    def send(self, **request: Any) -> None:
        """Send a request, and leave the answer to :meth:`receive`."""
        try:
            child.send(self._requests, request)
        except OSError as error:
            raise self._died() from error

    def receive(self) -> dict[str, Any]:
        """Wait for the answer to the oldest request that has none yet."""
        answer = child.receive(self._answers)
        if answer is None:
            raise self._died()
        if "error" in answer:
            raise EncoderError(f"{self._name}: TensorFlow says: {answer['error']}")
        return answer

    def share(self, shape: tuple[int, int, int, int], signature: tuple[str, str, str]) -> None:
        """Make the memory that both processes see.

        Parameters
        ----------
        shape
            Slots, patches per slot, side of a patch in px, features.
        signature
            Of the model: its name, and those of its input and of its output.
        """
        try:
            memory = SharedMemory(create=True, size=child.n_bytes(*shape))
        except OSError as error:
            raise EncoderError(f"no shared memory for {self._name}: {error}") from error
        self._held.callback(_release, memory)
        try:
            self.ask(do="attach", memory=memory.name, shape=shape, signature=signature)
        finally:
            memory.unlink()  # both have it now; without a name it ends with the two of them
        self._memory, self._shape = memory, shape

    def views(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Look at the common memory; do not keep the result, or it cannot be closed.

        Returns
        -------
        (pixels, vectors)
            ``(slot, patch, y, x, channel)`` uint8 and ``(slot, patch, feature)`` float32.
        """
        memory = cast("SharedMemory", self._memory)  # shared before it is used
        return child.views(cast("memoryview", memory.buf), *self._shape)

    def _died(self) -> EncoderError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(SECONDS_TO_END)
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - _LAST_BYTES))
        lines = self._stderr.read().decode(errors="replace").splitlines()
        last = [line for line in lines if line.strip() and not _CHATTER.match(line)][-1:]
        told = f"; its last line: {last[0].strip()[:200]}" if last else ""
        return EncoderError(
            f"the TensorFlow process of {self._name} {_ending(self._process.returncode)}{told}. "
            "What is finished is kept: run the same again"
        )


def _ending(code: int | None) -> str:
    """Say how a process ended.

    Examples
    --------
    >>> _ending(-9)
    'was killed (SIGKILL), perhaps for want of memory'
    >>> _ending(1)
    'ended with exit code 1'
    """
    if code is None:
        return "does not answer any more"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    memory = ", perhaps for want of memory" if name == "SIGKILL" else ""
    return f"was killed ({name}){memory}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the child: its input ends, and then it does."""
    with suppress(OSError):  # what was not sent to one that is dead
        process.stdin.close()  # type: ignore[union-attr]
    try:
        process.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()  # type: ignore[union-attr]


def _release(memory: SharedMemory) -> None:
    with suppress(BufferError):  # somebody looks at it still: it goes when they do
        memory.close()


def _close(owner: int, held: ExitStack) -> None:
    """Let go of everything, but not from a fork of the process that it belongs to."""
    if os.getpid() == owner:
        held.close()
