"""Finds what of a slide has no result, by its coverage label, and says so in QuPath."""

from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsi_pipeline.annotations.classing import REGION
from wsi_pipeline.classes import ACCOUNTED_FOR, MaskClass
from wsi_pipeline.exporters.accounts import Account, ClassArea
from wsi_pipeline.exporters.labels import LabelSource
from wsi_pipeline.exporters.objects import Objects
from wsi_pipeline.exporters.pieces import Rules
from wsi_pipeline.exporters.polygons import trace_objects
from wsi_pipeline.exporters.sheet import Frame, Sheet
from wsi_pipeline.pyramid import MaskPyramid

SPECK_UM2 = 2500.0
"""Smaller areas are left out and smaller gaps in them filled: a square of 50 um, less
than a lost tile of 256 px at 0.25 um/px.
"""
_REGION_RGB = 0, 0, 180  # QuPath's own, which it shows whatever a file says


@dataclass(frozen=True)
class Unexamined:
    """What of a slide has no result.

    Parameters
    ----------
    kinds : tuple of MaskClass
        Values of the coverage label for it, their names and colours.
    objects : tuple of Objects
        Its outlines in the file's frame.
    areas : tuple of ClassArea
        What was found, and left out, of each kind.
    """

    kinds: tuple[MaskClass, ...]
    objects: tuple[Objects, ...]
    areas: tuple[ClassArea, ...]

    def facts(self) -> dict[str, Any]:
        """JSON values for the head of the file."""
        return {
            "smallest_um2": SPECK_UM2,
            **{
                area.name: {
                    "annotations": area.objects,
                    "area_um2": round(area.written_um2, 3),
                    "left_out_um2": round(area.dropped_um2, 3),
                }
                for area in self.areas
            },
        }

    def properties(self, sheet: Sheet) -> dict[int, dict[str, Any]]:
        """Of the features by value, without measurements.

        QuPath fills no annotation of its class "Region*", whatever the viewer's
        settings, and trains on none; so that is their class, and their names say what
        they are.

        References
        ----------
        QuPath 0.7 ``PathClass.StandardPathClasses.REGION``, ``PathObjectPainter``.
        """
        run = {"metadata": dict(sheet.run)} if sheet.run else {}
        return {
            kind.value: {
                "objectType": "annotation",
                "name": kind.name,
                "color": list(kind.rgb),
                "classification": {"name": REGION, "color": list(_REGION_RGB)},
                "isLocked": True,
                **run,
            }
            for kind in self.kinds
        }


def find_unexamined(
    coverage: MaskPyramid, frame: Frame, simplify_um: float, workers: int
) -> Unexamined:
    """Outline whatever the coverage label counts neither as glass nor as segmented.

    Parameters
    ----------
    coverage : MaskPyramid
        The label.
    frame : Frame
        Of the file.
    simplify_um : float
        Tolerance of simplified outlines, um.
    workers : int
        Threads.

    Raises
    ------
    ExportError
        If the label holds a value that is no class of it.

    Notes
    -----
    Memory: see `trace_objects`, and 16 bytes per vertex of all outlines.
    """
    pixel_um2 = coverage.scale.area_um2
    rules = Rules(
        max(1, int(np.ceil(SPECK_UM2 / pixel_um2))),
        SPECK_UM2 / pixel_um2,
        simplify_um / coverage.scale.mean,
    )
    source = LabelSource(coverage, hidden=ACCOUNTED_FOR)
    account = Account(coverage, frame)
    whole = coverage.levels[0].box
    with closing(trace_objects(source, whole, rules, workers=workers)) as traced:
        objects = tuple(account.placed(traced))
    kinds = [kind for kind in coverage.classes if kind.value not in ACCOUNTED_FOR]
    values = {kind.value for kind in kinds}
    areas = (area for area in account.classes() if area.value in values)
    return Unexamined(tuple(kinds), objects, tuple(areas))
