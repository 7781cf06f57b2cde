"""OME-Zarr pyramids of images and masks: create, open, read, write.

Metadata and the layout of arrays come from ngff.py.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import dask.array as da
import numpy as np
import zarr
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.arrays import open_array, read_box
from wsi_pipeline.classes import NOT_COMPUTED, MaskClass
from wsi_pipeline.errors import PyramidError
from wsi_pipeline.geometry import Box, Level, Scale
from wsi_pipeline.label_blocks import coarsen, count_values, write_block
from wsi_pipeline.layout import LABEL_CHUNK_PX, LABEL_SHARD_PX, Layout
from wsi_pipeline.ngff import (
    Source,
    Version,
    image_documents,
    label_documents,
    labels_documents,
    level_sizes,
    read_attributes,
)
from wsi_pipeline.places import Place, as_place, explain, remote_errors
from wsi_pipeline.publishing import drafted, publish_bytes


class Multiscale:
    """What image and mask pyramids share: levels, frame, and the group on disk.

    Parameters
    ----------
    path : Path or UPath
        Folder of the OME-Zarr group. Handles are picklable: only the path is kept.

    Raises
    ------
    PyramidError
        If the folder holds no pyramid written by this package.
    """

    def __init__(self, path: Place) -> None:
        self.path = path
        try:
            self.version, attributes = read_attributes(path)
            facts = attributes["wsi_pipeline"]
            self.source = Source.from_json(facts["source"])
            base = int(facts["base_downsample"])
            self.levels = tuple(
                Level((w, h), float(base * 2**i))
                for i, (w, h) in enumerate(facts["level_sizes_px"])
            )
            self.unreadable = tuple(Box(*row) for row in facts.get("unreadable", ()))
            """Tiles of the slide that could not be decoded, level-0 pixels."""
            self._label = attributes.get("image-label")
        except remote_errors() as error:
            why = explain(path, error)
            raise PyramidError(f"{path}: no OME-Zarr there ({why})") from error
        except (KeyError, TypeError, ValueError) as error:
            raise PyramidError(
                f"{path}: not a pyramid of this package ({error!r}); "
                "`wsi tile` writes one"
            ) from error

    @property
    def scale(self) -> Scale:
        """um/px of the base (level 0 of the pyramid, not of the slide)."""
        return self.source.scale.coarser(self.levels[0].downsample)

    def level(self, index: int) -> da.Array:
        """A level as a lazy uint8 array, (3, y, x) or (y, x)."""
        lazy: da.Array = da.from_array(
            self.array(index), chunks=self.array(index).chunks
        )
        return lazy

    def array(self, index: int) -> Any:  # Any: zarr's indexing is untyped
        """A level as an open zarr array for reading."""
        return open_array(self.path / str(index), "r")

    def read_level(self, box: Box, level: int) -> NDArray[np.uint8]:
        """Read a box given on the level's own grid, clipped to it.

        Returns
        -------
        (..., h, w) uint8 array
            With the size of the clipped box.

        Raises
        ------
        PyramidError
            If a chunk of it is lost or damaged, or was never written.
        """
        inside = self.levels[level].box.intersect(box)
        return read_box(self.array(level), inside, self.path / str(level))

    def put(self, level: int, box: Box, data: NDArray[np.uint8]) -> None:
        """Write a box given on the level's own grid; whole shards only.

        Raises
        ------
        PyramidError
            If the box does not start and end at shard borders or the level's edge:
            two tasks that share a shard would lose each other's work.
        """
        array = open_array(self.path / str(level), "r+")
        shard = array.shards[-1] if array.shards else array.chunks[-1]
        w, h = self.levels[level].size_px
        aligned = (
            box.x % shard == 0
            and box.y % shard == 0
            and (box.right % shard == 0 or box.right == w)
            and (box.bottom % shard == 0 or box.bottom == h)
        )
        if not aligned:
            raise PyramidError(
                f"{self.path}/{level}: {box} does not end at {shard} px shard borders"
            )
        array[..., box.rows, box.columns] = data

    def shard_px(self, level: int) -> int:
        """Side of a shard of a level: the unit that one task writes."""
        array = self.array(level)
        return int(array.shards[-1] if array.shards else array.chunks[-1])

    def level_for(self, mpp: float) -> int:
        """Coarsest level that is not coarser than `mpp` (within 1 %), else 0."""
        mean = self.source.scale.mean
        fits = [
            i for i, v in enumerate(self.levels) if v.downsample * mean <= mpp * 1.01
        ]
        return fits[-1] if fits else 0


class Pyramid(Multiscale):
    """An RGB image pyramid, (c, y, x) uint8, each level half the one below."""

    @classmethod
    def create(
        cls, path: Place, source: Source, base_downsample: int, layout: Layout
    ) -> Self:
        """Write metadata and empty arrays.

        Parameters
        ----------
        path : Path or UPath
            Folder that does not exist yet, as `staged` yields it.
        base_downsample : int
            Level-0 pixels per pixel of the pyramid's base, a power of two.
        layout : Layout
            Chunks, shards and codecs.

        References
        ----------
        OME-Zarr 0.5 and 0.4, sections "multiscales" and "omero".
        """
        sizes = level_sizes(source.size_px, base_downsample)
        documents = image_documents(layout.version, source, base_downsample, sizes)
        with drafted(path, documents) as folder:
            group = create_group(folder, documents)
            for index, size in enumerate(sizes):
                layout.create_level(group, index, size)
            pyramid = cls(folder)
        pyramid.path = path
        return pyramid

    def read(
        self, box: Box, mpp: float, size_px: tuple[int, int] | None = None
    ) -> NDArray[np.uint8]:
        """Read a level-0 box at a given scale, area-averaged from the level above it.

        Parameters
        ----------
        box : Box
            Level-0 pixels; parts outside the slide come back white.
        mpp : float
            um/px wanted; decides the level.
        size_px : tuple of int, optional
            (width, height) to return; left out, the box's size at `mpp`.

        Returns
        -------
        (3, h, w) uint8 array
        """
        index = self.level_for(mpp)
        factor = self.levels[index].downsample
        if size_px is None:
            ratio = self.source.scale.mean / mpp
            size_px = max(1, round(box.w * ratio)), max(1, round(box.h * ratio))
        outer = box.scaled_down(factor)
        pixels = self.read_padded(outer, index)
        inner = (
            box.x / factor - outer.x,
            box.y / factor - outer.y,
            box.right / factor - outer.x,
            box.bottom / factor - outer.y,
        )
        w, h = size_px
        if (outer.w, outer.h) == size_px and inner == (0.0, 0.0, float(w), float(h)):
            return pixels
        image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        resized = image.resize(size_px, Image.Resampling.BILINEAR, box=inner)
        return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))

    def read_padded(self, box: Box, level: int) -> NDArray[np.uint8]:
        """Read a box on the level's own grid; outside the level it is white.

        Returns
        -------
        (3, h, w) uint8 array
        """
        inside = self.levels[level].box.intersect(box)
        if inside == box:
            return self.read_level(box, level)
        out = np.full((3, box.h, box.w), 255, np.uint8)
        if inside.area_px:
            place = inside.shift(-box.x, -box.y)
            out[:, place.rows, place.columns] = self.read_level(inside, level)
        return out

    @property
    def labels_path(self) -> Place:
        """Folder of the label images that belong to this pyramid."""
        return self.path / "labels"

    def publish_labels_list(self) -> None:
        """Rewrite the list of labels from the folders there are."""
        folder = self.labels_path
        folder.mkdir(exist_ok=True)
        file = "zarr.json" if self.version == "0.5" else ".zattrs"
        names = sorted(p.name for p in folder.iterdir() if (p / file).exists())
        for name, content in labels_documents(self.version, names).items():
            publish_bytes(folder / name, content)

    def masks(self, name: str) -> "MaskPyramid":
        """A label image of this pyramid by name."""
        return MaskPyramid(self.labels_path / name)


class MaskPyramid(Multiscale):
    """A label pyramid, (y, x) uint8, on the grid of an image pyramid's levels."""

    def __init__(self, path: Place) -> None:
        super().__init__(path)
        label = self._label
        if label is None:
            raise PyramidError(f"{path}: an image, not a mask")
        colours = {c["label-value"]: tuple(c["rgba"][:3]) for c in label["colors"]}
        self.classes = tuple(
            MaskClass(p["label-value"], p["name"], colours[p["label-value"]])
            for p in label["properties"]
            if p["label-value"] != NOT_COMPUTED
        )

    @cached_property
    def _layout(self) -> Layout:
        shards = self.array(0).shards
        side = shards[-1] if shards else LABEL_SHARD_PX
        return Layout.of_label(self.version, side)

    @classmethod
    def create(
        cls,
        path: Path,
        source: Source,
        base_downsample: int,
        classes: Iterable[MaskClass],
        facts: dict[str, Any] | None = None,
        *,
        version: Version = "0.5",
        levels: int | None = None,
        block_px: int = LABEL_SHARD_PX,
    ) -> Self:
        """Write metadata and empty arrays whose fill value is 255, not computed.

        Parameters
        ----------
        path : Path
            Folder that does not exist yet.
        classes : iterable of MaskClass
            All values that the mask may hold besides 255.
        facts : dict, optional
            JSON values to keep beside (model name and sha256).
        version : "0.5" or "0.4"
            OME-Zarr version, that of the image it belongs to.
        levels : int, optional
            Left out, until the longer side is at most 512 px.
        block_px : int
            Side of what `fill` writes at once.

        References
        ----------
        OME-Zarr 0.5 and 0.4, section "labels" (image-label, colors, properties): as
        many levels as the image.
        """
        rows = tuple(classes)
        sizes = level_sizes(source.size_px, base_downsample, levels)
        documents = label_documents(
            version, source, base_downsample, sizes, rows, facts or {}
        )
        group = create_group(path, documents)
        layout = Layout.of_label(version, block_px)
        for index, size in enumerate(sizes):
            layout.create_level(group, index, size)
        made = cls(path)
        made._layout = layout
        return made

    def fill(
        self, level: int, block: Box, values: NDArray[np.uint8]
    ) -> NDArray[np.int64]:
        """Write a block and its share of coarser levels; see `write_block`.

        Returns
        -------
        (256,) int64 array
            Pixels of the block per value.
        """
        return write_block(self.path, self.levels, self._layout, level, block, values)

    def write_coarser(self, *, filled: bool = False, workers: int = 1) -> None:
        """Write levels from those below them; see `coarsen`.

        Parameters
        ----------
        filled : bool
            Whether the base was written by `fill`, with the first coarser levels.
        workers : int
            Threads.
        """
        layout = self._layout
        first = layout.depth if filled else 1
        coarsen(self.levels, layout, first, workers, self.read_level, self.fill)

    def count_pixels(self) -> dict[int, int]:
        """Pixels per value on the base, 255 included, values that occur only."""
        totals = np.zeros(256, np.int64)
        for block in self.levels[0].box.blocks(LABEL_CHUNK_PX):
            totals += count_values(self.read_level(block, 0))
        return {int(v): int(totals[v]) for v in np.flatnonzero(totals)}


def open_pyramid(path: Place | str) -> Pyramid:
    """Open the image pyramid that `tile_slide` wrote.

    Parameters
    ----------
    path : Path, UPath or str
        Its folder, or a URL (``s3://``, ``gs://``, ``https://``).

    Raises
    ------
    PyramidError
        If the folder holds none.
    ConfigError
        If it is a URL whose package is not installed.
    """
    return Pyramid(as_place(path))


def create_group(path: Path, documents: Mapping[str, bytes]) -> zarr.Group:
    """Write a group's metadata files, as ngff.py gives them, and open it."""
    for name, content in documents.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return zarr.open_group(path, mode="r+")
