"""The stage "tissue" of a slide's folder."""

from typing import Any

from wsi_pipeline.features import digest_features
from wsi_pipeline.publishing import sha256_file, staged
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.readability import check_readable
from wsi_pipeline.stages import Published, SlideRun
from wsi_pipeline.tissue import find_tissue, label_tissue, lay_patches


def publish(run: SlideRun) -> Published:
    """Pyramid -> tissue.png, labels/tissue and patches.parquet.

    Where features are given, the patches are those of their file, on whatever tissue
    its maker found; the mask then only says where something is reported.
    """
    folder, options = run.folder, run.config.tissue
    part = run.need_model().card.selector
    pyramid, file = Pyramid(folder.pyramid), run.open_features()
    source = pyramid.source
    tissue = find_tissue(pyramid, options)
    if file is None:
        grid = lay_patches(tissue, source.size_px, part.patch_px, part.mpp, options)
    else:
        grid = file.grid(part.patch_px, part.mpp, source.scale, source.size_px)
    share = check_readable(pyramid, tissue, options)
    with staged(folder.tissue) as path:
        tissue.save(path)
    label_tissue(pyramid, tissue, folder.label("tissue"))
    pyramid.publish_labels_list()
    with staged(folder.patches) as path:
        grid.save(path)
    facts: dict[str, Any] = {
        "tissue_mm2": tissue.area_um2 / 1e6,
        "patches": len(grid),
        "unreadable_share": share,
    }
    if options.mask is not None:
        facts["mask_sha256"] = sha256_file(options.mask)
    if file is not None:
        facts["features_sha256"] = digest_features(file.path)
    return [folder.tissue, folder.label("tissue"), folder.patches], facts
