"""The stage "tile" of a slide's folder."""

from wsi_pipeline.errors import ConfigError, SlideError
from wsi_pipeline.pictures import publish_picture, thumbnail
from wsi_pipeline.stages import Published, SlideRun
from wsi_pipeline.tiling import plan_tiling, tile_slide

_TOO_COARSE = 8  # a slide this many times coarser than its model is refused


def publish(run: SlideRun) -> Published:
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
        pyramid = tile_slide(
            slide,
            folder.pyramid,
            options,
            base_mpp=base_mpp,
            pool=run.workers.pool_for(info) if run.workers else None,
            progress=run.ticker("tile"),
            key=run.key,
        )
    publish_picture(folder.thumbnail, thumbnail(pyramid))
    facts = {
        **pyramid.source.to_json(),
        "backend": info.backend,
        "vendor": info.vendor,
        "compression": info.compression,
        "base_downsample": int(pyramid.levels[0].downsample),
        "levels": len(pyramid.levels),
        "tiles": info.tile_count,
        "unreadable_tiles": len(pyramid.unreadable),
        "warnings": list(info.warnings),
    }
    note = plan_tiling(info, options, base_mpp).note
    if note:
        facts["note"] = note
    return [folder.pyramid, folder.thumbnail], facts
