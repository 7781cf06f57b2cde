"""Turns annotations into a label of the slide's pyramid, beside the model's own."""

from collections.abc import Sequence
from pathlib import Path

from wsi_pipeline.annotations.painting import Areas
from wsi_pipeline.classes import MaskClass
from wsi_pipeline.publishing import staged
from wsi_pipeline.pyramid import MaskPyramid, Pyramid


def label_areas(
    pyramid: Pyramid, areas: Areas, classes: Sequence[MaskClass], path: Path
) -> MaskPyramid:
    """Publish areas as a label on the grid of the pyramid's levels.

    Parameters
    ----------
    pyramid : Pyramid
        The slide's pixels.
    areas : Areas
        What to paint; where there is none, the label holds 0.
    classes : sequence of MaskClass
        All values that the areas have besides 255.
    path : Path
        Folder of the label; replaced if it is there.

    Raises
    ------
    ExportError
        If it cannot be written.

    Notes
    -----
    A pixel of any level has the value of the area that its centre lies in. Memory: one
    label shard (16 MB) and the areas, kept by going block by block.
    """
    with staged(path) as temporary:
        label = MaskPyramid.create(
            temporary,
            pyramid.source,
            int(pyramid.levels[0].downsample),
            classes,
            version=pyramid.version,
        )
        for index, level in enumerate(label.levels):
            for block in level.box.blocks(label.shard_px(index)):
                box = block.scaled_up(level.downsample)
                label.put(index, block, areas.paint(box, (block.w, block.h)))
    return MaskPyramid(path)
