"""The file attention.geojson of a slide's folder, which two verbs write."""

from pathlib import Path

from wsi_pipeline.exporters.detections import export_detections
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import Selection
from wsi_pipeline.stages import SlideRun

_NAME = "attention.geojson"
_OPTIONS = ("detections", "frame", "gzip", "zip")


def publish_detections(run: SlideRun) -> list[Path]:
    """selection.parquet -> attention.geojson, or nothing of that name.

    Returns
    -------
    list of Path
        The file, where one was asked for.

    Notes
    -----
    The stage "export" writes it, so that another frame or form asks for no new scores.
    The verb `wsi select` does so too, for those who stop there; where an export with
    other options is there already, it no longer counts as published.
    """
    folder, options = run.folder, run.config.export
    card = run.need_model().card
    exported = folder.record("export")
    asked = {name: getattr(options, name) for name in _OPTIONS}
    # an export of before an option was there lacks it
    if exported and any(exported.options.get(k) != v for k, v in asked.items()):
        folder.withdraw(["export"])
    path = export_detections(
        Selection.load(folder.selection),
        Pyramid(folder.pyramid).source,
        folder.path / _NAME,
        options,
        slide_id=folder.slide_id,
        run={"model": card.name, "model_version": card.version},
    )
    folder.keep_one_form(_NAME, path)
    return [path] if path else []
