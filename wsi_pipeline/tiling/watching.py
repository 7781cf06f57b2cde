"""Notices that work has stalled: nothing has ended for longer than anyone waits."""

from collections.abc import Callable
from threading import Event, Thread
from typing import Self


class Watchdog:
    """Calls for help when it was not told of progress for a while.

    Parameters
    ----------
    patience_s : float
        Seconds without progress that are borne.
    bark : callable
        Called then, in a thread of its own, and again after as long.
    """

    def __init__(self, patience_s: float, bark: Callable[[], None]) -> None:
        self._patience_s, self._bark = patience_s, bark
        self._moved, self._ended = Event(), False
        self._thread = Thread(target=self._watch, daemon=True)

    def tell(self) -> None:
        """Something has ended."""
        self._moved.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended = True
        self._moved.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            moved = self._moved.wait(self._patience_s)
            self._moved.clear()
            if self._ended:
                return
            if not moved:
                self._bark()
