"""What can be wrong with a GeoJSON file, and what QuPath makes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Json = dict[str, Any]  # Any: what a JSON file may hold

Effect = Literal["abort", "dropped", "repaired", "changed", "kept"]

MEANINGS: dict[Effect, str] = {
    "abort": "QuPath imports nothing of the whole file",
    "dropped": "QuPath leaves it out",
    "repaired": "QuPath draws it in another way",
    "changed": "QuPath reads something else, without a word",
    "kept": "QuPath takes it as it stands, and it does not work as it should",
}
"""What becomes of something that is wrong; the worst comes first."""


@dataclass(frozen=True)
class Defect:
    """Something wrong with JSON values, and how to mend it.

    Parameters
    ----------
    effect : str
        What QuPath 0.6 to 0.8 do.
    message : str
        What was found and what was expected.
    cure : callable, optional
        Changes the JSON values in place; without one, the feature cannot be mended.
    cured : str
        What `cure` does, as a participle.
    before : str, optional
        What QuPath 0.5 does, where that differs.
    """

    effect: Effect
    message: str
    cure: Callable[[], object] | None = None
    cured: str = ""
    before: Effect | None = None


@dataclass(frozen=True)
class Finding:
    """Something that QuPath would refuse or alter.

    Parameters
    ----------
    effect : str
        What QuPath 0.6 to 0.8 do, one of `MEANINGS`.
    where : str
        "file" or "feature N", counted from 0 in the order of the file; of something
        nested, "feature N, child M".
    message : str
        What was found and what was expected.
    before : str, optional
        What QuPath 0.5 does, where that differs.
    """

    effect: Effect
    where: str
    message: str
    before: Effect | None = None

    @classmethod
    def of(cls, where: str, defect: Defect) -> "Finding":
        """A defect with its place."""
        return cls(defect.effect, where, defect.message, defect.before)

    def __str__(self) -> str:
        old = f" (QuPath 0.5: {self.before})" if self.before else ""
        return f"{self.effect}{old}: {self.where}: {self.message}"


class Seen:
    """What the features before this one hold: ids, and the first colour of a class."""

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.colours: dict[str, tuple[int, int, int]] = {}
