"""Augmentations of images while training.

Transforms are torchvision's (``torchvision.transforms.v2``). What is drawn for an image depends
on the seed, the epoch and the image alone: not on the batch it is in, nor on what was drawn
before, so that a training that was killed and continued draws what an unbroken one draws.
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from histostore.encoders.torchvision_guard import import_guarded
from zoo.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["AUGMENTATIONS", "Augmentation", "augmentation"]

_GREY = (124, 116, 104)
"""Mean of ImageNet's pixels, red first: what an erased square is filled with, so that it is 0
after the usual shift."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """A named chain of transforms.

    Parameters
    ----------
    name
        Of :data:`AUGMENTATIONS`.
    make
        Makes the chain that ends with images of a size.
    """

    name: str
    make: Callable[[int], nn.Module]

    def __call__(
        self, images: Tensor, *, px: int, seed: int, epoch: int, index: Sequence[int]
    ) -> Tensor:
        """Look at each image in another way.

        Parameters
        ----------
        images
            ``(image, 3, y, x)`` uint8, never altered.
        px
            Side of the result.
        seed, epoch
            Of the training.
        index
            Which images these are, a number each. Neighbours with one number, as the patches of
            a bag have, are looked at alike.

        Returns
        -------
        images
            ``(image, 3, px, px)`` uint8.
        """
        chain = _made(self.name, px)
        looks = []
        with torch.random.fork_rng(devices=[]):
            at = 0
            for number, same in groupby(index):
                end = at + len(list(same))
                torch.default_generator.manual_seed(_mixed(seed, epoch, number))
                looks.append(chain(images[at:end]))
                at = end
        return torch.cat(looks)


def _mixed(seed: int, epoch: int, index: int) -> int:
    """Mix three numbers into a seed, alike on every machine."""
    text = f"{seed} {epoch} {index}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest())


@lru_cache(maxsize=32)
def _made(name: str, px: int) -> nn.Module:
    return augmentation(name).make(px)


def _v2() -> Any:
    return import_guarded("torchvision.transforms.v2")


def _sized(px: int) -> nn.Module:
    resize: nn.Module = _v2().Resize((px, px), antialias=True)
    return resize


class _Turn(nn.Module):
    """Turn by right angles, exactly."""

    def __init__(self, quarters: int) -> None:
        super().__init__()
        self._quarters = quarters

    def forward(self, images: Tensor) -> Tensor:
        """Turn an image."""
        return torch.rot90(images, self._quarters, (-2, -1))


def _square() -> list[nn.Module]:
    v2 = _v2()
    turns = v2.RandomChoice([_Turn(quarters) for quarters in range(4)])
    return [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(), turns]


def _right_angles(px: int) -> nn.Module:
    return nn.Sequential(_sized(px), *_square())


def _r5(px: int) -> nn.Module:
    jitter = _v2().ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05)
    return nn.Sequential(_sized(px), *_square(), jitter)


def _r6(
    px: int, *, jitter: float, hue: float, degrees: float, shift: float, erasing: float
) -> nn.Module:
    v2 = _v2()
    return nn.Sequential(
        _sized(round(px * 256 / 224)),
        v2.RandomCrop(px),
        v2.RandomHorizontalFlip(),
        v2.RandomVerticalFlip(),
        v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter, hue=hue),
        v2.RandomRotation(degrees, interpolation=v2.InterpolationMode.BILINEAR, fill=_GREY),
        v2.RandomAffine(0, translate=(shift, shift), fill=_GREY),
        v2.RandomErasing(p=erasing, value=_GREY),
    )


def _r11(px: int) -> nn.Module:
    v2 = _v2()
    # What comes in from outside are the pixels at the border, repeated: the image is padded
    # with them by half its side, which is more than any of these transforms reaches.
    reach = px // 2
    share = 0.1 * px / (px + 2 * reach)  # a shift is measured by the padded side
    return nn.Sequential(
        _sized(px),
        v2.Pad(reach, padding_mode="edge"),
        v2.RandomAffine(
            degrees=10,
            translate=(share, share),
            scale=(0.9, 1.1),
            shear=10,
            interpolation=v2.InterpolationMode.BILINEAR,
        ),
        v2.CenterCrop(px),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(brightness=(0.2, 1.2)),
    )


# NOTE[DIFF] The HistoVision report, §3.4.5, lists the transforms of r6 and says that they were
# stronger in early phases; it prints sizes for the resizing and the crop alone (256, 224). The
# strengths are ours. Images are kept at the size of the network's input, and enlarged before
# the crop, where the report resizes the original.
# NOTE[DIFF] The AN2DL report, A.4, says of r5 that augmentation was on, and no more.
# NOTE[DIFF] The lymphoma report, table 1, names "nearest" as filling, as Keras calls repeating
# the border; its scale is one for both axes here, which Keras draws apart.
AUGMENTATIONS: Mapping[str, tuple[Augmentation, str]] = {
    name: (Augmentation(name, make), line)
    for name, make, line in (
        ("none", _sized, "images as they are"),
        ("right-angles", _right_angles, "flips and turns by right angles (A-MIL, section III.D)"),
        ("r5", _r5, "flips, turns by right angles, brightness, contrast, saturation, hue"),
        (
            "r6-strong",
            partial(_r6, jitter=0.3, hue=0.1, degrees=30, shift=0.1, erasing=0.5),
            "crop, flips, colour, rotation by 30°, shift, erasing of half the images",
        ),
        (
            "r6-medium",
            partial(_r6, jitter=0.2, hue=0.05, degrees=20, shift=0.1, erasing=0.25),
            "the same, rotation by 20°, erasing of a quarter",
        ),
        (
            "r6-mild",
            partial(_r6, jitter=0.1, hue=0.02, degrees=10, shift=0.05, erasing=0.1),
            "the same, rotation by 10°, erasing of a tenth",
        ),
        (
            "r11",
            _r11,
            "rotation and shear by 10°, shift by 10 %, scale 0.9 to 1.1, flip, brightness 0.2 to 1.2",
        ),
    )
}
"""Every named augmentation, with one line about it."""


def augmentation(name: str) -> Augmentation:
    """Look an augmentation up.

    Raises
    ------
    RecipeError
        If the name is unknown; lists what there is.

    Examples
    --------
    >>> images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    >>> look = augmentation("right-angles")
    >>> looks = look(images, px=32, seed=0, epoch=1, index=(7, 8))
    >>> bool((looks[1:] == look(images[1:], px=32, seed=0, epoch=1, index=(8,))).all())
    True
    """
    if name not in AUGMENTATIONS:
        nearest = difflib.get_close_matches(name, AUGMENTATIONS, n=1)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        raise RecipeError(
            f"no augmentation is called {name!r}{hint}; known: {', '.join(AUGMENTATIONS)}"
        )
    return AUGMENTATIONS[name][0]
