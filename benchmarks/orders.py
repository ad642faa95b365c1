"""Other orders of work than ours, over the same images, patches and networks.

Both read by this project's readers, from the corners of its grid, so that what differs is the order and the arithmetic, not the
decoder. Neither is anybody's code: the second does the steps that TRIDENT's ``run_batch_of_slides``
does, in its order and formats (files between steps; one patch at a time to a tensor; float32, the
network as it comes; features as HDF5 in chunks of one row).
"""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from histostore.grid import PatchGrid
from histostore.images.levels import read_square
from histostore.images.readers import open_image

if TYPE_CHECKING:
    from pathlib import Path

    from histostore.images.readers import Reader


def corners(reader: Reader, patch: int) -> np.ndarray:
    """Top-left corners of an image's patches, row by row: ``(patch, 2)`` as x, y."""
    placement = PatchGrid(patch).place(reader.width_px, reader.height_px)
    return np.stack([placement.x, placement.y], axis=1)


def straight_loop(urls, encoder, patch: int, folder: Path) -> None:
    """Read, crop, encode and ``np.savez``, image by image."""
    for number, url in enumerate(urls):
        with closing(open_image(url)) as reader:
            coords = corners(reader, patch)
            pixels = np.stack([read_square(reader, x, y, patch, patch) for x, y in coords.tolist()])
        parts = [
            encoder.encode(pixels[start : start + encoder.batch_size])
            for start in range(0, len(pixels), encoder.batch_size)
        ]
        np.savez(folder / f"{number}.npz", features=np.concatenate(parts), coords=coords)


class OnePatchEach:
    """Patches of one slide as tensors, opened anew in every worker."""

    def __init__(self, url: str, coords: np.ndarray, patch: int, transform) -> None:
        self.url, self.coords, self.patch, self.transform = url, coords, patch, transform
        self.reader = None

    def __len__(self) -> int:
        return len(self.coords)

    def close(self) -> None:
        """Close the slide, where this process opened it."""
        if self.reader is not None:
            self.reader.close()

    def __getitem__(self, row: int):
        from PIL import Image

        self.reader = self.reader or open_image(self.url)
        x, y = map(int, self.coords[row])
        pixels = read_square(self.reader, x, y, self.patch, self.patch)
        return self.transform(Image.fromarray(pixels)), self.coords[row]


def step_by_step(url: str, network, transform, patch: int, folder: Path) -> int:
    """Segment; coordinates to a file; patches from workers; forward; features to a file."""
    import h5py
    import torch

    with closing(open_image(url)) as reader:
        thumbnail = reader.thumbnail(1024)
        grey = thumbnail.mean(axis=2)
        np.save(folder / "tissue.npy", grey < np.percentile(grey, 90))
        origins = corners(reader, patch)
    with h5py.File(folder / "coords.h5", "w") as file:
        file["coords"] = origins
    with h5py.File(folder / "coords.h5") as file:
        coords = file["coords"][:]
    cores = len(os.sched_getaffinity(0))
    patches = OnePatchEach(url, coords, patch, transform)
    loader = torch.utils.data.DataLoader(
        patches,
        batch_size=64,
        # On two cores workers cost more than they give.
        num_workers=0 if cores <= 2 else min(cores, 8),
    )
    features = []
    for pixels, _ in loader:
        with torch.inference_mode():
            features.append(network(pixels).numpy())
    patches.close()
    rows = np.concatenate(features)
    with h5py.File(folder / "features.h5", "w") as file:
        chunks = (1, rows.shape[1])
        file.create_dataset("features", data=rows, chunks=chunks, maxshape=(None, rows.shape[1]))
        file["coords"] = coords
    return len(rows)
