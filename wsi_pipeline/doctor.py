"""Looks at this machine: what must be there to read slides and to run nets.

Asks nothing of the network: versions are compared with those that are known to be safe.
"""

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.version import Version

from wsi_pipeline.process import cpu_count, total_memory_bytes
from wsi_pipeline.software import PACKAGE

ADVISORIES = {
    "distributed": "PYSEC-2026-169: its dashboard ran code of strangers",
    "imagecodecs": "CVE-2025-54874 of OpenJPEG: memory written by a JPEG 2000",
    "openslide-bin": "CVE-2026-48977: memory written by a slide of Ventana's",
    "pillow": "CVE-2026-112393: memory written where TIFFs are made",
    "torch": "CVE-2025-32434, CVE-2026-24747: checkpoints ran code",
    "zarr": "a lost chunk reads as background",
}
"""What older versions of a package are known for."""

LIBRARIES = {
    "OpenSlide": ("4.0.1", "CVE-2026-48977, CVE-2026-54604"),
    "OpenJPEG": ("2.5.4", "CVE-2025-54874"),
    "libwebp": ("1.3.2", "CVE-2023-4863"),
}
"""Libraries that come inside packages: the least version, and why."""

LEAST_FREE_BYTES = 10 * 10**9  # a pyramid of 1 GP takes 1.7 GB
LEAST_MEMORY_BYTES = 4 << 30
LEAST_FILES = 100_000

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """What was found of one thing.

    Parameters
    ----------
    name, found : str
        What was looked at, and what is there.
    level : str
        "ok", "warning", or "error": slides cannot or should not be run so.
    cure : str
        What to do; empty where all is well.
    """

    name: str
    found: str
    level: Level = "ok"
    cure: str = ""


def examine(folder: Path) -> list[Finding]:
    """Look at the software, the machine, and a folder for results.

    Parameters
    ----------
    folder : Path
        Where results are to go; it is not made.
    """
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python, _packages, _libraries, _compiler, _device, _machine, _texts,
    )  # fmt: skip
    found = [finding for check in checks for finding in check()]
    return [*found, *_disk("results", folder), *_disk("temporary files", _temporary())]


def exit_code(findings: list[Finding]) -> int:
    """1 where something is wrong, else 0."""
    return int(any(finding.level == "error" for finding in findings))


def _python() -> Iterator[Finding]:
    yield Finding("Python", ".".join(map(str, sys.version_info[:3])))


def _packages() -> Iterator[Finding]:
    """Each that is needed, and optional ones that are there."""
    seen = set()
    for text in sorted(requires(PACKAGE) or ()):
        wanted = Requirement(text)
        optional = wanted.marker is not None and not wanted.marker.evaluate()
        if wanted.name in seen:
            continue
        seen.add(wanted.name)
        cure = f"pip install '{wanted.name}{wanted.specifier}'"
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            if not optional:
                yield Finding(wanted.name, "missing", "error", cure)
            continue
        if wanted.specifier.contains(found, prereleases=True):
            yield Finding(wanted.name, found)
        else:
            why = ADVISORIES.get(wanted.name, "")
            yield Finding(wanted.name, found, "error", f"{cure}; {why}".rstrip("; "))


def _libraries() -> Iterator[Finding]:
    """Versions of what is inside wheels, or of the system's own."""
    try:
        found = _library_versions()
    except (ImportError, OSError) as error:  # OSError: a shared library is missing
        yield Finding("image libraries", str(error), "error", "install them anew")
        return
    for name, (least, why) in LIBRARIES.items():
        own = found.get(name, "unknown")
        if own != "unknown" and Version(own) >= Version(least):
            yield Finding(name, own)
        else:
            cure = f"{least} or newer is safe ({why}); pip install --upgrade "
            package = "openslide-bin" if name == "OpenSlide" else "imagecodecs"
            yield Finding(name, own, "error", cure + package)


def _library_versions() -> dict[str, str]:
    told = import_module("imagecodecs").version()
    names = {"OpenJPEG": "openjpeg", "libwebp": "libwebp"}
    hits = {k: re.search(rf"\b{v}-(\d[\d.]*)", told) for k, v in names.items()}
    found = {name: hit[1].rstrip(".") for name, hit in hits.items() if hit}
    return found | {"OpenSlide": import_module("openslide").__library_version__}


def _compiler() -> Iterator[Finding]:
    """Numba compiles a function, and the code can be kept."""
    try:
        compiled = import_module("wsi_pipeline.models.compiling").compiled
        double = compiled(_double)
        answer = double(21)
        kept = double.stats.cache_path
    except Exception as error:  # whatever LLVM and its package raise
        cure = "install numba and llvmlite anew; stitching takes ten times as long"
        yield Finding("numba", f"does not compile: {error}", "error", cure)
        return
    if answer != 42:
        yield Finding(
            "numba", f"computes 2 * 21 = {answer}", "error", "install it anew"
        )
    elif not kept:
        cure = "set NUMBA_CACHE_DIR to a folder that can be written"
        yield Finding("numba", "compiles anew in each process", "warning", cure)
    else:
        yield Finding("numba", "compiles, and keeps the code")


def _double(number: int) -> int:
    return 2 * number


def _device() -> Iterator[Finding]:
    try:
        budget = import_module("wsi_pipeline.models.budget")
    except (ImportError, OSError) as error:  # OSError: a shared library is missing
        yield Finding("torch", str(error), "error", "install torch anew")
        return
    device = budget.resolve_device(None)
    told = budget.name_device(device)
    yield Finding(
        "device of the nets", told if device.type == "cuda" else f"{told}; no GPU"
    )


def _machine() -> Iterator[Finding]:
    yield Finding("CPUs", str(cpu_count()))
    memory = total_memory_bytes()
    told = f"{memory / 2**30:.1f} GiB"
    if memory < LEAST_MEMORY_BYTES:
        cure = "4 GiB are needed at least; set --memory and --workers lower"
        yield Finding("memory", told, "warning", cure)
    else:
        yield Finding("memory", told)


def _texts() -> Iterator[Finding]:
    """How names of files and lines on the terminal are written."""
    for name, found in (
        ("names of files", sys.getfilesystemencoding()),
        ("terminal", sys.stdout.encoding or "none"),
    ):
        if found.lower().replace("-", "") == "utf8":
            yield Finding(name, found)
        else:
            yield Finding(name, found, "warning", "export LC_ALL=C.UTF-8")


def _temporary() -> Path:
    return Path(tempfile.gettempdir())


def _disk(name: str, folder: Path) -> Iterator[Finding]:
    """Whether a folder, or what it would be made in, can be written and has room."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield Finding(name, f"{there} cannot be written", "error", "choose another")
        return
    free, files = shutil.disk_usage(there).free, os.statvfs(there)
    told = f"{there}: {free / 1e9:.1f} GB free"
    if free < LEAST_FREE_BYTES:
        yield Finding(name, told, "warning", "a slide of 1 GP takes 2 GB")
    elif files.f_files > 0 and files.f_favail < LEAST_FILES:
        told = f"{there}: {files.f_favail} more files fit"
        yield Finding(name, told, "warning", "choose a disk for more files")
    else:
        yield Finding(name, told)
