"""Fills a store of region predictions batch by batch, so that a kill undoes few."""

import time
from collections.abc import Sequence
from pathlib import Path

from wsi_pipeline.geometry import Box
from wsi_pipeline.journal import BlockJournal
from wsi_pipeline.publishing import list_files
from wsi_pipeline.region_store import RegionStore
from wsi_pipeline.regions import RegionPrediction
from wsi_pipeline.written import Written, settle


class FilledStore:
    """A store in its staging folder.

    Parameters
    ----------
    path : Path
        What `staged` yields.
    boxes, kinds, classes, size_px
        See `RegionStore.create`.
    lasting : bool
        Whether batches are kept for the next run, and those of the last one used.
    every_s : float
        Seconds of work that a kill may cost.
    """

    def __init__(
        self,
        path: Path,
        boxes: Sequence[Box],
        kinds: Sequence[int],
        classes: int,
        size_px: tuple[int, int],
        *,
        lasting: bool,
        every_s: float = 5.0,
    ) -> None:
        self._journal = BlockJournal(path) if lasting else None
        whole = self._journal.resume() if self._journal else []
        self.done = frozenset(int(name) for name in whole[1:])
        """Rows at which whole batches begin."""
        self._every_s, self._last = every_s, time.monotonic()
        self._waiting: dict[str, list[Path]] = {}
        if whole:
            self._store = RegionStore(path)
        else:
            self._store = RegionStore.create(path, boxes, kinds, classes, size_px)
            self._keep("plan", list(list_files(path)))

    def put(self, start: int, rows: Sequence[RegionPrediction]) -> None:
        """Write a batch; what came since the last time is kept every few seconds.

        Raises
        ------
        ExportError
            If the journal cannot be written.
        """
        self._waiting[str(start)] = self._store.put(start, rows)
        if time.monotonic() - self._last >= self._every_s:
            for name, files in self._waiting.items():
                self._keep(name, files)
            self._waiting.clear()
            self._last = time.monotonic()

    def _keep(self, name: str, files: Sequence[Path]) -> None:
        if self._journal:
            written = [Written.of(path) for path in files]
            settle(written)
            self._journal.add(name, written)
