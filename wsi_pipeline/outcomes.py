"""What became of the files of a batch, and the exit code that it makes."""

from dataclasses import dataclass
from typing import Any

from wsi_pipeline.places import Place
from wsi_pipeline.results import Manifest


@dataclass(frozen=True)
class Outcome:
    """What became of one file of a batch.

    Parameters
    ----------
    path : Path or UPath
        The file.
    manifest : Manifest
        Status, reason, areas, times; on disk too unless the file was skipped.
    reused : bool
        Whether an earlier run's result was kept.
    """

    path: Place
    manifest: Manifest
    reused: bool = False


@dataclass(frozen=True)
class BatchResult:
    """Outcomes of a batch, in order.

    Parameters
    ----------
    outcomes : tuple of Outcome
        One per file.
    interrupted : bool
        Whether the batch was stopped before its end.
    """

    outcomes: tuple[Outcome, ...]
    interrupted: bool = False

    def count(self, *statuses: str) -> int:
        """How many slides ended with one of these statuses."""
        return sum(o.manifest.status in statuses for o in self.outcomes)

    @property
    def exit_code(self) -> int:
        """0 all done, 1 nothing done, 3 some slides failed or degraded."""
        if self.count("done", "degraded") == 0:
            return 1
        return 3 if self.count("failed", "degraded") else 0

    def to_json(self) -> list[dict[str, Any]]:
        """One JSON object per file."""
        return [
            {
                "slide_id": o.manifest.slide_id,
                "slide": o.manifest.slide,
                "status": o.manifest.status,
                "reason": o.manifest.reason,
                "reused": o.reused,
                "seconds": o.manifest.seconds,
            }
            for o in self.outcomes
        ]
