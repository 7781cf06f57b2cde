"""The stage "select" of a slide's folder."""

from wsi_pipeline.pictures import attention, publish_picture
from wsi_pipeline.publishing import staged
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import PatchGrid
from wsi_pipeline.selection import select_patches
from wsi_pipeline.stages import Published, SlideRun


def publish(run: SlideRun) -> Published:
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
