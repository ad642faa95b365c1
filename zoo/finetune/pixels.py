"""Pixels of a cohort's images, each decoded once, in one file that is mapped.

What a network sees of an image (the whole of it, or its patches) is a few hundred kilobytes;
decoding it takes ten to a hundred times as long as reading it back. So all of it lies in a folder
of the cache as ``pixels.npy``, which every fold, seed and epoch maps, and so does the next run on
the same images at the same size. The folder is named by what decides its content: address, size
and version of each image file, and the size in pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from histostore.errors import ImageError, OptionError, StorageError
from histostore.files import public_url
from histostore.grid import PatchGrid
from histostore.images.patches import read_patches, select_patches
from histostore.images.readers import open_image
from histostore.images.tissue import TissueFilter
from zoo.cache import cache_folder
from zoo.flatfile import flush

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from histostore.cohort import Cohort
    from histostore.images.readers import Reader

__all__ = ["PixelPlan", "Pixels", "read_pixels"]

_VERSION = 1
_WHOLE_PX = 4096  # an image of longer sides is reduced by its own pyramid first

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelPlan:
    """What of an image a network sees."""

    px: int
    """Edge of what goes into the network."""
    patches: int | None = None
    """None: the whole image, brought to ``px`` × ``px`` whatever its shape. Else at most so many
    patches of ``px`` pixels from a regular grid, those with most tissue where there are more."""
    mpp: float | None = None
    """µm per pixel of the patches; as the image is where left out."""
    interpolation: str = "bilinear"
    """``bilinear`` or ``bicubic``: how a whole image is brought to its size, without aliasing."""

    def __post_init__(self) -> None:
        if self.px < 1 or (self.patches is not None and self.patches < 1):
            raise OptionError(f"px is {self.px}, patches {self.patches}: give 1 or more of each")
        if self.mpp is not None and self.patches is None:
            raise OptionError("mpp is for networks that see patches; this one sees whole images")

    def to_json(self) -> dict[str, Any]:
        """Give the plan as JSON values."""
        return dataclasses.asdict(self)

    def read(self, reader: Reader) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Read an image.

        Returns
        -------
        pixels
            ``(patch, px, px, 3)`` uint8; one patch where the network sees the whole image.
        boxes
            ``(patch, 4)`` int32: left, top, right and bottom in level-0 pixels.
        """
        if self.patches is None:
            box = np.array([[0, 0, reader.width_px, reader.height_px]], np.int32)
            return _whole(reader, self.px, self.interpolation)[None], box
        grid = PatchGrid(self.px, mpp=self.mpp)
        tissue = TissueFilter(min_tissue=0.0, top_k=self.patches)
        chosen = select_patches(reader, grid, tissue)
        place = chosen.placement
        corners = np.stack([place.x, place.y], axis=1)[chosen.kept]
        return (
            read_patches(reader, chosen, self.px),
            np.concatenate([corners, corners + place.edge_px], axis=1).astype(np.int32),
        )


def _whole(reader: Reader, px: int, interpolation: str) -> NDArray[np.uint8]:
    """Bring an image to a square; Pillow's filter widens with the factor, so nothing aliases."""
    from PIL import Image

    if max(reader.width_px, reader.height_px) <= _WHOLE_PX:
        pixels = reader.region(0, 0, reader.width_px, reader.height_px)
    else:
        pixels = reader.thumbnail(max(_WHOLE_PX, 2 * px))
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(picture.resize((px, px), Image.Resampling[interpolation.upper()]))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pixels:
    """What networks see of the images of a cohort, one image after the other.

    Handed to another process, the file is mapped again.
    """

    plan: PixelPlan
    folder: Path
    offset: NDArray[np.int64]
    """``(image + 1,)``: patches of image *i* are ``offset[i]:offset[i + 1]``; none of a failed one."""
    boxes: NDArray[np.int32]
    """``(patch, 4)``: left, top, right, bottom in level-0 pixels."""
    digest: str
    """SHA-256 of what decides the pixels: every file's size and version, and the plan."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Images that cannot be read, and why."""
    rows: NDArray[np.uint8] = field(init=False)
    """``(patch, px, px, 3)``, mapped, read-only."""

    def __post_init__(self) -> None:
        shape = (int(self.offset[-1]), self.plan.px, self.plan.px, 3)
        path = self.folder / "pixels.bin"
        mapped = (
            np.memmap(path, np.uint8, "r", shape=shape) if shape[0] else np.empty(shape, np.uint8)
        )
        object.__setattr__(self, "rows", mapped.view(np.ndarray))

    def __len__(self) -> int:
        return len(self.offset) - 1

    def __reduce__(self) -> tuple[Any, ...]:
        names = ("plan", "folder", "offset", "boxes", "digest", "failed")
        return _again, ({name: getattr(self, name) for name in names},)

    def image(self, row: int) -> NDArray[np.uint8]:
        """Give what is seen of one image, ``(patch, px, px, 3)`` uint8, not copied."""
        return self.rows[int(self.offset[row]) : int(self.offset[row + 1])]

    def boxes_of(self, row: int) -> NDArray[np.int32]:
        """Tell where the patches of one image lie, ``(patch, 4)``."""
        return self.boxes[int(self.offset[row]) : int(self.offset[row + 1])]

    def select(self, chosen: NDArray[np.int64]) -> Pixels:
        """Give the same pixels with the images that failed left out of the numbering.

        Parameters
        ----------
        chosen
            Numbers of the images that stay, ascending; the others have no patch.
        """
        ends = np.concatenate([self.offset[:1], self.offset[1:][chosen]])
        return Pixels(
            plan=self.plan, folder=self.folder, offset=ends, boxes=self.boxes, digest=self.digest
        )


