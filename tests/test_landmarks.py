"""Known points of a slide in what is exported: tiling, label and file keep them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import openslide
import orjson
import pyarrow.parquet as pq
import pytest
import shapely
import tifffile
from numpy.typing import NDArray

from tests.slides import NumberSlide, info_of
from wsi_pipeline.classes import MaskClass
from wsi_pipeline.config import ExportOptions
from wsi_pipeline.exporters import export_masks
from wsi_pipeline.geometry import Box
from wsi_pipeline.pyramid import MaskPyramid
from wsi_pipeline.readers import open_slide
from wsi_pipeline.slide import Slide
from wsi_pipeline.tiling import tile_slide

type Pixels = NDArray[np.uint8]

SIZE, TILE, MPP = (1601, 1203), 112, 0.25
# odd corners and sizes, at blocks' borders, at the slide's far corner
LANDMARKS = (
    Box(113, 225, 41, 37), Box(497, 300, 37, 55), Box(1001, 491, 53, 41),
    Box(700, 901, 83, 33), Box(1500, 1001, 61, 61), Box(1560, 1161, 41, 42),
)  # fmt: skip
CLASSES = (MaskClass(0, "Ground", (255,) * 3), MaskClass(1, "Mark", (9, 0, 200)))
SPARSE = Box(112, 224, 1489, 979)
"""What is left of a slide whose first tiles are missing."""


def painted() -> Pixels:
    """Dark squares on pale pink."""
    image = np.full((SIZE[1], SIZE[0], 3), (238, 215, 230), np.uint8)
    for box in LANDMARKS:
        image[box.rows, box.columns] = 70, 30, 110
    return image


def write_tiff(path: Path, levels: int = 1, *, sparse: bool = False) -> Path:
    with tifffile.TiffWriter(path) as file:
        for index in range(levels):
            file.write(
                painted()[:: 2**index, :: 2**index],
                photometric="rgb",
                tile=(TILE, TILE),
                compression="adobe_deflate",
                subfiletype=min(index, 1),
                resolution=(1e4 / MPP, 1e4 / MPP),
                resolutionunit="centimeter",
                metadata=None,
            )
    if sparse:
        with tifffile.TiffFile(path, mode="r+") as file:
            tag, across = file.pages.first.tags["TileByteCounts"], -(-SIZE[0] // TILE)
            gone = (
                at % across < SPARSE.x // TILE or at // across < SPARSE.y // TILE
                for at in range(len(tag.value))
            )
            tag.overwrite([0 if g else n for g, n in zip(gone, tag.value, strict=True)])
    return path


@dataclass(frozen=True)
class Mirax(NumberSlide):
    """A slide with bounds at any pixel, as MIRAX slides have them."""

    def read(self, box: Box, level: int = 0) -> Pixels:
        return painted()[box.rows, box.columns]


def open_mirax(_: Path) -> Slide:
    info = info_of(SIZE, MPP)
    return Mirax(replace(info, bounds=Box(101, 203, 1499, 999)))


SLIDES: dict[str, tuple[Callable[[Path], Slide], tuple[int, int]]] = {
    "plain": (lambda p: open_slide(write_tiff(p, 3)), (0, 0)),
    "single level": (lambda p: open_slide(write_tiff(p)), (0, 0)),
    "sparse": (lambda p: open_slide(write_tiff(p, sparse=True)), (0, 0)),
    "sparse, bounds of OpenSlide": (
        lambda p: open_slide(write_tiff(p, sparse=True), backend="openslide"),
        (SPARSE.x, SPARSE.y),
    ),
    "bounds as of MIRAX": (open_mirax, (101, 203)),
}
"""How a slide is opened, and where QuPath's frame starts."""


def label_of(slide: Slide, folder: Path) -> MaskPyramid:
    """The landmarks on the slide's pyramid at half its resolution."""
    pyramid = tile_slide(slide, folder / "s.ome.zarr", base_mpp=2 * MPP)
    assert pyramid.levels[0].downsample == 2
    path = pyramid.labels_path / "marks"
    masks = MaskPyramid.create(path, pyramid.source, 2, CLASSES)
    for block in masks.levels[0].box.blocks(masks.shard_px(0)):
        dark = pyramid.read_level(block, 0).mean(axis=0) < 140
        masks.put(0, block, dark.astype(np.uint8))
    return masks


@pytest.mark.parametrize("frame", ["qupath", "level0"])
@pytest.mark.parametrize("kind", SLIDES)
def test_landmarks_come_out_within_a_pixel_in_the_stated_frame(
    tmp_path: Path, kind: str, frame: str
) -> None:
    opener, corner = SLIDES[kind]
    with opener(tmp_path / "s.tif") as slide:
        masks = label_of(slide, tmp_path)
    options = ExportOptions(simplify_um=0, min_area_um2=0, min_hole_um2=0, frame=frame)
    offset = corner if frame == "qupath" else (0, 0)
    wanted = {
        tuple(np.array([b.x, b.y, b.right, b.bottom]) - (offset * 2)) for b in LANDMARKS
    }
    for name in ("a.geojson", "a.parquet"):
        found = export_masks(masks, tmp_path / name, options, slide_id="s")
        assert (found.frame, found.offset_px) == (frame, offset)
        bounds = shapely.bounds(outlines(found.path))
        assert len(bounds) == len(wanted)
        for box in wanted:
            assert np.abs(bounds - box).max(axis=1).min() <= 1


def outlines(path: Path) -> NDArray[np.object_]:
    """Outlines as a program reads them that knows nothing of frames."""
    if path.suffix == ".parquet":
        rows = pq.read_table(path)["geometry"].to_pylist()
        return np.asarray(shapely.from_wkb(rows))
    document = orjson.loads(path.read_bytes())
    assert document["wsi_pipeline"]["mpp"] == [MPP, MPP]
    texts = [orjson.dumps(row["geometry"]).decode() for row in document["features"]]
    return np.asarray(shapely.from_geojson(texts))


def test_bounds_of_the_sparse_slide_are_those_that_openslide_tells(
    tmp_path: Path,
) -> None:
    path = write_tiff(tmp_path / "s.tif", sparse=True)
    with openslide.OpenSlide(path) as slide:
        told = [
            int(slide.properties[f"openslide.bounds-{side}"])
            for side in ("x", "y", "width", "height")
        ]
    assert Box(*told) == SPARSE
    with open_slide(path, backend="openslide") as ours:
        assert ours.info.bounds == SPARSE
