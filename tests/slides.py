"""Small slides that tests write: pyramids in TIFF, whole-slide images in DICOM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import tifffile
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path


def scene(width: int, height: int) -> np.ndarray:
    """Paint smooth colours, of which every pixel tells where it lies."""
    y, x = np.mgrid[:height, :width]
    waves = 128 + 90 * np.sin(x / 60) * np.cos(y / 45)
    return np.stack([x * 255 / width, y * 255 / height, waves], axis=-1).astype(np.uint8)


def reduced(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Average boxes, cutting off what is left over, as scanners do."""
    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    whole = Image.fromarray(pixels[: height * factor, : width * factor])
    return np.asarray(whole.reduce(factor))


def write_pyramid(path: Path, base: np.ndarray, *factors: int, mpp: float | None = None) -> Path:
    """Write a tiled TIFF whose pages after the first are the same scene reduced."""
    scale = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": 3}
    with tifffile.TiffWriter(path) as writer:
        kind = {"photometric": "rgb", "tile": (64, 64), "compression": "zlib"}
        writer.write(base, **kind, **scale)
        for factor in factors:
            writer.write(reduced(base, factor), subfiletype=1, **kind)
    return path


def write_dicom(
    path: Path, pixels: np.ndarray, *, mpp: float = 0.5, tile: int = 32, series: str = "1.2.3"
) -> Path:
    """Write one level of a slide as DICOM does: uncompressed tiles, one frame each."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.sequence import Sequence
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    height, width = pixels.shape[:2]
    rows, columns = -(-height // tile), -(-width // tile)
    filled = np.full((rows * tile, columns * tile, 3), 255, np.uint8)
    filled[:height, :width] = pixels
    frames = filled.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2)
    slide, measures, functional = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [mpp / 1000, mpp / 1000]
    functional.PixelMeasuresSequence = Sequence([measures])
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = slide.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    meta.MediaStorageSOPInstanceUID = slide.SOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    slide.SeriesInstanceUID = series
    slide.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    slide.DimensionOrganizationType = "TILED_FULL"
    slide.TotalPixelMatrixColumns, slide.TotalPixelMatrixRows = width, height
    slide.SharedFunctionalGroupsSequence = Sequence([functional])
    slide.NumberOfFrames = rows * columns
    slide.Rows = slide.Columns = tile
    slide.SamplesPerPixel, slide.PhotometricInterpretation = 3, "RGB"
    slide.PlanarConfiguration, slide.PixelRepresentation = 0, 0
    slide.BitsAllocated = slide.BitsStored = 8
    slide.HighBit = 7
    slide.PixelData = np.ascontiguousarray(frames).tobytes()
    slide.file_meta = meta
    slide.save_as(path, enforce_file_format=True)
    return path
