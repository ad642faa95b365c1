"""Slides as four scanners lay them out, small, written by tests from what OpenSlide documents of them."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import tifffile
from PIL import Image

from tests.slides import reduced

if TYPE_CHECKING:
    from pathlib import Path

TILE = 64
_TILED = {"photometric": "rgb", "tile": (TILE, TILE), "compression": "zlib", "metadata": None}


def write_scn(path: Path, base: np.ndarray, *, mpp: float, margin: int = 32) -> Path:
    """Write a Leica slide: the scanned part, two levels of it, amid glass of ``margin`` px."""
    height, width = base.shape[:2]
    nm = round(mpp * 1000)  # the format's unit of length
    levels = [base, reduced(base, 4)]
    dimensions = "".join(
        f'<dimension sizeX="{level.shape[1]}" sizeY="{level.shape[0]}" r="{k}" ifd="{k}"/>'
        for k, level in enumerate(levels)
    )
    description = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection sizeX="{(width + 2 * margin) * nm}" sizeY="{(height + 2 * margin) * nm}">'
        f'<barcode/><image><view sizeX="{width * nm}" sizeY="{height * nm}"'
        f' offsetX="{margin * nm}" offsetY="{margin * nm}"/><pixels>{dimensions}</pixels>'
        "<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings>"
        "<illuminationSettings><illuminationSource>brightfield</illuminationSource>"
        "</illuminationSettings></scanSettings></image></collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for level, text in zip(levels, (description, None), strict=True):
            scale = (1e4 / mpp * level.shape[1] / width,) * 2
            writer.write(level, **_TILED, description=text, resolution=scale, resolutionunit=3)
    return path


def write_bif(path: Path, base: np.ndarray, *, mpp: float) -> Path:
    """Write a Ventana slide: two levels, tiles in the serpentine order of its table of joints."""
    across, down = base.shape[1] // TILE, base.shape[0] // TILE
    number = {}  # from the bottom up, every other row from right to left
    for row in range(down):
        for column in range(across):
            place = column if row % 2 == 0 else across - 1 - column
            number[place, down - 1 - row] = row * across + column + 1
    pairs = [(at, (at[0] + 1, at[1]), "RIGHT") for at in number]
    pairs += [(at, (at[0], at[1] - 1), "UP") for at in number]
    joints = "".join(
        f'<TileJointInfo FlagJoined="1" Confidence="100" Direction="{way}" Tile1="{number[one]}"'
        f' Tile2="{number[other]}" OverlapX="0" OverlapY="0"/>'
        for one, other, way in pairs
        if other in number
    )
    places = "".join(
        f'<Frame XY="{x},{y}" Z="0" Focus="0"/>' for x, y in sorted(number, key=number.__getitem__)
    )
    encoded = (
        '<?xml version="1.0"?><EncodeInfo Ver="2"><SlideStitchInfo>'
        f'<ImageInfo AOIScanned="1" AOIIndex="0" NumRows="{down}" NumCols="{across}" Width="{TILE}"'
        f' Height="{TILE}" Pos-X="0" Pos-Y="0">{joints}</ImageInfo></SlideStitchInfo><FrameInfo>'
        f'<AOI AOIIndex="0">{places}</AOI></FrameInfo>'
        '<AoiOrigin><AOI0 OriginX="0" OriginY="0"/></AoiOrigin></EncodeInfo>'
    )
    scanner = (
        '<?xml version="1.0"?><Metadata><iScan Magnification="20" ScanRes="'
        f'{mpp}" Z-layers="1" ScannerModel="VENTANA iScan HT"/></Metadata>'
    )
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for level, factor in enumerate((1, 2)):
            packets = [(700, 1, len(text), text.encode(), False) for text in [encoded][: 1 - level]]
            if level == 0:
                label = np.full((32, 32, 3), 255, np.uint8)
                packet = (700, 1, len(scanner), scanner.encode(), False)
                writer.write(
                    label,
                    photometric="rgb",
                    metadata=None,
                    description="Label_Image",
                    extratags=[packet],
                )
            text = f"level={level} mag={20 / factor:g} quality=90"
            writer.write(
                reduced(base, factor) if level else base,
                **_TILED,
                description=text,
                extratags=packets,
            )
    return path


def write_ndpi(path: Path, base: np.ndarray, *, mpp: float) -> Path:
    """Write a Hamamatsu slide: a JPEG per level, cut into tiles by restart markers."""
    content = bytearray(b"II*\0" + bytes(8))  # 64 bits for offsets of directories, as in no TIFF
    link = 4
    for factor in (1, 2):
        pixels = base if factor == 1 else reduced(base, factor)
        jpeg = BytesIO()
        Image.fromarray(pixels).save(
            jpeg, "JPEG", quality=95, subsampling=0, restart_marker_blocks=8
        )
        start = len(content)
        content += jpeg.getvalue()
        per_cm = len(content)
        content += struct.pack("<II", round(1e4 / (mpp * factor)), 1)
        model = len(content)
        content += b"Hamamatsu\0"
        content += bytes(len(content) % 2)
        tags = [
            *((256, 4, 1, pixels.shape[1]), (257, 4, 1, pixels.shape[0]), (259, 3, 1, 7)),
            *(
                (262, 3, 1, 6),
                (271, 2, 10, model),
                (273, 4, 1, start),
                (277, 3, 1, 3),
                (278, 4, 1, pixels.shape[0]),
            ),
            *((279, 4, 1, len(jpeg.getvalue())), (282, 5, 1, per_cm), (283, 5, 1, per_cm)),
            *((296, 3, 1, 3), (65420, 4, 1, 1), (65421, 11, 1, 20 / factor), (65424, 9, 1, 0)),
        ]
        struct.pack_into("<Q", content, link, len(content))
        content += struct.pack("<H", len(tags))
        for tag, kind, count, value in tags:
            content += struct.pack("<HHI" + ("f" if kind == 11 else "I"), tag, kind, count, value)
        link = len(content)
        content += bytes(8 + 4 * len(tags))  # no next one; upper halves of the values
    path.write_bytes(content)
    return path


def write_mrxs(path: Path, base: np.ndarray, *, mpp: float) -> Path:
    """Write a 3DHISTECH slide: a table of JPEG tiles beside it, two levels of them."""
    folder = path.with_suffix("")
    folder.mkdir()
    path.write_bytes(b"a preview stands here")
    across, down = base.shape[1] // TILE, base.shape[0] // TILE
    identity, data, pages = "0" * 32, bytearray(), []
    for zoom in (0, 1):
        pixels, step = (reduced(base, 2), 2) if zoom else (base, 1)
        entries = []
        for row in range(0, down, step):
            for column in range(0, across, step):
                x, y = column // step * TILE, row // step * TILE
                tile = np.full((TILE, TILE, 3), 255, np.uint8)
                part = pixels[y : y + TILE, x : x + TILE]
                tile[: part.shape[0], : part.shape[1]] = part
                jpeg = BytesIO()
                Image.fromarray(tile).save(jpeg, "JPEG", quality=95, subsampling=0)
                entries.append((row * across + column, len(data), len(jpeg.getvalue()), 0))
                data += jpeg.getvalue()
        pages.append(entries)
    (folder / "Data0000.dat").write_bytes(data)
    # Roots of what is a level and what is not, a pointer to a list per level, lists, pages.
    index = bytearray(b"01.02" + identity.encode() + bytes(8))
    roots = len(index)
    index += bytes(4 * len(pages))
    struct.pack_into("<ii", index, 37, roots, len(index))
    index += bytes(4)
    for zoom, entries in enumerate(pages):
        struct.pack_into("<i", index, roots + 4 * zoom, len(index))
        index += struct.pack("<iiii", 0, len(index) + 8, len(entries), 0)
        for entry in entries:
            index += struct.pack("<iiii", *entry)
    (folder / "Index.dat").write_bytes(index)
    levels = "".join(
        f"HIER_0_VAL_{zoom} = ZoomLevel_{zoom}\nHIER_0_VAL_{zoom}_SECTION = LAYER_0_LEVEL_{zoom}\n"
        for zoom in (0, 1)
    )
    sections = "".join(
        f"[LAYER_0_LEVEL_{zoom}]\nOVERLAP_X = 0\nOVERLAP_Y = 0\nMICROMETER_PER_PIXEL_X = {mpp * 2**zoom}\n"
        f"MICROMETER_PER_PIXEL_Y = {mpp * 2**zoom}\nIMAGE_FORMAT = JPEG\nIMAGE_FILL_COLOR_BGR = 16777215\n"
        f"DIGITIZER_WIDTH = {TILE}\nDIGITIZER_HEIGHT = {TILE}\nIMAGE_CONCAT_FACTOR = {zoom}\n"
        for zoom in (0, 1)
    )
    (folder / "Slidedat.ini").write_text(
        f"[GENERAL]\nSLIDE_VERSION = 01.02\nSLIDE_ID = {identity}\nIMAGENUMBER_X = {across}\nIMAGENUMBER_Y = {down}\n"
        "OBJECTIVE_MAGNIFICATION = 20\nCameraImageDivisionsPerSide = 1\n"
        f"[HIERARCHICAL]\nHIER_COUNT = 1\nHIER_0_NAME = Slide zoom level\nHIER_0_COUNT = 2\n{levels}"
        "NONHIER_COUNT = 0\nINDEXFILE = Index.dat\n"
        f"[DATAFILE]\nFILE_COUNT = 1\nFILE_0 = Data0000.dat\n{sections}"
    )
    return path
