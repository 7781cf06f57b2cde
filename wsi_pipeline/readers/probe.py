"""First contact with a slide in a throw-away process with limits.

A damaged file can make an image library abort, hang or ask for all memory, which
Python cannot catch; here that costs a child process, and the caller gets a SlideError.
"""

import os
import resource
import signal
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from wsi_pipeline.config import ProbeOptions
from wsi_pipeline.errors import SlideError, WsiError
from wsi_pipeline.geometry import Box
from wsi_pipeline.places import Place, as_place
from wsi_pipeline.readers import open_slide
from wsi_pipeline.slide import Slide, SlideInfo

AREA_PX = 64
START_S = 120.0  # a cold import on a busy disk
SERVE = "from wsi_pipeline.readers.probe import serve; serve()"


class Prober:
    """A child process that looks at slides; use it as a context manager.

    Parameters
    ----------
    options : ProbeOptions, optional
        Its limits.

    Notes
    -----
    The child is a fresh interpreter (nothing is forked), serves many slides, imports
    neither torch nor dask, and is replaced when it dies. Not thread-safe: one prober
    per thread. Runs on Linux and macOS.
    """

    def __init__(self, options: ProbeOptions | None = None) -> None:
        self._options = options or ProbeOptions()
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Any = None  # Any: Connection is generic from Python 3.13 on only

    def probe(
        self,
        path: Place | str,
        *,
        mpp: float | None = None,
        mpp_source: str = "--mpp",
        backend: str | None = None,
    ) -> SlideInfo:
        """Open a slide, check it and read a few small areas.

        Parameters
        ----------
        path, mpp, mpp_source, backend
            As for :func:`wsi_pipeline.readers.open_slide`.

        Returns
        -------
        SlideInfo

        Raises
        ------
        SlideError
            What `open_slide` raises, of the same kind; or that the reader crashed,
            took too long or too much memory, or that the slide has too many pixels.
        """
        place = as_place(path)
        name = place.name
        self._start()
        try:
            self._pipe.send((place, mpp, mpp_source, backend))
            if not self._pipe.poll(self._options.seconds):
                self.close()
                raise SlideError(
                    f"{name}: opening it takes over {self._options.seconds:g} s; the "
                    "file is damaged, or its disk is slow: copy it to a local disk, or "
                    "allow more ([probe] seconds)"
                )
            answer = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise SlideError(f"{name}: {self._cause_of_death()}") from error
        if isinstance(answer, WsiError):
            raise answer
        if not isinstance(answer, SlideInfo):
            raise SlideError(
                f"{name}: the reader failed unexpectedly ({answer}); the file is "
                "probably damaged: copy it again from the scanner"
            )
        w, h = answer.size_px
        if w * h > self._options.pixels:
            raise SlideError(
                f"{name}: has {w} x {h} px, more than {self._options.pixels:,} "
                "([probe] pixels)"
            )
        return answer

    def close(self) -> None:
        """End the child process."""
        child, self._child = self._child, None
        if child is not None:
            self._pipe.close()
            child.kill()
            child.wait()

    def _start(self) -> None:
        if self._child is not None and self._child.poll() is None:
            return
        self.close()
        ours, theirs = Pipe()
        places = [p or str(Path.cwd()) for p in sys.path]
        # what the child cannot say through the pipe is library noise
        self._child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                SERVE,
                str(theirs.fileno()),
                str(int(self._options.memory)),
            ],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
        )
        theirs.close()
        self._pipe = ours
        try:
            ready = ours.poll(START_S) and ours.recv() == "ready"
        except (EOFError, ConnectionResetError):
            ready = False
        if not ready:
            self.close()
            raise SlideError(
                "the process that looks at slides did not start; its memory limit of "
                f"{self._options.memory >> 20} MiB may be too small ([probe] memory)"
            )

    def _cause_of_death(self) -> str:
        child, code = self._child, 0
        if child is not None:
            try:
                code = child.wait(5)
            except subprocess.TimeoutExpired:
                code = 0
        self.close()
        how = f"ended the reader (exit code {code})"
        if code < 0:
            how = f"crashed the reader (signal {-code})"
        return f"reading it {how}: the file is damaged; copy it again from the scanner"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def probe_slide(
    path: Place | str,
    *,
    mpp: float | None = None,
    mpp_source: str = "--mpp",
    backend: str | None = None,
    options: ProbeOptions | None = None,
) -> SlideInfo:
    """Look at one slide in a child process; a `Prober` serves many.

    Parameters
    ----------
    path, mpp, mpp_source, backend
        As for :func:`wsi_pipeline.readers.open_slide`.
    options : ProbeOptions, optional
        Limits of the child.

    Returns
    -------
    SlideInfo

    Raises
    ------
    SlideError
        See :meth:`Prober.probe`.
    """
    with Prober(options) as prober:
        return prober.probe(path, mpp=mpp, mpp_source=mpp_source, backend=backend)


def read_samples(slide: Slide) -> None:
    """Read two corners and the centre of the finest level.

    Raises
    ------
    SlideError
        If none of them can be read. Single bad tiles are no reason: tiling counts them.
    """
    info = slide.info
    w, h = info.size_px
    right, bottom = max(0, w - AREA_PX), max(0, h - AREA_PX)
    corners = {(0, 0), (right // 2, bottom // 2), (right, bottom)}
    failures = []
    for x, y in sorted(corners):
        try:
            slide.read(Box(x, y, AREA_PX, AREA_PX).intersect(info.box))
        except SlideError as error:
            failures.append(error)
    if len(failures) == len(corners):
        raise failures[0]


def serve() -> None:
    """Answer probes until the pipe closes; what the child process runs."""
    pipe: Any = Connection(int(sys.argv[1]))
    limit = int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    pipe.send("ready")
    while True:
        try:
            path, mpp, mpp_source, backend = pipe.recv()
        except EOFError:
            return
        pipe.send(_look(path, mpp, mpp_source, backend))


def _look(
    path: Place, mpp: float | None, mpp_source: str, backend: str | None
) -> SlideInfo | WsiError | str:
    try:
        with open_slide(path, mpp=mpp, mpp_source=mpp_source, backend=backend) as slide:
            read_samples(slide)
            return slide.info
    except WsiError as error:
        return error
    except MemoryError:
        limit = resource.getrlimit(resource.RLIMIT_AS)[0] >> 20
        return SlideError(
            f"{path.name}: opening it needs more than {limit} MiB of memory "
            "([probe] memory); the file is damaged, or stored in pieces that are too "
            "large"
        )
    except Exception as error:  # one of the two broad ones: whatever a file provokes
        return f"{type(error).__name__}: {error}"
