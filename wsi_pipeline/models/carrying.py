"""Carries batches to the device of a net, and what it made of them back."""

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SLOTS = 3  # one is filled, one is copied, one is worked on

type Rows = NDArray[Any]


class Lane[T](Protocol):
    """The way of batches to a device and back, in order."""

    def send(self, batch: Rows) -> Tensor:
        """Bring a batch, always of the same shape, to the device.

        Returns
        -------
        tensor
            Valid until `fetch` was called for it.
        """
        ...

    def fetch(self, tag: T, result: Tensor) -> Iterator[tuple[T, Rows]]:
        """Hand in what was made of the last batch; yield what has arrived by now.

        Parameters
        ----------
        tag : T
            Comes back with the result.
        result : tensor
            Always of the same shape.
        """
        ...

    def drain(self) -> Iterator[tuple[T, Rows]]:
        """Yield the rest."""
        ...


def open_lane(device: torch.device) -> Lane[Any]:
    """The way to a device."""
    return CudaLane(device) if device.type == "cuda" else HostLane()


class HostLane[T]:
    """On the CPU batches are there already."""

    def send(self, batch: Rows) -> Tensor:
        """See `Lane.send`."""
        return torch.from_numpy(batch)

    def fetch(self, tag: T, result: Tensor) -> Iterator[tuple[T, Rows]]:
        """See `Lane.fetch`."""
        yield tag, result.numpy()

    def drain(self) -> Iterator[tuple[T, Rows]]:
        """See `Lane.drain`."""
        yield from ()


class _Slot(NamedTuple):
    """Memory for a batch on its way; only pinned memory is copied beside work."""

    pinned: Tensor
    there: Tensor
    copied: torch.cuda.Event
    used: torch.cuda.Event
    finished: torch.cuda.Event


class CudaLane[T]:
    """To a GPU by way of a ring of slots, copied on a stream of its own.

    Parameters
    ----------
    device : torch.device
        The GPU.

    Notes
    -----
    The host waits for the batch before the last one only: the GPU has a batch to work
    on while the next one is filled and copied. Memory: three batches on the device and
    three pinned on the host, allocated at the first batch.

    References
    ----------
    CUDA C++ Programming Guide, "Asynchronous Concurrent Execution"; PyTorch, "CUDA
    semantics", sections "CUDA streams" and "Use pinned memory buffers".
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._slots: list[_Slot] = []
        self._results: list[Tensor] = []
        self._count = 0
        self._waiting: deque[tuple[T, int]] = deque()

    def send(self, batch: Rows) -> Tensor:
        """See `Lane.send`."""
        source = torch.from_numpy(batch)
        if not self._slots:
            self._slots = [self._make_slot(source) for _ in range(_SLOTS)]
        slot = self._slots[self._count % _SLOTS]
        slot.copied.synchronize()  # else the copy before would see these pixels
        slot.pinned.copy_(source)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.used)
            slot.there.copy_(slot.pinned, non_blocking=True)
            slot.copied.record(self._stream)
        torch.cuda.current_stream(self._device).wait_event(slot.copied)
        return slot.there

    def fetch(self, tag: T, result: Tensor) -> Iterator[tuple[T, Rows]]:
        """See `Lane.fetch`."""
        if not self._results:
            self._results = [
                torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
                for _ in range(_SLOTS)
            ]
        index = self._count % _SLOTS
        slot, work = self._slots[index], torch.cuda.current_stream(self._device)
        slot.used.record(work)
        self._results[index].copy_(result, non_blocking=True)
        slot.finished.record(work)
        self._waiting.append((tag, index))
        self._count += 1
        if len(self._waiting) == _SLOTS:
            yield self._take()

    def drain(self) -> Iterator[tuple[T, Rows]]:
        """See `Lane.drain`."""
        while self._waiting:
            yield self._take()

    def _take(self) -> tuple[T, Rows]:
        tag, index = self._waiting.popleft()
        self._slots[index].finished.synchronize()
        return tag, np.copy(self._results[index].numpy())

    def _make_slot(self, like: Tensor) -> _Slot:
        pinned = torch.empty(like.shape, dtype=like.dtype, pin_memory=True)
        there = torch.empty(like.shape, dtype=like.dtype, device=self._device)
        # memory belongs to the stream that asked for it: the other one says that it
        # uses it too, and first waits for what was there before
        there.record_stream(self._stream)
        copied, used, finished = (_event() for _ in range(3))
        used.record(torch.cuda.current_stream(self._device))
        return _Slot(pinned, there, copied, used, finished)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no types here
