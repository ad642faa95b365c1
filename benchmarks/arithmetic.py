"""What memory order, precision, threads and compilation give a forward pass, on a CPU.

Without a build, against timm's network as it comes: float32, channels first, one pass of all
threads. An encoder computes channels last, in passes of a few patches side by side, one a thread;
``--precision bfloat16`` under autocast. Compiled networks are timed once compiled; the row says how
long that took. What a precision costs in vectors and in macro-F1
is :mod:`benchmarks.bench_precision`'s question.
"""

from __future__ import annotations

import os
import shutil
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.measure import Ratio, best_of, medians
from histostore.encoders.catalog import available_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

BATCH, SIDE = 32, 224
PLAIN = "float32, channels first"


class Way(NamedTuple):
    """How a batch goes through a network."""

    dtype: str | None = None
    """Of autocast."""
    last: bool = True
    """Whether the channel is last in memory."""
    apart: bool = False
    """Whether it is cut into pieces, one a thread."""
    compiled: bool = False


WAYS = {
    "channels last": Way(),
    "channels last, side by side": Way(apart=True),
    "bfloat16": Way("bfloat16", last=False),
    "bfloat16, channels last": Way("bfloat16"),
    "bfloat16, channels last, side by side": Way("bfloat16", apart=True),
    "float16, channels last": Way("float16"),
    "channels last, torch.compile": Way(compiled=True),
    "bfloat16, channels last, torch.compile": Way("bfloat16", compiled=True),
}


def forward_times(title: str, model: str, *, turns: int) -> Iterator[Ratio]:
    """Time one batch in every way, in turn: a row each.

    Parameters
    ----------
    title
        What rows call the network.
    model
        Its name in timm; it has random weights.
    turns
        How often each is timed.
    """
    import torch

    from histostore.encoders.torchvision_guard import import_guarded

    timm = import_guarded("timm")
    torch.set_num_threads(available_cores())
    torch.manual_seed(0)
    pixels = torch.randn(BATCH, 3, SIDE, SIDE)
    make = partial(timm.create_model, model, pretrained=False, num_classes=0)
    plain = make().eval().requires_grad_(requires_grad=False)
    state = plain.state_dict()

    def network(*, last: bool) -> Any:
        other = make().eval().requires_grad_(requires_grad=False)
        other.load_state_dict(state)
        order = torch.channels_last if last else torch.contiguous_format
        return other.to(memory_format=order)

    before = _passing(plain, pixels, Way(last=False))
    vectors = before()
    for what, way in WAYS.items():
        name = f"{PLAIN} ÷ {what}, {title}, a batch of {BATCH}"
        baseline = "the network alone, as timm gives it"
        if way.compiled and not _compiler():
            yield Ratio.skipped(name, baseline=baseline, reason="no C++ compiler here")
            continue
        order = torch.channels_last if way.last else torch.contiguous_format
        seen = pixels.contiguous(memory_format=order)
        module = network(last=way.last)
        now = _passing(_compiled(module) if way.compiled else module, seen, way)
        found: list[Tensor] = []
        first_s = best_of(partial(_append, found, now), 1)
        theirs_s, ours_s = medians(turns, before, now)
        error = ((found[0] - vectors).norm(dim=1) / vectors.norm(dim=1)).max()
        told = f"vectors differ by up to {100 * float(error):.2g} %"
        if way.compiled:
            told += f", compiling took {first_s - ours_s:.0f} s"
        yield Ratio(
            name=name,
            ours_s=ours_s,
            theirs_s=theirs_s,
            ratio=theirs_s / ours_s,
            target=None,
            baseline=f"{baseline}; {BATCH / ours_s:.1f} patches/s, {told}",
        )


def _passing(module: Any, pixels: Tensor, way: Way) -> Callable[[], Tensor]:
    """Make a forward pass that only has to be called."""
    import torch

    from histostore.encoders.lanes import Lanes

    def forward(some: Tensor) -> Tensor:
        autocast = (
            torch.autocast("cpu", dtype=getattr(torch, way.dtype)) if way.dtype else nullcontext()
        )
        with torch.inference_mode(), autocast:
            return module(some).float()  # (patch, feature)

    if way.apart:
        return partial(Lanes(available_cores(), batch_size=len(pixels)).map, forward, pixels)
    return partial(forward, pixels)


def _append(found: list[Tensor], function: Callable[[], Tensor]) -> None:
    found.append(function())


def _compiled(module: Any) -> Any:
    """Compile a network anew, its weights laid out for the processor."""
    import torch
    from torch._inductor import config

    config.freezing = True
    torch._dynamo.reset()
    return torch.compile(module)


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))
