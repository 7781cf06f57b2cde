"""Writes docs/promises.md: each promise, the tests that prove it, their last result.

`python -m tests.faults.table RECORD... PAGE`; `make faults` leaves a RECORD (JUnit).
"""

import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
PROMISES = {
    "R1": "Kill it any time, run again: the same result",
    "R2": "A hole never looks like tissue or background",
    "R3": "A broken slide never takes down the batch",
    "R4": "Unreadable tiles are counted, not painted",
    "R5": "Impossible geometry is refused",
    "R6": "A full disk gives a clear stop",
    "R7": "A dead or stalled worker costs time only",
    "R8": "Memory is bounded",
    "R9": "A GPU or a host that is out of memory is survived",
    "R10": "Same input, same bytes",
    "R11": "No pixels are mixed up across processes",
    "R12": "Foreign checkpoints cannot run code",
    "R13": "Hostile names are inert",
    "R14": "No patient data leave",
    "R15": "Two runs on one folder are safe",
    "R16": "Exit code and list of failures are true",
    "R17": "Our own parsers do not crash",
    "R18": "Provenance is complete",
    "R19": "No known-bad dependency",
    "R20": "Exports open elsewhere",
    "R21": "Nothing promised is untested",
}
_MARK = re.compile(r"""promise\(\s*["'](R\d+)["']""")
_HEAD = """# What is promised, and the tests that prove it

Written by `make faults`; do not edit. Research use only, not for diagnosis.
The result is that of the last `make faults`: a promise is kept where all tests passed.

| | Promise | Tests | Last result |
|---|---|---|---|
"""


@dataclass(frozen=True)
class Result:
    """One test of a record.

    Parameters
    ----------
    file : str
        Its module, as the record names it.
    promises : tuple of str
        Ids that it is marked with.
    outcome : str
        "passed", "failed" or "skipped".
    measured : str
        What it measured, in words; may be empty.
    """

    file: str
    promises: tuple[str, ...]
    outcome: str
    measured: str = ""


def linked(folder: Path = TESTS) -> dict[str, list[str]]:
    """Files of tests by the promises that they are marked with."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        name = path.relative_to(folder.parent).as_posix()
        for promise in sorted(set(_MARK.findall(path.read_text(encoding="utf-8")))):
            found.setdefault(promise, []).append(name)
    return found


def read_record(path: Path) -> list[Result]:
    """Results of a JUnit file."""
    results = []
    for case in ET.parse(path).iter("testcase"):  # noqa: S314  # pytest wrote it
        told = [(p.get("name"), p.get("value", "")) for p in case.iter("property")]
        kinds = {child.tag for child in case}
        outcome = "passed"
        if kinds & {"failure", "error"}:
            outcome = "failed"
        elif "skipped" in kinds:
            outcome = "skipped"
        results.append(
            Result(
                case.get("classname", "").replace(".", "/") + ".py",
                tuple(value for name, value in told if name == "promise"),
                outcome,
                "; ".join(value for name, value in told if name == "measured"),
            )
        )
    return results


def table(links: dict[str, list[str]], results: Iterable[Result]) -> str:
    """The page: a row per promise, then what was measured."""
    results = list(results)
    rows, notes = [], []
    for promise, words in PROMISES.items():
        own = [result for result in results if promise in result.promises]
        counts = Counter(result.outcome for result in own)
        told = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
        files = "<br>".join(f"`{name}`" for name in links.get(promise, ()))
        rows.append(
            f"| {promise} | {words} | {files or 'none'} | {told or 'not run'} |"
        )
        notes += [f"- {promise}: {r.measured}" for r in own if r.measured]
    measured = ["", "## Measured", "", *notes] if notes else []
    return _HEAD + "\n".join([*rows, *measured]) + "\n"


if __name__ == "__main__":
    *records, page = map(Path, sys.argv[1:])
    told = [result for record in records for result in read_record(record)]
    page.write_text(table(linked(), told), encoding="utf-8")
