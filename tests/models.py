"""Small nets with random weights, for tests that need no good answers."""

from pathlib import Path

import torch
from torch import nn

from wsi_pipeline.models.calibration import Calibration, MissTable
from wsi_pipeline.models.cards import (
    ClassCard,
    ModelCard,
    ModelFolder,
    ScreenCard,
    SegmenterCard,
    SelectorCard,
    write_card,
)
from wsi_pipeline.models.density import DensityNet
from wsi_pipeline.models.segmenter import SegmentNet
from wsi_pipeline.models.selector import SelectorNet
from wsi_pipeline.models.spec import SegmenterSpec
from wsi_pipeline.models.weights import save_state

CLASSES = (
    ClassCard(value=0, name="Background", rgb=(255, 255, 255)),
    ClassCard(value=1, name="One", rgb=(0, 158, 115)),
    ClassCard(value=2, name="Two", rgb=(213, 94, 0)),
)


_ARMS = "learned", "uniform"


def small_spec(
    nodes: int | tuple[int, int] = 16,
    strategies: tuple[str, ...] = _ARMS,
    *,
    resizer: str = "",
) -> SegmenterSpec:
    """A spec with few channels and nodes."""
    return SegmenterSpec(
        len(CLASSES),
        nodes=nodes,
        widths=(8, 12),
        density_widths=(4, 8),
        sigma=0.1,
        strategies=strategies,
        resizer=resizer,
    )


def small_model(
    folder: Path,
    *,
    mpp: float = 1.0,
    region_px: int = 128,
    strategies: tuple[str, ...] = _ARMS,
    seed: int = 0,
) -> ModelFolder:
    """Write a model folder; its density net is not even, its selector is absent."""
    spec = small_spec(strategies=strategies)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        arms = nn.ModuleDict({s: SegmentNet(spec, s) for s in strategies})
        for arm in arms.values():
            for part in arm.modules():
                if isinstance(part, DensityNet):
                    nn.init.normal_(part.net.head.weight, std=50.0)
    segmenter = SegmenterCard(
        sha256=save_state(arms, folder / "segmenter.safetensors"),
        mpp=mpp,
        region_px=region_px,
        nodes=spec.shape[0],
        architecture=spec.to_json(),
        training={},
        metrics={},
    )
    card = ModelCard(
        name="small",
        version="1",
        summary="random weights",
        intended_use="tests",
        limits="knows nothing",
        licence="Apache-2.0",
        data="none",
        classes=CLASSES,
        selector=SelectorCard(
            sha256="0" * 64,
            mpp=mpp,
            patch_px=64,
            top_m=4,
            tasks=("one",),
            architecture={},
            training={},
            metrics={},
        ),
        segmenter=segmenter,
    )
    write_card(folder, card)
    return ModelFolder(folder, card)


def selector_model(
    folder: Path, net: SelectorNet, *, patch_px: int, top_m: int, mpp: float
) -> ModelFolder:
    """Write a model folder of a selector alone."""
    card = ModelCard(
        name="selects",
        version="1",
        summary="random weights",
        intended_use="tests",
        limits="all",
        licence="Apache-2.0",
        data="none",
        classes=CLASSES[:1],
        selector=SelectorCard(
            sha256=save_state(net, folder / "selector.safetensors"),
            mpp=mpp,
            patch_px=patch_px,
            top_m=top_m,
            tasks=net.tasks,
            architecture=net.shape.to_json(),
            training={},
            metrics={},
        ),
    )
    write_card(folder, card)
    return ModelFolder(folder, card)


def calibration_of(
    missed: dict[float, float], slides: int = 99, top_m: int = 9
) -> Calibration:
    """What was lost by the fraction that was kept; nothing where all were."""
    whole = missed | {1.0: 0.0}
    table = MissTable(
        top_m=top_m,
        missed=tuple(whole.values()),
        kept=tuple(whole),
    )
    return Calibration(slides=slides, fractions=tuple(whole), tables=(table,))


def with_screen(
    model: ModelFolder,
    folder: Path,
    net: SelectorNet,
    *,
    calibration: Calibration,
    factor: int = 2,
) -> ModelFolder:
    """Write the model of a selector alone once more, with a screen."""
    own = model.card.selector
    (folder / own.file).write_bytes((model.path / own.file).read_bytes())
    screen = ScreenCard(
        sha256=save_state(net, folder / "screen.safetensors"),
        mpp=own.mpp * factor,
        patch_px=own.patch_px // factor,
        top_m=own.top_m,
        tasks=net.tasks,
        architecture=net.shape.to_json(),
        training={},
        metrics={},
        selector_sha256=own.sha256,
        calibration=calibration,
    )
    card = model.card.model_copy(update={"screen": screen})
    write_card(folder, card)
    return ModelFolder(folder, card)
