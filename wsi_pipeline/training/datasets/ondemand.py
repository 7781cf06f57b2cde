"""Turns a way to make the n-th value into a sequence that keeps only a few values."""

from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import Any, overload


class OnDemand[T](Sequence[T]):
    """A sequence whose values are made when asked for; the last few are kept.

    Parameters
    ----------
    count : int
        Length.
    make : callable
        Makes the value of an index, 0 to count - 1; picklable if the sequence shall be.
    keep : int
        Values kept, the longest unused goes first; 0 keeps none.

    Notes
    -----
    Memory: `keep` values and the one being made. Pickles without what it keeps. Values
    are handed out, not copied: do not write into them.
    """

    def __init__(self, count: int, make: Callable[[int], T], keep: int = 2) -> None:
        self._count = count
        self._make = make
        self._keep = keep
        self._kept: dict[int, T] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> "OnDemand[T]": ...

    def __getitem__(self, index: int | slice) -> "T | OnDemand[T]":
        if isinstance(index, slice):
            rows = range(self._count)[index]
            return OnDemand(len(rows), _Chosen(rows, self._make), self._keep)
        row = range(self._count)[index]  # negative indices; IndexError beyond the end
        with self._lock:
            if row in self._kept:
                self._kept[row] = self._kept.pop(row)
                return self._kept[row]
        value = self._make(row)
        with self._lock:
            self._kept[row] = value
            while len(self._kept) > self._keep:
                del self._kept[next(iter(self._kept))]
        return value

    def __iter__(self) -> Iterator[T]:
        return (self[row] for row in range(self._count))

    def __getstate__(self) -> dict[str, Any]:  # Any: attributes of all types
        return {"_count": self._count, "_make": self._make, "_keep": self._keep}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _kept={}, _lock=Lock())


class _Chosen[T]:
    """Makes the value of the n-th chosen row."""

    def __init__(self, rows: Sequence[int], make: Callable[[int], T]) -> None:
        self._rows = rows
        self._make = make

    def __call__(self, index: int) -> T:
        return self._make(self._rows[index])
