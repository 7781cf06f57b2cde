"""Runs of the pipeline in child processes that are killed, or whose calls fail.

A child is forked from a server that has imported everything, so that a run costs what
the pipeline costs. In it, calls on files below the results are counted; at the N-th
the child kills itself, or the call fails.
"""

import errno
import itertools
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Lock as ThreadLock
from typing import Any

import orjson

from wsi_pipeline import cli
from wsi_pipeline.batch import run_batch
from wsi_pipeline.config import RunConfig
from wsi_pipeline.demo import write_truthful_slide
from wsi_pipeline.models.cards import find_model
from wsi_pipeline.results import SlideFolder

_EVENTS = {"open": "open", "os.rename": "rename", "os.mkdir": "mkdir"}
_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.faults.victims"])
CONFIG = RunConfig().updated("tile", workers=1).updated("export", detections="none")
FULL = {"ENOSPC": errno.ENOSPC, "EDQUOT": errno.EDQUOT, "EIO": errno.EIO}


@dataclass(frozen=True)
class Fault:
    """What happens at the N-th call on a file below the results.

    Parameters
    ----------
    number : int
        1 for the first call; 0 for none.
    error : str
        Name of the error that the call raises; empty = the process is killed.
    """

    number: int = 0
    error: str = ""


class Injector:
    """Counts calls that change files below a folder, and lets one of them fail."""

    def __init__(self, root: Path, fault: Fault) -> None:
        self._root, self._fault = str(root), fault
        self._lock, self.count = ThreadLock(), 0
        self.kinds: list[str] = []

    def install(self) -> None:
        """From here on, for the life of the process."""
        sys.addaudithook(self._audit)
        for name in ("fsync", "write"):
            setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _audit(self, event: str, details: tuple[Any, ...]) -> None:
        if event not in _EVENTS or self._root not in str(details[0]):
            return
        if event == "open" and not int(details[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        self._count(_EVENTS[event])

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(descriptor: int, *rest: Any) -> Any:
            path = ""
            with suppress(OSError):
                path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
            if self._root in path:
                self._count(name)
            return real(descriptor, *rest)

        return call

    def _count(self, kind: str) -> None:
        with self._lock:
            self.count += 1
            self.kinds.append(kind)
            if self.count != self._fault.number:
                return
        if not self._fault.error:
            os.kill(os.getpid(), signal.SIGKILL)
        code = FULL[self._fault.error]
        raise OSError(code, os.strerror(code))


def make_slides(folder: Path, count: int) -> list[Path]:
    """Slides of half a megapixel whose results differ."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        write_truthful_slide(
            folder / f"slide{seed}.tif", seed=seed, megapixels=0.5, workers=1
        )[0]
        for seed in range(11, 11 + count)
    ]


def start(
    slides: list[Path],
    out: Path,
    fault: Fault | None = None,
    *,
    told: Path | None = None,
    hook: Callable[[], None] | None = None,
) -> BaseProcess:
    """Begin `wsi run` in a child: its exit code is that of the batch.

    Parameters
    ----------
    slides : list of Path
    out : Path
        Results folder.
    fault : Fault, optional
    told : Path, optional
        File for the outcomes, and for the kinds of calls that were counted.
    hook : callable, optional
        Called in the child first: takes a guard away.
    """
    process = _CONTEXT.Process(
        target=_run, args=(slides, out, fault or Fault(), told, hook)
    )
    process.start()
    return process


def run(*args: Any, **kwargs: Any) -> int:
    """`start`, and the exit code; negative where a signal ended it."""
    process = start(*args, **kwargs)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def run_call(function: Callable[[Path], None], out: Path, fault: Fault) -> int:
    """Call a function with a folder in a child; its exit code."""
    process = _CONTEXT.Process(target=_call, args=(function, out, fault))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _call(function: Callable[[Path], None], out: Path, fault: Fault) -> None:
    Injector(out, fault).install()
    function(out)


def start_command(arguments: list[str], hook: Callable[[], None] | None = None) -> Any:
    """Begin the command `wsi` in a child."""
    process = _CONTEXT.Process(target=_command, args=(arguments, hook))
    process.start()
    return process


def _command(arguments: list[str], hook: Callable[[], None] | None) -> None:
    os.setpgid(0, 0)
    if hook:
        hook()
    sys.argv = ["wsi", *arguments]
    cli.main()


def _run(
    slides: list[Path],
    out: Path,
    fault: Fault,
    told: Path | None,
    hook: Callable[[], None] | None,
) -> None:
    os.setpgid(0, 0)
    if hook:
        hook()
    injector = Injector(out, fault)
    injector.install()
    try:
        result = run_batch(slides, out, find_model("synthetic"), CONFIG)
    except OSError as error:
        if told:
            told.write_text(str(error))
        sys.exit(1)
    if told:
        facts = {"slides": result.to_json(), "calls": injector.kinds}
        told.write_bytes(orjson.dumps(facts))
    sys.exit(result.exit_code)


def results_of(out: Path) -> dict[str, bytes]:
    """Content of all that a second run repeats to the byte, by name."""
    found: dict[str, bytes] = {}
    for folder in sorted(p.parent for p in out.glob("*/stages")):
        slide = SlideFolder(folder)
        notes = slide.run, slide.crate
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path not in notes and path.parent.name != "stages":
                found[path.relative_to(out).as_posix()] = path.read_bytes()
    return found


def leftovers(out: Path) -> list[str]:
    """Staging folders and temporary files."""
    return [
        path.relative_to(out).as_posix()
        for path in itertools.chain(out.rglob(".staging"), out.rglob("*.partial"))
    ]
