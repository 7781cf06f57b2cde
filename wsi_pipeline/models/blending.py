"""Blends overlapping regions and chooses the likeliest class of each pixel."""

import importlib.util
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_pipeline.classes import CERTAIN
from wsi_pipeline.models.footprints import BAND_PX, Band, Part, Raster, lay_bands
from wsi_pipeline.models.meshes import MIXED, NO_REGION, Mesh, build_meshes
from wsi_pipeline.models.sampling import read_nodes
from wsi_pipeline.regions import RegionPrediction

if TYPE_CHECKING:
    from wsi_pipeline.models.spans import Place, Spans

_log = logging.getLogger(__name__)
_NOTHING = np.empty((0, 0), np.float32)


class Blender:
    """Regions of a block, to be read at pixels of any raster.

    Parameters
    ----------
    regions : sequence of RegionPrediction
        With boxes in base pixels; as many nodes and classes each, MIXED at most.
    device : str
        "cpu" walks along the meshes' lines and solves only what its nodes do not tell;
        on a GPU, and where a mesh is irregular, every pixel is solved.

    Notes
    -----
    Memory: 33 + 4 c bytes per node for c classes; while a raster of width W is read,
    4 c W BAND_PX bytes of sums and 1.5 MB per region on a band, or, where every pixel
    is solved, four times the sums on the device.
    """

    def __init__(
        self, regions: Sequence[RegionPrediction], device: str = "cpu"
    ) -> None:
        self._regions = regions
        self._device = torch.device(device)
        self._meshes: list[Mesh] | None = None
        if self._device.type == "cpu" and _has_numba():
            self._meshes = build_meshes(regions)

    def choose(
        self,
        raster: Raster,
        best: NDArray[np.uint8],
        kinds: NDArray[np.uint8],
        sure: NDArray[np.uint8] | None = None,
    ) -> None:
        """Choose the likeliest class of each pixel, the lowest where classes tie.

        Parameters
        ----------
        raster : Raster
            Of H x W pixels.
        best : (H, W) uint8 array
            Holds OFF_TISSUE or NO_REGION; the latter becomes a class where a region is.
        kinds : (H, W) uint8 array
            Gets DETAIL or COARSE, whichever weighs more, where a region is.
        sure : (H, W) uint8 array, optional
            Gets 254 * probability of the class where there is one; every pixel is then
            solved.
        """
        boxes = [region.box for region in self._regions]
        names = [region.kind for region in self._regions]
        walker = None
        for band in lay_bands(boxes, names, raster):
            if not band.parts:
                continue
            kinds[band.rows] = band.kinds
            here = best[band.rows]
            answers = None if sure is None else sure[band.rows]
            if self._meshes is None:
                self._read(band, raster.step, here, answers)
                continue
            if walker is None:
                walker = _Walker(self._meshes, raster, every=sure is not None)
            walker.walk(band, here, answers)

    def _read(
        self,
        band: Band,
        step: int,
        best: NDArray[np.uint8],
        sure: NDArray[np.uint8] | None,
    ) -> None:
        """Solve every pixel of a band."""
        m, width = best.shape
        classes = len(self._regions[0].probabilities)
        total = torch.zeros(classes, m, width, device=self._device)
        covered = np.zeros((m, width), np.bool_)
        for part in band.parts:
            region = self._regions[part.footprint.region]
            columns = slice(part.left, part.right)
            xs, ys = (
                side.places(pixels, step) / max(2 * side.reach, 1) + 0.5
                for side, pixels in (
                    (part.footprint.x, columns),
                    (part.footprint.y, band.rows),
                )
            )
            found = read_nodes(region.probabilities, region.grid, xs, ys, self._device)
            weight = part.weigh(band.rows)
            total[..., columns] += found * torch.from_numpy(weight).to(self._device)
            covered[:, columns] |= weight > 0
        most, which = total.max(dim=0)
        covered &= best == NO_REGION
        np.copyto(best, which.to(torch.uint8).cpu().numpy(), where=covered)
        if sure is not None:
            share = most / total.sum(dim=0).clamp_min(1e-12)
            answers = (CERTAIN * share.clamp(0, 1)).round().to(torch.uint8)
            np.copyto(sure, answers.cpu().numpy(), where=covered)


class _Walker:
    """Walks along the lines of meshes, band by band."""

    def __init__(self, meshes: Sequence[Mesh], raster: Raster, *, every: bool) -> None:
        from wsi_pipeline.models import solving, spans  # Numba takes 0.3 s

        self._spans, self._solving = spans, solving
        self._step = raster.step
        if every:
            mixed = np.full_like(meshes[0].pure, MIXED)
            meshes = [mesh._replace(pure=mixed) for mesh in meshes]
        self._meshes = meshes
        classes = meshes[0].values.shape[1]
        self._total = np.zeros((BAND_PX * raster.box.w, classes), np.float32)

    def walk(
        self, band: Band, best: NDArray[np.uint8], sure: NDArray[np.uint8] | None
    ) -> None:
        """Choose the classes of a band."""
        answers = np.empty((0, 0), np.uint8) if sure is None else sure
        laid = [self._lay(band, part, best) for part in band.parts]
        for mesh, place, spans in laid:
            self._solving.solve_region(mesh, place, spans, best, self._total, answers)
        self._solving.settle(best, self._total, answers)

    def _lay(
        self, band: Band, part: Part, best: NDArray[np.uint8]
    ) -> tuple[Mesh, "Place", "Spans"]:
        """Cut a part of a region into spans and lay their classes."""
        mesh = self._meshes[part.footprint.region]
        place = self._place(band, part, mesh)
        h, w = mesh.nodes.shape[1:]
        most = len(best) * (w + h)  # enough as a rule
        while True:
            spans = self._spans.Spans.empty(len(best), most)
            if self._spans.lay_region(mesh, place, spans, best):
                return mesh, place, spans
            most *= 2

    def _place(self, band: Band, part: Part, mesh: Mesh) -> "Place":
        x, y = part.footprint.x, part.footprint.y
        low, high = mesh.extent
        first_own, last_own = 0, len(low) - 1
        if part.own_left > part.left:
            edge = part.own_left * self._step + x.shift
            first_own = int(np.searchsorted(low, edge))
        if part.own_right < part.right:
            edge = part.own_right * self._step + x.shift
            last_own = int(np.searchsorted(high, edge, side="right")) - 1
        return self._spans.Place(
            part.left,
            part.right,
            part.own_left,
            part.own_right,
            first_own,
            last_own,
            float(self._step),
            x.shift,
            x.reach,
            y.places(band.rows, self._step),
            x.weights_of(slice(part.left, part.right)),
            y.weights_of(band.rows),
            _NOTHING if part.share is None else part.share,
        )


def _has_numba() -> bool:
    if importlib.util.find_spec("numba") is None:
        _log.warning("without the package numba, stitching takes ten times as long")
        return False
    return True
