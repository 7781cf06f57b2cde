"""A slide with known truth, the pipeline run on it, and how well the two agree."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_pipeline.batch import BatchHooks, run_batch
from wsi_pipeline.config import ExportOptions, RunConfig
from wsi_pipeline.errors import WsiError
from wsi_pipeline.evaluation import MaskScores, evaluate_masks
from wsi_pipeline.exporters import export_masks
from wsi_pipeline.models.cards import find_model
from wsi_pipeline.process import cpu_count
from wsi_pipeline.pyramid import MaskPyramid, Pyramid
from wsi_pipeline.results import SlideFolder
from wsi_pipeline.stages import Progress
from wsi_pipeline.synthetic import write_slide

DEMO_MODEL = "synthetic"
DEMO_MEGAPIXELS = 24.0


@dataclass(frozen=True)
class DemoOutcome:
    """What the demo made.

    Parameters
    ----------
    folder : SlideFolder
        The slide's results.
    scores : MaskScores
        Masks against the truth.
    seconds : float
        From the finished slide to the finished report.
    """

    folder: SlideFolder
    scores: MaskScores
    seconds: float

    def text(self) -> str:
        """The outcome for a person: scores, then where everything is."""
        lines = [
            f"mIoU {self.scores.miou:.3f} against the truth on "
            f"{self.scores.computed_share:.0%} of the slide, {self.seconds:.0f} s",
            *(f"  {name:<14} IoU {iou:.3f}" for name, iou in self.scores.iou.items()),
            f"GeoJSON  {self.folder.path / 'segmentation.geojson'}",
            f"masks    {self.folder.label(DEMO_MODEL)}",
            f"picture  {self.folder.overlay}",
            f"report   {self.folder.path.parent / 'report.html'}",
        ]
        return "\n".join(lines)


def run_demo(
    out: Path,
    *,
    seed: int = 8,
    megapixels: float = DEMO_MEGAPIXELS,
    progress: Progress | None = None,
) -> DemoOutcome:
    """Write a synthetic slide, run the shipped model on all of it, compare.

    Parameters
    ----------
    out : Path
        Folder for ``slide.tif``, its truth and ``results/``.
    seed : int
        Seed of the slide; training used 10000 and above.
    megapixels : float
        Size of the slide's level 0.
    progress : callable, optional
        Called with (stage, done, total).

    Raises
    ------
    WsiError
        If the slide did not go through.
    """
    slide, truth, *_ = write_truthful_slide(
        out / "slide.tif", seed=seed, megapixels=megapixels
    )
    config = RunConfig().updated("segment", coverage="all")
    start = time.perf_counter()
    result = run_batch(
        [slide],
        out / "results",
        find_model(DEMO_MODEL),
        config,
        hooks=BatchHooks(stage=progress),
    )
    seconds = time.perf_counter() - start
    outcome = result.outcomes[0]
    if outcome.manifest.status != "done":
        raise WsiError(f"the demo failed: {outcome.manifest.reason}")
    folder = SlideFolder(out / "results" / outcome.manifest.slide_id)
    masks = Pyramid(folder.pyramid).masks(DEMO_MODEL)
    return DemoOutcome(folder, evaluate_masks(masks, MaskPyramid(truth)), seconds)


def write_truthful_slide(
    path: Path, *, workers: int = 0, geojson: bool = True, **options: Any
) -> tuple[Path, ...]:
    """Write a synthetic slide with its truth as label pyramid and as GeoJSON.

    Parameters
    ----------
    path : Path
        The slide, ``.tif`` or ``.tiff``.
    workers : int
        Processes that paint; 0 = one per CPU.
    geojson : bool
        Write the outlines too.
    **options
        As for :func:`wsi_pipeline.synthetic.write_slide`.

    Returns
    -------
    tuple of Path
        Slide, truth pyramid (``.truth.ome.zarr``) and, where wanted, truth GeoJSON.

    Notes
    -----
    Memory: painting is flat; the outlines of objects that go on beyond what was
    traced are held, 30 bytes per vertex.
    """
    slide = write_slide(path, workers=workers or cpu_count(), **options)
    if not geojson:
        return slide.slide_path, slide.truth_path
    truth = MaskPyramid(slide.truth_path)
    outlines = path.with_name(f"{path.stem}.truth.geojson")
    exact = ExportOptions(simplify_um=0, min_area_um2=0, min_hole_um2=0)
    export_masks(truth, outlines, exact, slide_id=path.stem, run={"truth": "exact"})
    return slide.slide_path, slide.truth_path, outlines
