"""Tensors saved by torch: read without executing anything.

A ``.pt`` file is a pickle. torch's restricted unpickler builds tensors and plain containers
from it and refuses everything else, so nothing in a file is ever run.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pickle import UnpicklingError  # the exception alone; nothing is unpickled here
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.bridges.damage import DAMAGE, unsound
from histostore.errors import FormatError, MissingExtra
from histostore.files import public_url, read_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["packed_tensor", "read_tensors", "require_torch"]

_REFUSED = "refused; nothing in it was executed"


def require_torch() -> None:
    """Make sure that torch is there.

    Raises
    ------
    MissingExtra
        If it is not installed.
    """
    try:
        import torch  # noqa: F401 - only whether it is there
    except ModuleNotFoundError:
        raise MissingExtra.named("torch", extra="torch") from None


def read_tensors(url: str, storage_options: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Read a tensor, or a mapping with tensors in it, as arrays.

    Returns
    -------
    arrays
        By name; a tensor that stands alone is called ``features``. bfloat16 becomes float32.

    Raises
    ------
    FormatError
        If it is no such file, damaged, or holds anything that would have to be executed.
    StorageError
        If it cannot be read.
    """
    require_torch()
    import torch

    content = read_bytes(url, storage_options)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(  # noqa: TID251 - bags of features, not weights: the one place
                io.BytesIO(content), map_location="cpu", weights_only=True
            )
    except UnpicklingError as error:
        raise FormatError(
            f"{public_url(url)} is a pickle that holds more than tensors, or is damaged: {_REFUSED}"
        ) from error
    except DAMAGE as error:
        raise unsound(url, ".pt file", error) from error
    named = loaded if isinstance(loaded, Mapping) else {"features": loaded}
    tensors = {str(k): v for k, v in named.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise FormatError(f"{public_url(url)} holds a {type(loaded).__name__}, not a tensor")
    try:
        return {name: _array(tensor) for name, tensor in tensors.items()}
    except DAMAGE as error:  # without numbers, as on the device "meta"
        raise unsound(url, ".pt file", error) from error


def _array(tensor: Any) -> NDArray[Any]:
    import torch

    tensor = tensor.detach()
    if tensor.layout is not torch.strided or tensor.is_quantized:
        tensor = tensor.dequantize() if tensor.is_quantized else tensor.to_dense()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    array: NDArray[Any] = tensor.contiguous().numpy()
    return array


def packed_tensor(array: NDArray[Any]) -> bytes:
    """Give the bytes of a ``.pt`` file that holds one tensor."""
    require_torch()
    import torch

    buffer = io.BytesIO()
    torch.save(torch.from_numpy(np.array(array)), buffer)
    return buffer.getvalue()
