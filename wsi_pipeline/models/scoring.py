"""Scores patches with a trained selector inside a memory budget, NumPy in and out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_pipeline.config import SelectOptions
from wsi_pipeline.models.budget import (
    BatchPlan,
    ElasticBatch,
    MemoryReport,
    budget_for,
    enforced,
    held_bytes,
    measure_peak,
    plan_batch,
    report_memory,
    resolve_device,
)
from wsi_pipeline.models.cards import ModelFolder
from wsi_pipeline.models.selector import SelectorNet, SelectorShape
from wsi_pipeline.models.weights import load_state

# Beyond these a bigger batch is not faster; measured with the small encoder.
_LARGEST_BATCH = {"cpu": 64, "cuda": 512}


def load_selector(model: ModelFolder) -> SelectorNet:
    """Build a model's selector and load its weights, in eval mode, on the CPU.

    Raises
    ------
    ModelError
        If the card or the weights do not fit.
    """
    card = model.card.selector
    net = SelectorNet(SelectorShape.from_json(card.architecture), card.tasks)
    load_state(net, model.weights(card))
    return net.eval()


class PatchScorer:
    """A selector on a device with its planned batch.

    Parameters
    ----------
    net : SelectorNet
        In eval mode; moved to the device.
    patch_px : int
        Side p of a patch.
    device : torch.device
        Where it runs.
    plan : BatchPlan
        Batch and its reasons.
    option : str
        Name of the option that states the budget.
    """

    def __init__(
        self,
        net: SelectorNet,
        patch_px: int,
        device: torch.device,
        plan: BatchPlan,
        option: str,
    ) -> None:
        self.net, self.device, self.plan = net, device, plan
        self.patch_px = patch_px
        self.elastic = ElasticBatch(plan.batch, option)

    @property
    def channels(self) -> int:
        """Number C of attention channels."""
        return self.net.channels

    @property
    def dtype(self) -> str:
        """Type of the net's numbers."""
        return str(next(self.net.parameters()).dtype).removeprefix("torch.")

    def score(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Attention logits: (n, 3, p, p) uint8 to (n, C) float32.

        Raises
        ------
        BudgetError
            If memory runs out with a single patch.
        """

        def work(start: int, stop: int) -> NDArray[np.float32]:
            x = self._embed(patches[start:stop])
            return self._score(x)[: stop - start]

        parts = self.elastic.run(work, len(patches))
        empty = np.empty((0, self.channels), np.float32)
        return np.concatenate([empty, *parts])

    def embed(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embeddings: (n, 3, p, p) uint8 to (n, D) float32.

        Raises
        ------
        BudgetError
            If memory runs out with a single patch.
        """

        def work(start: int, stop: int) -> NDArray[np.float32]:
            x = self._embed(patches[start:stop])
            return x[: stop - start].float().cpu().numpy()

        parts = self.elastic.run(work, len(patches))
        return np.concatenate(parts)

    @torch.inference_mode()
    def predict(self, embeddings: NDArray[np.float32]) -> dict[str, float]:
        """Probability per task of the slide that the patches were chosen from.

        Parameters
        ----------
        embeddings : (m, D) float32 array
            m at least 1.
        """
        bag = torch.from_numpy(embeddings)[None].to(next(self.net.parameters()))
        chances = self.net.predict(bag)[0].sigmoid().tolist()
        return dict(zip(self.net.tasks, chances, strict=True))

    def report(self) -> MemoryReport:
        """Peaks of memory so far."""
        return report_memory(self.device, self.plan.measured_bytes)

    @torch.inference_mode()
    def _score(self, x: torch.Tensor) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self.net.logits(x).float().cpu().numpy()
        return logits

    @torch.inference_mode()
    def _embed(self, patches: NDArray[np.uint8]) -> torch.Tensor:
        """Embed at the fixed batch: one shape, so one choice of kernels."""
        size = self.elastic.size
        if len(patches) < size:
            filled = np.zeros((size, *patches.shape[1:]), np.uint8)
            filled[: len(patches)] = patches
            patches = filled
        return self.net.embed(torch.from_numpy(patches).to(self.device))


@contextmanager
def open_scorer(
    model: ModelFolder, options: SelectOptions, count: int
) -> Iterator[PatchScorer]:
    """Load a model's selector, plan its batch, and hold the budget while in use.

    Parameters
    ----------
    count : int
        Number of patches to come; the batch is not planned larger.

    Yields
    ------
    PatchScorer
        Ready; no pixel was read yet.

    Raises
    ------
    BudgetError
        If the budget does not allow a single patch.
    ConfigError
        If there is no such device.
    ModelError
        If the model folder is incomplete or does not fit.
    """
    device = resolve_device(options.device)
    budget, option = budget_for(device, options.memory, options.gpu_memory)
    net = load_selector(model).to(device)
    side = model.card.selector.patch_px
    most = min(_LARGEST_BATCH[device.type], 1 << max(0, count - 1).bit_length())

    def measure(batch: int) -> int:
        return measure_peak(device, lambda: warm_up(net, side, batch), held_bytes(net))

    plan = plan_batch(measure, budget, option=option, what="selector", largest=most)
    with enforced(device, budget):
        yield PatchScorer(net, side, device, plan, option)


@torch.inference_mode()
def warm_up(net: SelectorNet, patch_px: int, batch: int) -> Any:  # Any: not for use
    """Run a selector once on empty patches, the way `PatchScorer` does."""
    device = next(net.parameters()).device
    patches = torch.zeros((batch, 3, patch_px, patch_px), dtype=torch.uint8)
    return net.logits(net.embed(patches.to(device))).float().cpu()
