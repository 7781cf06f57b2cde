"""The stage "select" of a slide's folder."""

import logging
from functools import partial
from typing import Any

from wsi_pipeline.exporters.heatmap import export_heat_map
from wsi_pipeline.geometry import Scale
from wsi_pipeline.pictures import attention, publish_picture
from wsi_pipeline.pictures.top_patches import top_patches
from wsi_pipeline.publishing import make_folder, staged
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import PatchGrid, Selection
from wsi_pipeline.resuming import LogitJournal
from wsi_pipeline.selection import select_from, select_patches
from wsi_pipeline.stages import Published, SlideRun

_log = logging.getLogger(__name__)
_LEAST_MASS = 0.5  # with less, most of what the selector looks at is not segmented


def publish(run: SlideRun) -> Published:
    """Pyramid or features, patches.parquet -> selection.parquet, heat map, pictures."""
    folder = run.folder
    pyramid = Pyramid(folder.pyramid)
    grid, file = PatchGrid.load(folder.patches), run.open_features()
    make_folder(folder.journal.parent)
    journal = LogitJournal(folder.journal, str(folder.record("tissue")))
    if file is None:
        select = partial(select_patches, pyramid, grid)
    else:  # the file's own scale where it has one: so places were in training
        mpp = file.level0_mpp
        scale = Scale(mpp, mpp) if mpp else pyramid.source.scale
        select = partial(select_from, file, grid, scale)
    selection = select(
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
    words = _screen_warnings(selection.facts)
    if chosen and mass < _LEAST_MASS:
        words.append(
            f"the {chosen} chosen patches hold {100 * mass:.0f} % of the attention, "
            "less than half; choose more with --top-m"
        )
    return words


def _screen_warnings(facts: dict[str, Any]) -> list[str]:
    screen, words = facts.get("screen"), []
    if screen is None:
        return []
    top_m, slides = facts["top_m"], screen["calibrated_slides"]
    if screen["fraction"] == 1:
        words.append(
            f"the screen rejected no patch: what it lost on the {slides} slides of its "
            f"calibration does not vouch for a recall of {screen['recall']:g}; ask for "
            "less, or train it on more slides (`wsi train screen`)"
        )
    if screen["calibrated_top_m"] != top_m:
        words.append(
            f"the screen was calibrated for the top {screen['calibrated_top_m']} "
            f"patches, not for {top_m}: nobody knows whether it holds a recall of "
            f"{screen['recall']:g}"
        )
    if screen["recall_estimate"] < screen["recall"]:
        missed = screen["missed"]
        words.append(
            f"{missed['found']} of {screen['audited']} patches drawn from those that "
            f"the screen rejected are better than the last one chosen: about "
            f"{missed['estimate']:g} of the top {top_m} were missed, {missed['low']} "
            f"to {missed['high']}; ask for more with --screen, or set it off"
        )
    return words
