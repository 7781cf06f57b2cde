"""Compiles functions of numbers and arrays with Numba, once for all processes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numba


def compiled[F: Callable[..., Any]](function: F, **options: Any) -> F:  # Any: Numba's
    """Compile a function at its first call, and keep the code where that is possible.

    Parameters
    ----------
    function : callable
        Of numbers, arrays and named tuples of them; runs without the GIL, and divides
        by zero as NumPy does.
    **options
        As for `numba.njit`.

    Notes
    -----
    The code is kept beside the function's file or in the user's cache. Where neither
    can be written, as in some containers, every process compiles.
    """
    compile_: Any  # Numba's types say Dispatcher, which is called like the function
    compile_ = partial(numba.njit, nogil=True, error_model="numpy", **options)
    try:
        found: F = compile_(cache=True)(function)
    except RuntimeError:
        found = compile_()(function)
    return found


def inlined[F: Callable[..., Any]](function: F) -> F:  # Any: whatever it takes
    """Compile a function into its callers, so that it knows their arrays' layout."""
    return compiled(function, inline="always")
