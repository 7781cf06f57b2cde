"""The stage "export" of a slide's folder."""

from dataclasses import asdict
from typing import Any

from wsi_pipeline.exporters import EXPORTERS, Exporter, export_masks
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import Selection
from wsi_pipeline.stages import Published, SlideRun
from wsi_pipeline.stages.detections import publish_detections


def publish(run: SlideRun) -> Published:
    """labels/<model> and selection.parquet -> segmentation.* and attention.geojson."""
    folder, options = run.folder, run.config.export
    card, tissue = run.need_model().card, folder.record("tissue")
    pyramid = Pyramid(folder.pyramid)
    rows: list[Exporter] = [EXPORTERS.load(name) for name in options.formats]
    for name in set(EXPORTERS.names()) - {*options.formats}:
        folder.keep_one_form(EXPORTERS.load(name).file_name, None)
    paths, files = [], []
    for row in rows:
        summary = export_masks(
            pyramid.masks(card.name),
            folder.path / row.file_name,
            options,
            slide_id=folder.slide_id,
            run={"model": card.name, "model_version": card.version},
            confidence=pyramid.masks("confidence"),
            selection=Selection.load(folder.selection),
            coverage=pyramid.masks("coverage"),
            tissue_mm2=tissue.facts["tissue_mm2"] if tissue else None,
            workers=run.config.tile.workers,
        )
        folder.keep_one_form(row.file_name, summary.path)
        paths.append(summary.path)
        files.append(asdict(summary) | {"path": summary.path.name})
    patches = publish_detections(run)
    facts: dict[str, Any] = {  # Any: JSON values
        "files": files,
        "detections": [patch.name for patch in patches],
    }
    return [*paths, *patches], facts
