"""What a row of the table of exporters is, and what it is given to write."""

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from wsi_pipeline.config import ExportOptions
from wsi_pipeline.exporters.accounts import Account, ClassArea
from wsi_pipeline.exporters.joining import Traced
from wsi_pipeline.exporters.labels import LabelSource
from wsi_pipeline.exporters.objects import Objects
from wsi_pipeline.exporters.pieces import Rules
from wsi_pipeline.exporters.polygons import trace_objects
from wsi_pipeline.exporters.sheet import Sheet
from wsi_pipeline.pyramid import MaskPyramid


@dataclass(frozen=True)
class Export:
    """A mask that is to be written.

    Parameters
    ----------
    masks : MaskPyramid
        The mask.
    source : LabelSource
        Its base, with what else is known of its pixels.
    options : ExportOptions
        Simplification, smallest sizes.
    sheet : Sheet
        What the file says of itself.
    workers : int
        Threads, 1 or more; the file is the same for any.
    tissue_mm2 : float or None
        Area of the slide's tissue, where it is known.
    coverage : MaskPyramid or None
        Label of what was done to each pixel, where it is known.
    """

    masks: MaskPyramid
    source: LabelSource
    options: ExportOptions
    sheet: Sheet
    workers: int
    tissue_mm2: float | None = None
    coverage: MaskPyramid | None = None

    def trace(self) -> Generator[Traced, None, None]:
        """Outlines of all objects; see `trace_objects`."""
        return trace_objects(
            self.source,
            self.masks.levels[0].box,
            _rules(self.masks, self.options),
            workers=self.workers,
        )


@dataclass(frozen=True)
class Exporter:
    """A row of the table.

    Parameters
    ----------
    file_name : str
        Of what it writes in a slide's folder; the ending stands for the format.
    title : str
        What the file is, for the report's reader.
    write : callable
        Writes an `Export` to a path; returns every class but the background.
    frame : "level0" or None
        The only frame that it writes; None where the options choose.
    is_packed : bool
        Whether the options may ask for .gz or .zip.
    """

    file_name: str
    title: str
    write: Callable[[Path, Export], tuple[ClassArea, ...]]
    frame: Literal["level0"] | None = None
    is_packed: bool = False

    @property
    def ending(self) -> str:
        """What names of such files end with, without .gz or .zip."""
        return self.file_name[self.file_name.index(".") :]


def of_objects(
    write: Callable[[Path, Iterable[Objects], Sheet], None],
) -> Callable[[Path, Export], tuple[ClassArea, ...]]:
    """What an `Exporter` needs, from a function that writes outlines.

    Notes
    -----
    Memory: see `trace_objects`; what is complete goes to the disk. Neighbours share
    their borders after simplification, too.
    """

    def write_export(path: Path, export: Export) -> tuple[ClassArea, ...]:
        account = Account(export.masks, export.sheet.frame)
        with closing(export.trace()) as traced:
            write(path, account.placed(traced), export.sheet)
        return account.classes()

    return write_export


def _rules(masks: MaskPyramid, options: ExportOptions) -> Rules:
    """The options in pixels of the mask."""
    pixel_um2 = masks.scale.area_um2
    # 1e-9 px absorbs the rounding of an area that is a whole number of pixels
    least = int(np.ceil(options.min_area_um2 / pixel_um2 - 1e-9))
    return Rules(
        max(1, least),
        options.min_hole_um2 / pixel_um2,
        options.simplify_um / masks.scale.mean,
    )
