"""Opens a trained selector for scoring patches inside a memory budget."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_pipeline.config import SelectOptions
from wsi_pipeline.models.budget import (
    resolve_device,
)
from wsi_pipeline.models.cards import ModelFolder, SelectorCard
from wsi_pipeline.models.carrying import open_lane
from wsi_pipeline.models.encoders import reads_features
from wsi_pipeline.models.flops import count_flops
from wsi_pipeline.models.planning import Workload, planned
from wsi_pipeline.models.precision import (
    Precision,
    prepare,
    resolve_precision,
    takes_bfloat16,
)
from wsi_pipeline.models.scorer import PatchScorer
from wsi_pipeline.models.selector import SelectorNet, SelectorShape
from wsi_pipeline.models.weights import check_fit, load_state

# Beyond these a bigger batch is not faster; measured with the small encoder.
_LARGEST_BATCH = {"cpu": 64, "cuda": 512}
# Blocks for two readers on a CPU, which is what keeps it busy; for more on a GPU.
_QUEUE_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}


class Setting(NamedTuple):
    """What the options mean on this machine.

    ``device`` "cpu" or "cuda"; ``precision`` of the encoder; ``queue_bytes`` of host
    memory for what waits for the net.
    """

    device: str
    precision: Precision
    queue_bytes: int


def settle(options: SelectOptions) -> Setting:
    """What options that are left open mean on this machine.

    Raises
    ------
    ConfigError
        If there is no such device.
    """
    device = resolve_device(options.device)
    queue = options.queue or _QUEUE_BYTES[device.type]
    return Setting(
        device.type, resolve_precision(options.precision, device), int(queue)
    )


def load_selector(model: ModelFolder, part: SelectorCard | None = None) -> SelectorNet:
    """Build a model's selector and load its weights, in eval mode, on the CPU.

    Parameters
    ----------
    part : SelectorCard, optional
        Another one whose weights lie in the folder, such as the screen.

    Raises
    ------
    ModelError
        If the card or the weights do not fit.
    """
    card = part or model.card.selector
    file = model.weights(card)
    with torch.device("meta"):  # a card may ask for more memory than there is
        check_fit(_build(card), file)
    net = _build(card)
    load_state(net, file)
    return net.eval()


def patch_flops(card: SelectorCard) -> int:
    """FLOPs of encoding one patch; see `count_flops`.

    Raises
    ------
    ModelError
        If the card does not fit.
    """
    with torch.device("meta"):
        net = _build(card)
        side = card.patch_px
        patch = torch.empty((1, 3, side, side), dtype=torch.uint8)
        return count_flops(net.encoder, patch)


def _build(card: SelectorCard) -> SelectorNet:
    return SelectorNet(SelectorShape.from_json(card.architecture), card.tasks)


@contextmanager
def open_scorer(
    model: ModelFolder,
    options: SelectOptions,
    count: int,
    *,
    part: SelectorCard | None = None,
    batch: int | None = None,
    cache: Path | None = None,
) -> Iterator[PatchScorer]:
    """Load a model's selector, plan its batch, and hold the budget while in use.

    Parameters
    ----------
    model : ModelFolder
        With a selector.
    options : SelectOptions
        Device, memory, precision.
    count : int
        Number of patches to come; the batch is not planned larger.
    part : SelectorCard, optional
        See `load_selector`.
    batch : int, optional
        Not larger than this either: the batch of a pass that goes on.
    cache : Path, optional
        File of measured peaks; see `planned`.

    Yields
    ------
    PatchScorer
        Ready; no pixel was read yet.

    Raises
    ------
    BudgetError
        If the budget does not allow a single patch.
    ConfigError
        If there is no such device, or the encoder does not take the precision.
    ModelError
        If the model folder is incomplete or does not fit.
    """
    device = resolve_device(options.device)
    setting = settle(options)
    card = part or model.card.selector
    net = load_selector(model, card).to(device)
    precision = setting.precision
    if options.precision == "auto" and not takes_bfloat16(net.encoder):
        precision = "float32"
    net.encoder = prepare(net.encoder, precision)
    largest = min(_LARGEST_BATCH[device.type], 1 << max(0, count - 1).bit_length())
    side = card.patch_px
    workload = Workload(
        "selector" if part is None else "screen",
        net,
        (card.sha256, precision, f"{side} px"),
        partial(warm_up, net, side),
        min(largest, batch or largest),
        item_host_bytes=_blank(net, side, 1).nbytes,  # of a rest that is filled up
    )
    with planned(
        workload, device, options, host_bytes=setting.queue_bytes, cache=cache
    ) as plan:
        if options.compile:
            compiled: Any = torch.compile(net.encoder, dynamic=False)
            net.encoder = compiled
            warm_up(net, side, plan.batch)
        yield PatchScorer(net, device, plan)


@torch.inference_mode()
def warm_up(net: SelectorNet, patch_px: int, batch: int) -> None:
    """Run a selector once on empty patches, the way `PatchScorer` does."""
    device = net.attention.queries.device
    lane = open_lane(device)
    x = net.embed(lane.send(_blank(net, patch_px, batch)))
    places = None
    if net.shape.position:
        places = torch.zeros((batch, 2), dtype=torch.float64, device=device)
    for _ in (*lane.fetch(None, net.logits(x, places).float()), *lane.drain()):
        pass


def _blank(net: SelectorNet, patch_px: int, count: int) -> NDArray[Any]:
    """What a net takes, all zero."""
    name = net.shape.encoder
    if reads_features(name):
        return np.zeros((count, int(name.partition(":")[2])), np.float32)
    return np.zeros((count, 3, patch_px, patch_px), np.uint8)
