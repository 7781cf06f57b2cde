"""Gigapixel histology slides in; slide-level masks and QuPath GeoJSON out.

The names below are the whole face of the package; each is imported when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi_pipeline.batch import run_batch as run_batch
    from wsi_pipeline.config import RunConfig as RunConfig
    from wsi_pipeline.demo import run_demo as run_demo
    from wsi_pipeline.errors import WsiError as WsiError
    from wsi_pipeline.exporters import export_masks as export_masks
    from wsi_pipeline.models.cards import find_model as find_model
    from wsi_pipeline.pipeline import run_slide as run_slide
    from wsi_pipeline.pyramid import open_pyramid as open_pyramid
    from wsi_pipeline.readers import open_slide as open_slide
    from wsi_pipeline.segmentation import segment_regions as segment_regions
    from wsi_pipeline.selection import select_patches as select_patches
    from wsi_pipeline.stitching import stitch_masks as stitch_masks
    from wsi_pipeline.tiling import tile_slide as tile_slide
    from wsi_pipeline.tissue import find_tissue as find_tissue

_FACE = {
    "open_slide": "readers",
    "tile_slide": "tiling",
    "open_pyramid": "pyramid",
    "find_tissue": "tissue",
    "find_model": "models.cards",
    "select_patches": "selection",
    "segment_regions": "segmentation",
    "stitch_masks": "stitching",
    "export_masks": "exporters",
    "run_slide": "pipeline",
    "run_batch": "batch",
    "run_demo": "demo",
    "RunConfig": "config",
    "WsiError": "errors",
}

__all__ = sorted(_FACE)


def __getattr__(name: str) -> Any:  # Any: whatever the face names (PEP 562)
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FACE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_FACE])
