"""Each act applied to a slide's folder: read one artefact, publish the next."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wsi_pipeline.classes import COARSELY, IN_DETAIL, NO_TISSUE, SKIPPED
from wsi_pipeline.cluster import client_of
from wsi_pipeline.config import RunConfig
from wsi_pipeline.errors import ConfigError, SlideError
from wsi_pipeline.exporters import export_masks
from wsi_pipeline.models.cards import OWN_LABELS, ModelFolder
from wsi_pipeline.pictures import attention, overlay, publish_picture, thumbnail
from wsi_pipeline.publishing import remove, sha256_file, staged
from wsi_pipeline.pyramid import MaskPyramid, Pyramid
from wsi_pipeline.readers import open_slide
from wsi_pipeline.regions import PatchGrid, RegionStore, Selection, Tissue
from wsi_pipeline.results import SlideFolder
from wsi_pipeline.segmentation import segment_regions
from wsi_pipeline.selection import select_patches
from wsi_pipeline.slide import Slide
from wsi_pipeline.stitching import stitch_masks
from wsi_pipeline.tiling import tile_slide
from wsi_pipeline.tissue import find_tissue, label_tissue, lay_patches

_TOO_COARSE = 8  # a slide this many times coarser than its model is refused

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""
Published = tuple[list[Path], dict[str, Any]]
"""What a stage wrote, and the facts for its record (JSON values)."""


@dataclass(frozen=True)
class SlideJob:
    """One slide to work on.

    Parameters
    ----------
    slide_id : str
        Name of its results folder, ``[A-Za-z0-9._-]``.
    path : Path
        The slide.
    mpp : float, optional
        um/px of level 0 from the samplesheet.
    tissue : Path, optional
        The user's tissue mask for this slide.
    """

    slide_id: str
    path: Path
    mpp: float | None = None
    tissue: Path | None = None

    def open(self, config: RunConfig) -> Slide:
        """Open the slide with the scale from the samplesheet or the config.

        Raises
        ------
        SlideError
            If it cannot be opened; MissingScaleError if nobody knows its scale.
        """
        if self.mpp is not None:
            return open_slide(self.path, mpp=self.mpp, mpp_source="samplesheet")
        return open_slide(self.path, mpp=config.mpp, mpp_source="--mpp")


@dataclass(frozen=True)
class SlideRun:
    """A slide's folder with all that its stages need.

    Parameters
    ----------
    folder : SlideFolder
        Where results go.
    config : RunConfig
        Options of all acts.
    model : ModelFolder or None
        Needed from "tissue" on.
    job : SlideJob or None
        Needed by "tile" only.
    progress : callable, optional
        Called with (stage, done, total).
    """

    folder: SlideFolder
    config: RunConfig
    model: ModelFolder | None = None
    job: SlideJob | None = None
    progress: Progress | None = None

    def ticker(self, stage: str) -> Callable[[int, int], None]:
        """Progress of one stage."""

        def tick(done: int, total: int) -> None:
            if self.progress:
                self.progress(stage, done, total)

        return tick

    def need_model(self) -> ModelFolder:
        """The model.

        Raises
        ------
        ConfigError
            If none was given.
        """
        if self.model is None:
            raise ConfigError("this stage needs --model")
        return self.model


def publish_tile(run: SlideRun) -> Published:
    """Slide -> slide.ome.zarr and thumbnail.png."""
    if run.job is None:
        raise ConfigError("tiling needs a slide")
    folder, options = run.folder, run.config.tile
    base_mpp = run.model.card.finest_mpp if run.model else None
    with run.job.open(run.config) as slide:
        info = slide.info
        if base_mpp and info.scale.mean > base_mpp * _TOO_COARSE:
            raise SlideError(
                f"{info.path.name}: has {info.scale.mean:.3g} um/px, the model needs "
                f"{base_mpp:.3g}; there is not enough detail to go by"
            )
        with client_of(options.scheduler, options.workers) as client:
            pyramid = tile_slide(
                slide,
                folder.pyramid,
                options,
                base_mpp=base_mpp,
                client=client,
                progress=run.ticker("tile"),
            )
    publish_picture(folder.thumbnail, thumbnail(pyramid))
    facts = {
        **pyramid.source.to_json(),
        "backend": info.backend,
        "vendor": info.vendor,
        "compression": info.compression,
        "base_downsample": int(pyramid.levels[0].downsample),
        "levels": len(pyramid.levels),
        "warnings": list(info.warnings),
    }
    return [folder.pyramid, folder.thumbnail], facts


def publish_tissue(run: SlideRun) -> Published:
    """Pyramid -> tissue.png, labels/tissue and patches.parquet."""
    folder, options = run.folder, run.config.tissue
    part = run.need_model().card.selector
    pyramid = Pyramid(folder.pyramid)
    tissue = find_tissue(pyramid, options)
    grid = lay_patches(tissue, pyramid.source.size_px, part.patch_px, part.mpp, options)
    with staged(folder.tissue) as path:
        tissue.save(path)
    label_tissue(pyramid, tissue, folder.label("tissue"))
    pyramid.publish_labels_list()
    with staged(folder.patches) as path:
        grid.save(path)
    facts: dict[str, Any] = {
        "tissue_mm2": tissue.area_um2 / 1e6,
        "patches": len(grid),
    }
    if options.mask is not None:
        facts["mask_sha256"] = sha256_file(options.mask)
    return [folder.tissue, folder.label("tissue"), folder.patches], facts


def publish_select(run: SlideRun) -> Published:
    """Pyramid and patches.parquet -> selection.parquet and attention.png."""
    folder = run.folder
    pyramid = Pyramid(folder.pyramid)
    selection = select_patches(
        pyramid,
        PatchGrid.load(folder.patches),
        run.need_model(),
        run.config.select,
        progress=run.ticker("select"),
    )
    with staged(folder.selection) as path:
        selection.save(path)
    publish_picture(folder.attention, attention(pyramid, selection))
    facts = dict(selection.facts)
    facts |= {
        "chosen": int(selection.chosen.sum()),
        "captured_mass": selection.captured_mass,
    }
    return [folder.selection, folder.attention], facts


def publish_segment(run: SlideRun) -> Published:
    """Pyramid, selection and tissue -> predictions.zarr."""
    folder = run.folder
    store, facts = segment_regions(
        Pyramid(folder.pyramid),
        Selection.load(folder.selection),
        Tissue.load(folder.tissue),
        run.need_model(),
        folder.predictions,
        run.config.segment,
        progress=run.ticker("segment"),
    )
    return [folder.predictions], facts | {"regions": len(store)}


def publish_stitch(run: SlideRun) -> Published:
    """predictions.zarr -> labels/<model>, labels/coverage and overlay.png."""
    folder, model = run.folder, run.need_model()
    pyramid = Pyramid(folder.pyramid)
    tissue = Tissue.load(folder.tissue)
    name = model.card.name
    masks = stitch_masks(
        pyramid,
        RegionStore(folder.predictions),
        tissue,
        model.card.mask_classes,
        folder.label(name),
        folder.label("coverage"),
        run.config.stitch,
        confidence_path=folder.label("confidence"),
        facts={"model": name, "segmenter_sha256": model.card.segmenter.sha256},
        progress=run.ticker("stitch"),
    )
    for label in pyramid.labels_path.iterdir():
        if label.is_dir() and label.name not in (name, *OWN_LABELS):
            remove(label)  # of another model
    pyramid.publish_labels_list()
    publish_picture(folder.overlay, overlay(pyramid, masks))
    facts = _areas(masks) | _shares(pyramid.masks("coverage"))
    labels = [folder.label(label) for label in (name, "coverage", "confidence")]
    return [*labels, folder.overlay], facts


def publish_export(run: SlideRun) -> Published:
    """labels/<model> -> segmentation.geojson."""
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
    return [path], asdict(summary) | {"path": path.name}


def _areas(masks: MaskPyramid) -> dict[str, Any]:
    """Area per class in mm2, and pixels per value."""
    pixels = masks.count_pixels()
    areas = {
        c.name: pixels.get(c.value, 0) * masks.scale.area_um2 / 1e6
        for c in masks.classes
    }
    return {"area_mm2": areas, "pixels": {str(k): v for k, v in pixels.items()}}


def _shares(coverage: MaskPyramid) -> dict[str, Any]:
    """Share of the tissue that was segmented, by how."""
    pixels = coverage.count_pixels()
    tissue = sum(v for k, v in pixels.items() if k != NO_TISSUE)
    names = {"in_detail": IN_DETAIL, "coarsely": COARSELY, "skipped": SKIPPED}
    return {
        f"share_{name}": pixels.get(value, 0) / tissue if tissue else 0.0
        for name, value in names.items()
    }
