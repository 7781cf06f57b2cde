"""Shows progress: bars on a terminal, plain lines in a log, all on standard error."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from wsi_pipeline.inert import shown
from wsi_pipeline.places import Place

if TYPE_CHECKING:
    from wsi_pipeline.outcomes import BatchResult, Outcome
    from wsi_pipeline.slide import SlideInfo

_COLOURS = {"done": "green", "degraded": "yellow", "failed": "red", "skipped": "dim"}


class Terminal(logging.Handler):
    """Progress of a command; a context manager.

    Parameters
    ----------
    quiet : bool
        Show nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        super().__init__(logging.INFO)
        self._log = logging.getLogger("wsi_pipeline")
        self.console = Console(stderr=True, quiet=quiet, soft_wrap=True)
        self._bars = Progress(
            TextColumn("{task.description:>9}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._stage = ""

    def __enter__(self) -> Self:
        self._bars.start()
        self._level = self._log.level
        self._log.setLevel(logging.INFO)
        self._log.addHandler(self)
        return self

    def __exit__(self, *exc: object) -> None:
        self._log.removeHandler(self)
        self._log.setLevel(self._level)
        self._bars.stop()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line that an act logs."""
        line = shown(" ".join(record.getMessage().split()))
        self.console.print(f"  {line}", markup=False, highlight=False)

    def started(self, number: int, total: int, path: Place) -> None:
        """Announce a slide of a batch."""
        self._stage = ""
        if not self.console.is_terminal:
            self.console.print(f"[{number}/{total}] {shown(str(path))}", markup=False)

    def stage(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage is."""
        if stage != self._stage:
            self._stage = stage
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task = self._bars.add_task(stage, total=total)
            if not self.console.is_terminal:
                self.console.print(f"  {stage}", markup=False)
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total)

    def ticker(self, stage: str) -> Callable[[int, int], None]:
        """Progress of a command that has one stage."""
        return lambda done, total: self.stage(stage, done, total)

    def ended(self, outcome: "Outcome") -> None:
        """Say what became of a slide."""
        manifest = outcome.manifest
        colour = _COLOURS[manifest.status]
        kept = " (kept)" if outcome.reused else ""
        reason = f": {manifest.reason}" if manifest.reason else ""
        self.console.print(
            f"[{colour}]{manifest.status:>9}[/]{kept} "
            f"{escape(shown(manifest.slide + reason))}"
        )

    def summary(self, result: "BatchResult", out: Path) -> None:
        """Count the outcomes and name the report."""
        told = f"report: {shown(str(out / 'report.html'))}"
        counts = ", ".join(
            f"{result.count(status)} {status}"
            for status in _COLOURS
            if result.count(status)
        )
        self.console.print(f"{counts or 'no slides'}; {told}", markup=False)


def slide_facts(info: "SlideInfo") -> dict[str, Any]:
    """Facts of a slide for people and machines, in reading order."""
    facts: dict[str, Any] = {
        "slide": shown(str(info.path)),
        "backend": info.backend,
        "vendor": info.vendor,
        "compression": info.compression,
        "size_px": list(info.size_px),
        "levels": [level.downsample for level in info.levels],
        "mpp": [info.scale.x, info.scale.y],
        "mpp_source": info.scale_source,
    }
    if info.bounds != info.box:
        facts["bounds"] = [info.bounds.x, info.bounds.y, info.bounds.w, info.bounds.h]
    if info.warnings:
        facts["warnings"] = list(info.warnings)
    return facts
