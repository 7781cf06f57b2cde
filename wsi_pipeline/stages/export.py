"""The stage "export" of a slide's folder."""

from dataclasses import asdict

from wsi_pipeline.exporters import export_masks
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.stages import Published, SlideRun
from wsi_pipeline.stages.detections import publish_detections

_NAME = "segmentation.geojson"


def publish(run: SlideRun) -> Published:
    """labels/<model> and selection.parquet -> segmentation and attention.geojson."""
    folder, options = run.folder, run.config.export
    card = run.need_model().card
    pyramid = Pyramid(folder.pyramid)
    summary = export_masks(
        pyramid.masks(card.name),
        folder.path / _NAME,
        options,
        slide_id=folder.slide_id,
        run={"model": card.name, "model_version": card.version},
        confidence=pyramid.masks("confidence"),
        workers=run.config.tile.workers,
    )
    folder.keep_one_form(_NAME, summary.path)
    patches = publish_detections(run)
    facts = {"path": summary.path.name, "detections": [patch.name for patch in patches]}
    return [summary.path, *patches], asdict(summary) | facts
