"""The stage "stitch" of a slide's folder."""

from collections.abc import Mapping
from typing import Any

from wsi_pipeline.classes import COARSELY, IN_DETAIL, NO_TISSUE, SKIPPED, UNREADABLE
from wsi_pipeline.models.cards import OWN_LABELS
from wsi_pipeline.pictures import overlay, publish_picture
from wsi_pipeline.publishing import remove
from wsi_pipeline.pyramid import MaskPyramid, Pyramid
from wsi_pipeline.region_store import RegionStore
from wsi_pipeline.regions import Tissue
from wsi_pipeline.stages import Published, SlideRun
from wsi_pipeline.stitching import stitch_masks


def publish(run: SlideRun) -> Published:
    """predictions.zarr -> labels/<model>, labels/coverage and overlay.png."""
    folder, model = run.folder, run.need_model()
    pyramid = Pyramid(folder.pyramid)
    tissue = Tissue.load(folder.tissue)
    name = model.card.name
    found = stitch_masks(
        pyramid,
        RegionStore(folder.predictions),
        tissue,
        model.card.mask_classes,
        folder.label(name),
        folder.label("coverage"),
        run.config.stitch,
        confidence_path=folder.label("confidence"),
        facts={"model": name, "segmenter_sha256": model.card.need_segmenter().sha256},
        workers=run.config.tile.workers,
        progress=run.ticker("stitch"),
    )
    for label in pyramid.labels_path.iterdir():
        if label.is_dir() and label.name not in (name, *OWN_LABELS):
            remove(label)  # of another model
    pyramid.publish_labels_list()
    publish_picture(folder.overlay, overlay(pyramid, found.masks))
    facts = _areas(found.masks, found.pixels) | _shares(found.coverage)
    labels = [folder.label(label) for label in (name, "coverage", "confidence")]
    return [*labels, folder.overlay], facts


def _areas(masks: MaskPyramid, pixels: Mapping[int, int]) -> dict[str, Any]:
    """Area per class in mm2, and pixels per value."""
    areas = {
        c.name: pixels.get(c.value, 0) * masks.scale.area_um2 / 1e6
        for c in masks.classes
    }
    return {"area_mm2": areas, "pixels": {str(k): v for k, v in pixels.items()}}


def _shares(pixels: Mapping[int, int]) -> dict[str, Any]:
    """Share of the tissue that was segmented, by how."""
    tissue = sum(v for k, v in pixels.items() if k != NO_TISSUE)
    names = {
        "in_detail": IN_DETAIL,
        "coarsely": COARSELY,
        "skipped": SKIPPED,
        "unreadable": UNREADABLE,
    }
    return {
        f"share_{name}": pixels.get(value, 0) / tissue if tissue else 0.0
        for name, value in names.items()
    }
