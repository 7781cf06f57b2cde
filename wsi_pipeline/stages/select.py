"""The stage "select" of a slide's folder."""

import logging

from wsi_pipeline.exporters.heatmap import export_heat_map
from wsi_pipeline.pictures import attention, publish_picture
from wsi_pipeline.pictures.top_patches import top_patches
from wsi_pipeline.publishing import staged
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import PatchGrid, Selection
from wsi_pipeline.resuming import LogitJournal
from wsi_pipeline.selection import select_patches
from wsi_pipeline.stages import Published, SlideRun

_log = logging.getLogger(__name__)
_LEAST_MASS = 0.5  # with less, most of what the selector looks at is not segmented


def publish(run: SlideRun) -> Published:
    """Pyramid, patches.parquet -> selection.parquet; heat map and pictures of it."""
    folder = run.folder
    pyramid = Pyramid(folder.pyramid)
    journal = LogitJournal(folder.journal, str(folder.record("tissue")))
    selection = select_patches(
        pyramid,
        PatchGrid.load(folder.patches),
        run.need_model(),
        run.config.select,
        progress=run.ticker("select"),
        journal=journal,
        cache=folder.plans,
    )
    with staged(folder.selection) as path:
        selection.save(path)
    journal.discard()
    export_heat_map(selection, pyramid.source, folder.heat_map, pyramid.version)
    publish_picture(folder.attention, attention(pyramid, selection))
    publish_picture(folder.top_patches, top_patches(pyramid, selection))
    facts = dict(selection.facts)
    facts |= {
        "patches": len(selection.grid),
        "chosen": int(selection.chosen.sum()),
        "captured_mass": selection.captured_mass,
        "warnings": _warnings(selection),
    }
    for warning in facts["warnings"]:
        _log.warning("%s: %s", folder.slide_id, warning)
    outputs = [folder.selection, folder.heat_map, folder.attention, folder.top_patches]
    return list(outputs), facts


def _warnings(selection: Selection) -> list[str]:
    """What a reader of the results should know."""
    mass, chosen = selection.captured_mass, int(selection.chosen.sum())
    if not chosen or mass >= _LEAST_MASS:
        return []
    return [
        f"the {chosen} chosen patches hold {100 * mass:.0f} % of the attention, less "
        "than half; choose more with --top-m"
    ]
