"""The stage "segment" of a slide's folder."""

from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import Selection, Tissue
from wsi_pipeline.segmentation import segment_regions
from wsi_pipeline.stages import Published, SlideRun


def publish(run: SlideRun) -> Published:
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
        cache=folder.plans,
        key=run.key,
    )
    return [folder.predictions], facts | {"regions": len(store)}
