"""A patch selector at work: batches of patches to logits, NumPy in and out."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_pipeline.models.budget import (
    BatchPlan,
    ElasticBatch,
    MemoryReport,
    report_memory,
)
from wsi_pipeline.models.carrying import open_lane
from wsi_pipeline.models.pooling import OnlinePooling
from wsi_pipeline.models.selector import SelectorNet

type Ids = NDArray[np.int64]
type Rows = NDArray[Any]
"""What the net takes of k patches, (k, ...): uint8 pixels, or float32 features."""


class Scored(NamedTuple):
    """Logits of a batch: ids (k,), (k, C) float32.

    ``state()`` gives what `PatchScorer.continue_at` takes to go on behind this batch.
    """

    ids: Ids
    logits: NDArray[np.float32]
    state: Callable[[], bytes]


class PatchScorer:
    """A selector on a device with its planned batch.

    Parameters
    ----------
    net : SelectorNet
        In eval mode, on the device.
    device : torch.device
        Where it runs.
    plan : BatchPlan
        Batch and its reasons.
    """

    def __init__(self, net: SelectorNet, device: torch.device, plan: BatchPlan) -> None:
        self.net, self.device, self.plan = net, device, plan
        self.elastic = ElasticBatch(plan.batch, plan.option)
        self._pooling: OnlinePooling | None = None

    @property
    def channels(self) -> int:
        """Number C of attention channels."""
        return self.net.channels

    @property
    def wants_places(self) -> bool:
        """Whether the selector must be told where patches lie."""
        return self.net.shape.position

    @property
    def precision(self) -> str:
        """Type of the encoder's numbers."""
        return str(next(self.net.encoder.parameters()).dtype).removeprefix("torch.")

    def continue_at(self, batch: int, pooled: int = 0, state: bytes = b"") -> None:
        """Go on where a pass was killed.

        Parameters
        ----------
        batch : int
            Batch in use then; smaller than the planned one where memory had run out.
        pooled : int
            Patches that were done.
        state : bytes
            As `Scored` gave it with the last of them.
        """
        while self.elastic.size > batch:
            size = self.elastic.size
            self.elastic.downgrades.append((size, size // 2))
            self.elastic.size = size // 2
        if self._pooling is not None:
            self._pooling.restore(state, pooled)

    def pool_all(self) -> None:
        """From here on, `score_all` pools the patches for `predict_all`."""
        self._pooling = OnlinePooling(self.net)

    def score(self, rows: Rows) -> NDArray[np.float32]:
        """Attention logits of any number of patches at once: (n, ...) to (n, C).

        Raises
        ------
        BudgetError
            If memory runs out with a single patch.
        """
        parts = [scored.logits for scored in self.score_all(self._cut(rows))]
        return np.concatenate([np.empty((0, self.channels), np.float32), *parts])

    def embed(self, rows: Rows) -> NDArray[np.float32]:
        """Embeddings of any number of patches at once: (n, ...) to (n, D).

        Raises
        ------
        BudgetError
            If memory runs out with a single patch.
        """
        parts = [x for _, x in self.embed_all(self._cut(rows))]
        return np.concatenate([np.empty((0, self.net.shape.width), np.float32), *parts])

    def score_all(
        self,
        batches: Iterable[tuple[Ids, Rows]],
        places_um: NDArray[np.float64] | None = None,
    ) -> Iterator[Scored]:
        """Attention logits of patches as they come.

        Parameters
        ----------
        batches : iterable of (ids, rows)
            Batches as planned, the last of them a rest. On a GPU two more of them are
            taken than have come back.
        places_um : (n, 2) float64 array, optional
            x, y by patch id, where the selector wants places.

        Yields
        ------
        Scored
            In order.

        Raises
        ------
        BudgetError
            If memory runs out with a single patch.
        """

        def end(ids: Ids, x: Tensor) -> tuple[tuple[Ids, Callable[[], bytes]], Tensor]:
            places = self._places(ids, places_um, len(x))
            if self._pooling is None:
                return (ids, bytes), self.net.logits(x, places).float()
            k = len(ids)
            some = None if places is None else places[:k]
            logits = x.new_zeros((len(x), self.channels), dtype=torch.float32)
            logits[:k] = self._pooling.add(x[:k], some)
            return (ids, self._pooling.snapshot()), logits

        for (ids, state), rows in self._carry(batches, end):
            yield Scored(ids, rows[: len(ids)], state)

    def embed_all(
        self, batches: Iterable[tuple[Ids, Rows]]
    ) -> Iterator[tuple[Ids, NDArray[np.float32]]]:
        """Embeddings of patches as they come: ids (k,) and (k, D) float32.

        Parameters
        ----------
        batches : iterable of (ids, rows)
            See `score_all`.

        Raises
        ------
        BudgetError
            If memory runs out with a single patch.
        """
        for ids, rows in self._carry(batches, lambda ids, x: (ids, x.float())):
            yield ids, rows[: len(ids)]

    @torch.inference_mode()
    def predict(
        self,
        embeddings: NDArray[np.float32],
        places_um: NDArray[np.float64] | None = None,
    ) -> dict[str, float]:
        """Probability per task of the slide that the patches were chosen from.

        Parameters
        ----------
        embeddings : (m, D) float32 array
            m at least 1.
        places_um : (m, 2) float64 array, optional
            Where the selector wants places.
        """
        bag = torch.from_numpy(embeddings)[None].to(self.net.attention.queries)
        places = None
        if self.wants_places and places_um is not None:
            places = torch.from_numpy(places_um)[None].to(self.device)
        return self._chances(self.net.predict(bag, places_um=places))

    @torch.inference_mode()
    def predict_all(self) -> dict[str, float]:
        """Probability per task of the slide that was pooled.

        Raises
        ------
        ModelError
            If what was pooled is not finite.
        """
        if self._pooling is None:
            raise ValueError("nothing was pooled: call pool_all first")
        return self._chances(self.net.answer(self._pooling.tokens()))

    def report(self) -> MemoryReport:
        """Peaks of memory so far."""
        plan = self.plan
        return report_memory(self.device, plan.measured_bytes, plan.counted_bytes)

    def _carry[T](
        self,
        batches: Iterable[tuple[Ids, Rows]],
        end: Callable[[Ids, Tensor], tuple[T, Tensor]],
    ) -> Iterator[tuple[T, Rows]]:
        """Embed batches and do with the embeddings (b, D) what `end` says."""
        lane = open_lane(self.device)
        for ids, rows in batches:
            tag, result = self._work(lane.send(self._filled(rows)), ids, end)
            yield from lane.fetch(tag, result)
        yield from lane.drain()

    @torch.inference_mode()
    def _work[T](
        self,
        rows: Tensor,
        ids: Ids,
        end: Callable[[Ids, Tensor], tuple[T, Tensor]],
    ) -> tuple[T, Tensor]:
        def work(start: int, stop: int) -> Tensor:
            return self.net.embed(rows[start:stop])

        return end(ids, torch.cat(self.elastic.run(work, len(rows))))

    def _cut(self, rows: Rows) -> Iterator[tuple[Ids, Rows]]:
        """Rows, whose ids are their numbers, as batches."""
        size = self.plan.batch
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            yield np.arange(start, start + len(part)), part

    def _filled(self, rows: Rows) -> Rows:
        """Rows at the planned batch: one shape, so one choice of kernels."""
        if len(rows) == self.plan.batch:
            return rows
        filled = np.zeros((self.plan.batch, *rows.shape[1:]), rows.dtype)
        filled[: len(rows)] = rows
        return filled

    def _places(
        self, ids: Ids, places_um: NDArray[np.float64] | None, count: int
    ) -> Tensor | None:
        """Places of a batch on the device, (count, 2); None where they do not count."""
        if places_um is None or not self.wants_places:
            return None
        places = np.zeros((count, 2))
        places[: len(ids)] = places_um[ids]
        return torch.from_numpy(places).to(self.device, non_blocking=True)

    def _chances(self, logits: Tensor) -> dict[str, float]:
        chances = logits[0].sigmoid().tolist()
        return dict(zip(self.net.tasks, chances, strict=True))
