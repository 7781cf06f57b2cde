"""Sums up what a check of GeoJSON files found, in lines, JSON and an exit code."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wsi_pipeline.annotations.checking import check_geojson
from wsi_pipeline.annotations.mending import mend_geojson
from wsi_pipeline.annotations.qupath.findings import MEANINGS, Finding
from wsi_pipeline.errors import WsiError
from wsi_pipeline.publishing import printable

_CODES = (0, 3, 1)  # the worst comes last


@dataclass(frozen=True)
class Verdict:
    """What is to say of a file.

    Parameters
    ----------
    path : Path
        The file.
    findings : tuple of Finding
        What QuPath would refuse or alter.
    copy : Path or None
        Its mended copy.
    mended, lost : tuple of str
        What was mended in it, and what is not in it.
    error : str
        Why nothing could be done.
    fixed : bool
        Whether a copy was asked for.
    """

    path: Path
    findings: tuple[Finding, ...] = ()
    copy: Path | None = None
    mended: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    error: str = ""
    fixed: bool = False

    @property
    def code(self) -> int:
        """0 good, 3 not all of it, 1 nothing of it."""
        if self.error or (self.lost and not self.copy):
            return 1
        if self.fixed:
            return 3 if self.lost else 0
        return 1 if self.refused else 3 if self.findings else 0

    @property
    def refused(self) -> bool:
        """Whether QuPath would show nothing of the file."""
        return any(
            finding.effect == "abort"
            or (finding.effect == "dropped" and finding.where.endswith("file"))
            for finding in self.findings
        )

    def lines(self) -> list[str]:
        """A line for each thing, and one that sums them up."""
        if self.error:
            return [f"{self._name}: {self.error}"]
        if self.fixed:
            lines = [f"{self._name}: mended: {line}" for line in self.mended]
            lines += [f"{self._name}: NOT mended: {line}" for line in self.lost]
            return [*lines, f"{self._name}: {self._copied()}"]
        lines = [f"{self._name}: {finding}" for finding in self.findings]
        return [*lines, f"{self._name}: {self._judged()}"]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        rows = [asdict(finding) for finding in self.findings]
        said = {"file": self._name, "code": self.code, "findings": rows}
        if self.fixed:
            copy = printable(str(self.copy)) if self.copy else None
            said |= {"copy": copy, "mended": self.mended, "lost": self.lost}
        return said | ({"error": self.error} if self.error else {})

    @property
    def _name(self) -> str:
        return printable(str(self.path))

    def _judged(self) -> str:
        if not self.findings:
            return "fine"
        counts = Counter(finding.effect for finding in self.findings)
        told = "; ".join(
            f"{counts[effect]} {effect}: {meaning}"
            for effect, meaning in MEANINGS.items()
            if counts[effect]
        )
        return f"{told} (`--fix` writes a mended copy)"

    def _copied(self) -> str:
        if self.copy:
            name = printable(str(self.copy))
            return f"written to {name}, which QuPath imports as it stands"
        return "cannot be mended" if self.lost else "fine, no copy is needed"


def check_file(path: Path) -> Verdict:
    """Check a file; what keeps it from being read is said, not raised."""
    try:
        return Verdict(path, tuple(check_geojson(path)))
    except WsiError as error:
        return Verdict(path, error=str(error))


def fix_file(path: Path) -> Verdict:
    """Write a mended copy; what keeps it from being written is said, not raised."""
    try:
        done = mend_geojson(path)
    except WsiError as error:
        return Verdict(path, error=str(error), fixed=True)
    return Verdict(path, copy=done.copy, mended=done.mended, lost=done.lost, fixed=True)


def worst(verdicts: Iterable[Verdict]) -> int:
    """The exit code for several files."""
    return max((verdict.code for verdict in verdicts), key=_CODES.index)