def _again(fields: dict[str, Any]) -> Pixels:
    return Pixels(**fields)


def read_pixels(
    cohort: Cohort,
    plan: PixelPlan,
    *,
    cache: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    threads: int = 1,
    progress: Progress = lambda *_: None,
) -> Pixels:
    """Decode the images of a cohort, or map what was decoded before.

    Parameters
    ----------
    cohort
        Images, read with ``check_files=True``: a changed file is decoded anew.
    plan
        What of them is wanted.
    cache
        Folder for local files; ``$HISTOSTORE_CACHE``, or the user's folder for caches.
    storage_options
        For the storage of the images.
    threads
        Images decoded at once.
    progress
        Told of images done, of how many, and which.

    Raises
    ------
    StorageError
        If the pixels do not fit on the disk, or cannot be written; or the images' storage refuses.
    """
    facts = _facts(cohort, plan)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    home = cache_folder(cache)
    folder = home / f"pixels-{digest[:32]}"
    try:
        found = _open(folder, plan)
        if found is None:
            _fill(folder, cohort, plan, digest, storage_options, threads, progress)
            found = _open(folder, plan)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cache {home}: {error.strerror or error}") from error
    if found is None:
        raise StorageError(f"cache {folder}: what was written cannot be read back")
    return found


def _facts(cohort: Cohort, plan: PixelPlan) -> dict[str, Any]:
    """Name everything that decides the pixels."""
    seen = [cohort.sources.get(url) for url in cohort.urls]
    told = zip(cohort.image_ids, cohort.urls, seen, cohort.mpp, strict=True)
    return {
        "version": _VERSION,
        **plan.to_json(),
        "images": [
            [name, public_url(url), *([None, None] if at is None else [at.size, at.version]), mpp]
            for name, url, at, mpp in told
        ],
    }


def _open(folder: Path, plan: PixelPlan) -> Pixels | None:
    """Map a folder; None where it is not there, or not as it was left."""
    try:
        told = json.loads((folder / "pixels.json").read_bytes())
        with np.load(folder / "places.npz", allow_pickle=False) as places:
            offset, boxes = places["offset"], places["boxes"]
        size = (folder / "pixels.bin").stat().st_size
    except (OSError, ValueError, KeyError):
        return None
    if size != int(offset[-1]) * plan.px * plan.px * 3:
        return None
    found = Pixels(
        plan=plan,
        folder=folder,
        offset=offset,
        boxes=boxes,
        digest=told["digest"],
        failed=told["failed"],
    )
    sums = [_checksum(found.rows[first:last]) for first, last in pairwise(offset.tolist())]
    return found if sums == told["checksums"] else None


def _checksum(rows: NDArray[np.uint8]) -> int:
    return int(google_crc32c.extend(0, rows.reshape(-1)))


def _fill(
    folder: Path,
    cohort: Cohort,
    plan: PixelPlan,
    digest: str,
    storage_options: Mapping[str, Any] | None,
    threads: int,
    progress: Progress,
) -> None:
    """Fill a hidden folder, then give it its name."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    hidden = folder.with_name(f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}")
    hidden.mkdir(mode=0o700)
    try:
        _decode(hidden, cohort, plan, digest, storage_options, threads, progress)
        if _open(folder, plan) is None:  # else another process was faster
            shutil.rmtree(folder, ignore_errors=True)
            hidden.rename(folder)
            flush(folder.parent)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _decode(
    folder: Path,
    cohort: Cohort,
    plan: PixelPlan,
    digest: str,
    storage_options: Mapping[str, Any] | None,
    threads: int,
    progress: Progress,
) -> None:
    """Write the pixels of all images in their order; no more is held than the threads work on."""

    def one(row: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]] | str:
        try:
            reader = open_image(cohort.urls[row], storage_options, cohort.mpp[row])
            with closing(reader):
                return plan.read(reader)
        except ImageError as error:
            return str(error)

    lengths, boxes, checksums, failed = [0], [np.empty((0, 4), np.int32)], [], {}
    with (folder / "pixels.bin").open("wb") as file, ThreadPoolExecutor(threads) as pool:
        step = 4 * threads
        for start in range(0, len(cohort), step):
            part = range(start, min(start + step, len(cohort)))
            for row, result in zip(part, pool.map(one, part), strict=True):
                name = cohort.image_ids[row]
                if isinstance(result, str):
                    failed[name] = result
                    result = np.empty((0, plan.px, plan.px, 3), np.uint8), boxes[0]  # noqa: PLW2901
                file.write(np.ascontiguousarray(result[0]).data)
                lengths.append(len(result[0]))
                boxes.append(result[1])
                checksums.append(_checksum(result[0]))
                progress(row + 1, len(cohort), name)
    offset = np.cumsum(lengths, dtype=np.int64)
    np.savez(folder / "places.npz", offset=offset, boxes=np.concatenate(boxes))
    document = {"digest": digest, "failed": failed, "checksums": checksums}
    (folder / "pixels.json").write_text(json.dumps(document), encoding="utf-8")
    for path in ("pixels.bin", "places.npz", "pixels.json", ""):
        flush(folder / path)
