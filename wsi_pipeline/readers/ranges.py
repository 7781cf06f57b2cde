"""Byte ranges of a slide file: read from a local descriptor, or asked of a store."""

import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from wsi_pipeline.places import Place, explain, file_system, remote_errors

if TYPE_CHECKING:
    from upath import UPath

_GAP_BYTES = 2**16  # reading so much too much takes less than a second request
_MOST_BYTES = 2**23  # of a request: longer ones are split, and run side by side


class Ranges(Protocol):
    """A file whose parts can be read by several threads at once."""

    def fetch(self, offsets: Sequence[int], counts: Sequence[int]) -> list[bytes]:
        """Bytes of ranges, in their order; raises OSError if any is cut short."""
        ...


class LocalRanges:
    """A descriptor; `os.pread` moves no cursor, so that threads share it."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        weakref.finalize(self, os.close, self._descriptor)

    def fetch(self, offsets: Sequence[int], counts: Sequence[int]) -> list[bytes]:
        """See `Ranges.fetch`."""
        found = []
        for offset, count in zip(offsets, counts, strict=True):
            data = os.pread(self._descriptor, count, offset)
            if len(data) != count:
                raise OSError(f"it is cut short behind byte {offset + len(data)}")
            found.append(data)
        return found


class RemoteRanges:
    """Requests for ranges, neighbours in one, all at once.

    Parameters
    ----------
    place : UPath
        The object. Made anew in every process: connections do not survive a fork.
    """

    def __init__(self, place: "UPath") -> None:
        self._place = place
        self._files = file_system(place)

    def fetch(self, offsets: Sequence[int], counts: Sequence[int]) -> list[bytes]:
        """See `Ranges.fetch`; what fails is asked for a second time.

        Notes
        -----
        Memory: the ranges, 64 KiB between each two neighbours, and their copies.
        """
        found = [b""] * len(offsets)
        groups = list(_neighbours(offsets, counts))
        starts = [start for start, _, _ in groups]
        stops = [stop for _, stop, _ in groups]
        for (start, _, members), data in zip(
            groups, self._ask(starts, stops), strict=True
        ):
            for index in members:
                first = offsets[index] - start
                found[index] = data[first : first + counts[index]]
        return found

    def _ask(self, starts: list[int], stops: list[int]) -> list[bytes]:
        try:
            return self._ask_once(starts, stops)
        except (FileNotFoundError, PermissionError) as error:
            raise OSError(explain(self._place, error)) from error
        except remote_errors():
            pass  # networks fail for a moment
        try:
            return self._ask_once(starts, stops)
        except remote_errors() as error:
            raise OSError(explain(self._place, error)) from error

    def _ask_once(self, starts: list[int], stops: list[int]) -> list[bytes]:
        names = [self._place.path] * len(starts)
        answers: list[bytes] = self._files.cat_ranges(
            names, starts, stops, on_error="raise"
        )
        for start, stop, data in zip(starts, stops, answers, strict=True):
            if len(data) != stop - start:
                raise OSError(
                    f"{stop - start} bytes from {start} on were asked for, "
                    f"{len(data)} came"
                )
        return answers


def ranges_of(place: Place) -> Ranges:
    """Open a place for reading its parts."""
    return LocalRanges(place) if isinstance(place, Path) else RemoteRanges(place)


def _neighbours(
    offsets: Sequence[int], counts: Sequence[int]
) -> Iterator[tuple[int, int, list[int]]]:
    """(start, stop, indices) of requests that cover ranges which lie close together."""
    start = stop = 0
    members: list[int] = []
    for index in sorted(range(len(offsets)), key=lambda i: offsets[i]):
        first, last = offsets[index], offsets[index] + counts[index]
        apart = first - stop > _GAP_BYTES or last - start > _MOST_BYTES
        if members and apart:
            yield start, stop, members
            members = []
        if not members:
            start = stop = first
        members.append(index)
        stop = max(stop, last)
    if members:
        yield start, stop, members
