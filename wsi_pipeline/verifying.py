"""Reads results again: every file, shard, chunk, count and hash against the manifests.

Names what is missing, changed or extra, and what tells of different areas.
"""

import csv
import itertools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
import zarr

from wsi_pipeline.agreement import find_disagreements
from wsi_pipeline.chunks import missing_inside
from wsi_pipeline.crates import describe_slide
from wsi_pipeline.errors import ConfigError, WsiError
from wsi_pipeline.process import cpu_count
from wsi_pipeline.publishing import STAGING, json_bytes, sha256_file
from wsi_pipeline.results import Manifest, SlideFolder

type Kind = Literal["missing", "changed", "extra", "incomplete", "disagrees"]
_ARRAYS = ("zarr.json", ".zarray")
# What zarr raises on metadata that are damaged, beside OSError.
_DAMAGE = (OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class Finding:
    """What is wrong with one file.

    Parameters
    ----------
    path : str
        Relative to the results folder.
    kind : str
        "missing", "changed", "extra", "incomplete" or "disagrees".
    detail : str
        In words; may be empty.
    """

    path: str
    kind: Kind
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
    """What was read, and all that is wrong with it.

    Parameters
    ----------
    slides, files, size_bytes : int
        Folders of slides, and what was read in them.
    findings : tuple of Finding
        By path.
    """

    slides: int
    files: int
    size_bytes: int
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """0 all is as it was published, 3 something is not."""
        return 3 if self.findings else 0

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def verify_results(
    out: Path,
    *,
    jobs: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Verdict:
    """Verify all slides of a results folder.

    Parameters
    ----------
    out : Path
        Results folder of `wsi run`, or the folder of one slide.
    jobs : int
        Threads that read and hash; 0 = one per CPU.
    progress : callable, optional
        Called with (slides done, slides in all).

    Returns
    -------
    Verdict

    Raises
    ------
    ConfigError
        If there are no results.

    Notes
    -----
    Memory: a buffer per thread, and what `find_disagreements` states.
    """
    alone = (out / "manifest.json").is_file()
    folders = [out] if alone else [p.parent for p in sorted(out.glob("*/stages"))]
    findings = [] if alone else list(_of_run(out))
    if not folders and not findings:
        raise ConfigError(f"{out}: no results of `wsi run` (no */manifest.json)")
    root = out.parent if alone else out
    files = size = 0
    with ThreadPoolExecutor(jobs or cpu_count()) as pool:
        for number, path in enumerate(folders, 1):
            slide = _Slide(SlideFolder(path), root, pool)
            findings += slide.verify()
            files, size = files + slide.files, size + slide.size_bytes
            if progress is not None:
                progress(number, len(folders))
    ordered = sorted(findings, key=lambda f: (f.path, f.kind))
    return Verdict(len(folders), files, size, tuple(ordered))


def _of_run(out: Path) -> Iterator[Finding]:
    """What the files about all slides name and is not there."""
    run, table = out / "run.json", out / "slides.csv"
    if run.is_file():
        try:
            rows = orjson.loads(run.read_bytes())["slides"]
            ids = {r["slide_id"] for r in rows if r["status"] in ("done", "degraded")}
        except (ValueError, KeyError, TypeError):
            yield Finding(run.name, "changed", "cannot be read")
            return
        for name in sorted(ids):
            if not (out / name / "manifest.json").is_file():
                yield Finding(f"{name}/manifest.json", "missing", "run.json names it")
    if table.is_file():
        try:
            with table.open(encoding="utf-8", newline="") as file:
                listed = {row["slide_id"] for row in csv.DictReader(file)}
        except (ValueError, KeyError):
            yield Finding(table.name, "changed", "cannot be read")
            return
        for path in sorted(out.glob("*/manifest.json")):
            if path.parent.name not in listed:
                yield Finding(table.name, "incomplete", f"lacks {path.parent.name}")


class _Slide:
    """One slide's folder, read once."""

    def __init__(
        self, folder: SlideFolder, root: Path, pool: ThreadPoolExecutor
    ) -> None:
        self._folder, self._root, self._pool = folder, root, pool
        self.files = self.size_bytes = 0

    def verify(self) -> list[Finding]:
        manifest = Manifest.load(self._folder)
        if manifest is None:
            why = "missing, or cannot be read, or run.json beside it"
            return [self._finding("manifest.json", "missing", why)]
        if manifest.status == "failed":
            return []  # nothing of it is published
        findings = [*self._notes(manifest), *self._extra(manifest.files)]
        findings += self._hashes(manifest.files)
        findings += self._chunks(manifest.files)
        if not findings:
            findings += self._areas()
        return findings

    def _finding(self, name: str, kind: Kind, detail: str = "") -> Finding:
        path = self._folder.path / name
        return Finding(path.relative_to(self._root).as_posix(), kind, detail)

    def _notes(self, manifest: Manifest) -> Iterator[Finding]:
        """The manifest, and what lies beside it: each follows from the others."""
        folder = self._folder
        same, run = manifest.documents()
        crate = describe_slide(folder, manifest)
        documents = {folder.manifest: same, folder.run: run, folder.crate: crate}
        for place, document in documents.items():
            path = folder.path / place.name
            if not path.is_file():
                yield self._finding(path.name, "missing")
            elif path.read_bytes() != json_bytes(document):
                why = "does not fit the manifest and the files beside it"
                yield self._finding(path.name, "changed", why)
        for verb in manifest.facts:
            if folder.record(verb) is None:
                why = "missing, or cannot be read"
                yield self._finding(f"stages/{verb}.json", "missing", why)

    def _extra(self, files: Mapping[str, Any]) -> Iterator[Finding]:
        """What nobody has published."""
        folder = self._folder
        known = {*files, "manifest.json", "run.json", "ro-crate-metadata.json"}
        for path in sorted(folder.path.rglob("*")):
            name = path.relative_to(folder.path).as_posix()
            if STAGING in Path(name).parts:
                if path.name == STAGING:
                    why = "of a run that was interrupted or is under way"
                    yield self._finding(name, "extra", why)
            elif not (path.is_dir() or name in known or name.startswith("stages/")):
                yield self._finding(name, "extra", "not in the manifest")

    def _hashes(self, files: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
        """Files that are not as the manifest says."""

        def read(item: tuple[str, Mapping[str, Any]]) -> Finding | None:
            name, facts = item
            path = self._folder.path / name
            try:
                size = path.stat().st_size
                if size != facts["size"]:
                    why = f"{size} bytes, expected {facts['size']}"
                    return self._finding(name, "changed", why)
                if sha256_file(path) != facts["sha256"]:
                    return self._finding(name, "changed", "another sha256")
            except OSError as error:
                return self._finding(name, "missing", error.strerror or "")
            return None

        self.files += len(files)
        self.size_bytes += sum(int(facts["size"]) for facts in files.values())
        return filter(None, self._pool.map(read, files.items()))

    def _chunks(self, files: Mapping[str, Any]) -> Iterator[Finding]:
        """Arrays of which a chunk was never written, whatever the manifest says."""
        arrays = [Path(name).parent for name in files if Path(name).name in _ARRAYS]
        for array in arrays:
            try:
                missing = _missing_chunks(self._folder.path / array)
            except _DAMAGE as error:
                yield self._finding(array.as_posix(), "incomplete", str(error))
                continue
            if missing:
                why = f"{missing} chunks were never written"
                yield self._finding(array.as_posix(), "incomplete", why)

    def _areas(self) -> Iterator[Finding]:
        """Where label, tables and exports state different areas."""
        try:
            for sentence in find_disagreements(self._folder):
                yield self._finding("manifest.json", "disagrees", sentence)
        except WsiError as error:
            yield self._finding("manifest.json", "disagrees", str(error))


def _missing_chunks(path: Path) -> int:
    """Chunks of an array that are not there, those inside of shards included."""
    found = zarr.open(path, mode="r")
    if isinstance(found, zarr.Group):
        return 0
    array: Any = found  # zarr's metadata are two unlike classes
    outer = array.shards or array.chunks
    across = tuple(o // c for o, c in zip(outer, array.chunks, strict=True))
    grid = (-(-n // o) for n, o in zip(array.shape, outer, strict=True))
    missing = 0
    for place in itertools.product(*map(range, grid)):
        corner = [i * o for i, o in zip(place, outer, strict=True)]
        wanted = tuple(
            min(-(-(n - at) // c), a)
            for n, at, c, a in zip(
                array.shape, corner, array.chunks, across, strict=True
            )
        )
        file = path / array.metadata.encode_chunk_key(place)
        if not file.is_file():
            missing += 1
        elif array.shards:
            missing += missing_inside(file, across, wanted)
    return missing
