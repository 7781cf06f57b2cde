"""The stage "export" of a slide's folder."""

from dataclasses import asdict

from wsi_pipeline.exporters import export_masks
from wsi_pipeline.publishing import remove
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.stages import Published, SlideRun
from wsi_pipeline.stages.detections import publish_detections


def publish(run: SlideRun) -> Published:
    """labels/<model> and selection.parquet -> segmentation and attention.geojson."""
    folder, options = run.folder, run.config.export
    card = run.need_model().card
    suffix = ".geojson.gz" if options.gzip else ".geojson"
    path = folder.path / f"segmentation{suffix}"
    for old in folder.path.glob("segmentation.geojson*"):
        if old != path:
            remove(old)
    pyramid = Pyramid(folder.pyramid)
    summary = export_masks(
        pyramid.masks(card.name),
        path,
        options,
        slide_id=folder.slide_id,
        run={"model": card.name, "model_version": card.version},
        confidence=pyramid.masks("confidence"),
    )
    patches = publish_detections(run)
    facts = {"path": path.name, "detections": [patch.name for patch in patches]}
    return [path, *patches], asdict(summary) | facts
