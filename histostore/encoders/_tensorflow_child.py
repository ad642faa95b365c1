"""The process in which TensorFlow runs; its parent is in ``_tensorflow_process``.

It is run as a file, imports nothing of this package, and never torch. It reads requests from
standard input and answers on what was standard output: a message is its length in four bytes,
big end first, then JSON. Pixels and vectors do not travel so: they lie in memory that both
processes see. It ends when its input does, and so with its parent, whatever ends that.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

REACHES_OUTSIDE = frozenset(
    {
        "EagerPyFunc", "FixedLengthRecordReader", "FixedLengthRecordReaderV2", "IdentityReader",
        "IdentityReaderV2", "InitializeTableFromTextFile", "InitializeTableFromTextFileV2",
        "LMDBReader", "MatchingFiles", "PyFunc", "PyFuncStateless", "ReadFile", "TFRecordReader",
        "TFRecordReaderV2", "TextLineReader", "TextLineReaderV2", "WholeFileReader",
        "WholeFileReaderV2", "WriteFile",
    }
)  # fmt: skip
"""Operations that read or write files, or call Python: an encoder has no use for them."""


class Server:
    """What the parent may ask for, one method each."""

    def __init__(self) -> None:
        self._tf: Any = None
        self._model: Any = None
        self._names = ("", "", "")
        self._memory: SharedMemory | None = None
        self._pixels: NDArray[np.uint8] = np.empty((0,) * 5, np.uint8)
        self._vectors: NDArray[np.float32] = np.empty((0,) * 3, np.float32)

    def load(self, *, folder: str, threads: int) -> dict[str, Any]:
        """Load a SavedModel and say what its signatures are."""
        # TensorFlow looks for Keras when it is imported, and goes on without it: a SavedModel
        # needs none, and it takes half of the time and a quarter of the memory. torch has no
        # business here.
        sys.modules.update(dict.fromkeys(("keras", "torch")))  # type: ignore[arg-type]
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        refuse_outside_operations(Path(folder))
        self._tf, self._model = tf, tf.saved_model.load(folder)
        return {
            "tensorflow": tf.__version__,
            "signatures": {
                name: {
                    "inputs": _specs(function.structured_input_signature[1]),
                    "outputs": _specs(function.structured_outputs),
                }
                for name, function in self._model.signatures.items()
            },
        }

    def attach(self, *, memory: str, shape: list[int], signature: list[str]) -> dict[str, Any]:
        """Map the memory that the parent made: slots of pixels, then slots of vectors."""
        slots, batch, side, n_features = shape
        self._names = (signature[0], signature[1], signature[2])
        self._memory = attached(memory)
        buffer = cast("memoryview", self._memory.buf)
        self._pixels, self._vectors = views(buffer, slots, batch, side, n_features)
        return {}

    def encode(self, *, slot: int, n: int) -> dict[str, Any]:
        """Turn the first ``n`` patches of a slot into its first ``n`` vectors."""
        scaled = np.divide(self._pixels[slot, :n], np.float32(255), dtype=np.float32)
        signature, name, output = self._names
        forward = self._model.signatures[signature]
        vectors = forward(**{name: self._tf.constant(scaled)})[output].numpy()
        wanted = (n, self._vectors.shape[-1])
        if vectors.shape != wanted:
            raise ValueError(f"{output} is {vectors.shape} for {n} patches, not {wanted}")
        self._vectors[slot, :n] = vectors
        return {"slot": slot}


def refuse_outside_operations(folder: Path) -> None:
    """Refuse a graph that reaches outside itself, before anything of it is run.

    Raises
    ------
    ValueError
        If it holds an operation of :data:`REACHES_OUTSIDE`.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    document = saved_model_pb2.SavedModel()
    document.ParseFromString((folder / "saved_model.pb").read_bytes())
    found = set()
    for graph in document.meta_graphs:
        found |= {node.op for node in graph.graph_def.node}
        for function in graph.graph_def.library.function:
            found |= {node.op for node in function.node_def}
    if found & REACHES_OUTSIDE:
        raise ValueError(
            f"its graph holds {', '.join(sorted(found & REACHES_OUTSIDE))}, which reach outside "
            "it: refused; nothing of it was run"
        )


def _specs(specs: dict[str, Any]) -> dict[str, list[Any]]:
    """Give name → (type, shape), the shape ``None`` where even its rank is unknown."""
    return {
        name: [spec.dtype.name, None if spec.shape.rank is None else spec.shape.as_list()]
        for name, spec in specs.items()
    }


def views(
    buffer: memoryview, slots: int, batch: int, side: int, n_features: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Lay out the common memory: ``(slot, patch, y, x, channel)``, then ``(slot, patch, feature)``."""
    pixels = np.ndarray((slots, batch, side, side, 3), np.uint8, buffer)
    vectors = np.ndarray(
        (slots, batch, n_features), np.float32, buffer, offset=_aligned(pixels.nbytes)
    )
    return pixels, vectors


def n_bytes(slots: int, batch: int, side: int, n_features: int) -> int:
    """Give the size of the common memory."""
    return _aligned(slots * batch * side * side * 3) + slots * batch * n_features * 4


def _aligned(n: int) -> int:
    return -(-n // 64) * 64


def attached(name: str) -> SharedMemory:
    """Open memory that the parent owns, without becoming answerable for it.

    Before Python 3.13, whoever opens such memory is taken for its owner, and it would be
    removed when this process ends.
    """
    if sys.version_info >= (3, 13):
        return SharedMemory(name, track=False)
    kept = resource_tracker.register
    resource_tracker.register = lambda *_: None
    try:
        return SharedMemory(name)
    finally:
        resource_tracker.register = kept


def send(stream: BinaryIO, message: dict[str, Any]) -> None:
    """Write one message."""
    body = json.dumps(message).encode()
    stream.write(struct.pack(">I", len(body)) + body)
    stream.flush()


def receive(stream: BinaryIO) -> dict[str, Any] | None:
    """Read one message; ``None`` at the end, or where it breaks off."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    (length,) = struct.unpack(">I", head)
    body = stream.read(length)
    if len(body) < length:
        return None
    message: dict[str, Any] = json.loads(body)
    return message


def main() -> None:
    """Answer requests until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not stand between the answers
    requests = os.fdopen(os.dup(0), "rb")
    server = Server()
    while (request := receive(requests)) is not None:
        try:
            answer = getattr(server, request.pop("do"))(**request)
        except Exception as error:  # noqa: BLE001 - all of it is for the parent to tell
            answer = {"error": " ".join(str(error).split())[:300] or type(error).__name__}
        send(answers, answer)
    os._exit(0)  # TensorFlow takes its time to tidy up what ends with the process anyway


if __name__ == "__main__":
    main()
