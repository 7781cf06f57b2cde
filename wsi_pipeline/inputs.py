"""Tells what a slide is made of: its files, each with what changes with its content."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsi_pipeline.errors import SlideError
from wsi_pipeline.places import Place, reaching, version_of
from wsi_pipeline.publishing import printable, sha256_file


def list_inputs(slide: Place) -> list[dict[str, Any]]:
    """Names and content of a slide's file; for MIRAX, of those in its folder too.

    Returns
    -------
    list of dict
        ``{"name": relative to the slide's folder, "size": bytes, "sha256": hex}``; of a
        remote slide ``{"name": ..., "version": [...]}``, so that nothing is downloaded.

    Raises
    ------
    SlideError
        If the slide is remote and cannot be reached.
    """
    if not isinstance(slide, Path):
        with reaching(slide, SlideError):
            return [{"name": printable(slide.name), "version": version_of(slide)}]
    side = slide.with_suffix("")
    files = [slide]
    if slide.suffix.lower() == ".mrxs" and side.is_dir():
        files += sorted(side.rglob("*"))
    return [
        {
            "name": printable(path.relative_to(slide.parent).as_posix()),
            "size": path.stat().st_size,
            "sha256": sha256_file(path),
        }
        for path in files
        if path.is_file()
    ]


def versions_of(inputs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What of a slide's files decides its results: not their names."""
    marks: list[str] = []
    for file in inputs:
        marks += file["version"] if "version" in file else [file["sha256"]]
    return marks
