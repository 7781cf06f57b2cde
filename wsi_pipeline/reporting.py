"""Turns what became of each slide into report.html and slides.csv."""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.inert import cell, shown
from wsi_pipeline.publishing import publish_bytes
from wsi_pipeline.results import Manifest, SlideFolder

Status = Literal["done", "degraded", "failed", "skipped"]

STATUSES: tuple[Status, ...] = ("done", "degraded", "failed", "skipped")
"""Every status a slide can have, in the order of the totals."""


@dataclass(frozen=True, slots=True)
class ClassArea:
    """Area of one class on one slide.

    Parameters
    ----------
    name : str
        Name of the class.
    rgb : tuple of int
        Its colour, 0 to 255.
    mm2 : float
        Area in mm2.
    """

    name: str
    rgb: tuple[int, int, int]
    mm2: float


@dataclass(frozen=True)
class Attention:
    """How the patches of one slide were chosen, and what the selector predicts.

    Parameters
    ----------
    patches, chosen : int
        How many there were, and how many were chosen.
    captured : float
        Share of the attention on the chosen ones, 0 to 1.
    predictions : tuple of (str, float)
        Probability per task.
    how : str
        Mode, batch, device, budget and peaks, in words.
    """

    patches: int
    chosen: int
    captured: float
    predictions: tuple[tuple[str, float], ...] = ()
    how: str = ""


@dataclass(frozen=True)
class SlideRow:
    """What became of one slide. None stands for what was never reached.

    Parameters
    ----------
    slide_id : str
        Name of its folder of results, [A-Za-z0-9._-].
    slide : str
        The slide's file name or the sample's name, as the user knows it.
    status : str
        One of `STATUSES`.
    reason : str
        A sentence; empty where everything went as planned.
    reused : bool
        The work was finished by an earlier run.
    tissue_mm2 : float or None
        Area of tissue.
    areas : tuple of ClassArea
        Classes other than background.
    examined_share : float or None
        Share of the tissue that was segmented, 0 to 1.
    mpp : float or None
        um/px of level 0.
    mpp_source : str
        Where it came from.
    seconds : float or None
        Time spent.
    peak_memory_bytes : int or None
        Highest memory of the process.
    folder : str or None
        Folder of its results relative to the report, where there is one.
    pictures : tuple of str
        Which of thumbnail.png, overlay.png, attention.png, top_patches.png the folder
        holds.
    files : tuple of (str, str)
        What was exported to the folder: what it is, and its name.
    attention : Attention or None
        The choice among the patches.
    unreadable_tiles : int or None
        Tiles of the slide that could not be decoded.
    warnings : tuple of str
        Sentences that a reader should know.

    Raises
    ------
    ConfigError
        If the status is none of `STATUSES`.
    """

    slide_id: str
    slide: str
    status: Status
    reason: str = ""
    reused: bool = False
    tissue_mm2: float | None = None
    areas: tuple[ClassArea, ...] = ()
    examined_share: float | None = None
    mpp: float | None = None
    mpp_source: str = ""
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    folder: str | None = None
    pictures: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    attention: Attention | None = None
    unreadable_tiles: int | None = None
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ConfigError(
                f"slide {self.slide_id!r}: status must be one of "
                f"{', '.join(STATUSES)}, got {self.status!r}"
            )


@dataclass(frozen=True)
class RunFacts:
    """What is true of a whole run.

    Parameters
    ----------
    model : str
        Name of the model.
    purpose : str
        What the model is for, in one sentence, from its card.
    licence : str
        Licence or limits of the model.
    version : str
        Version of this package.
    started : str
        Date and time of the start, as it should be shown.
    seconds : float
        Duration of the run.
    command : str
        What was typed.
    """

    model: str
    purpose: str
    licence: str
    version: str
    started: str
    seconds: float
    command: str = ""


def write_report(out: Path, rows: Sequence[SlideRow], run: RunFacts) -> None:
    """Write slides.csv and report.html into a folder of results.

    The page needs no network: its styles are inside, its pictures are links to the
    folders of the slides. Rows are sorted by slide_id; equal input gives equal bytes.

    Parameters
    ----------
    out : Path
        Folder of results.
    rows : sequence of SlideRow
        One per slide.
    run : RunFacts
        What is true of all of them.

    Raises
    ------
    ExportError
        If a file cannot be written.
    """
    ordered = sorted(rows, key=lambda row: (row.slide_id, row.slide))
    # names of files need not be valid Unicode; the report shows such bytes as \\udcff
    for name, text in (
        ("slides.csv", _csv(ordered)),
        ("report.html", _html(ordered, run)),
    ):
        publish_bytes(out / name, text.encode("utf-8", "backslashreplace"))


def row_of(out: Path, manifest: Manifest, *, reused: bool) -> SlideRow:
    """The row of a slide, from its manifest and the pictures in its folder.

    Parameters
    ----------
    out : Path
        Folder of results.
    manifest : Manifest
        What became of the slide.
    reused : bool
        The work was finished by an earlier run.
    """
    folder, facts = SlideFolder(out / manifest.slide_id), manifest.facts
    shown = manifest.status in ("done", "degraded")
    pictures = folder.thumbnail, folder.overlay, folder.attention, folder.top_patches
    colours = {name: tuple(rgb) for name, rgb in manifest.model.get("classes", ())}
    tile, stitch = facts.get("tile", {}), facts.get("stitch", {})
    select = facts.get("select", {})
    return SlideRow(
        slide_id=manifest.slide_id,
        slide=manifest.slide,
        status=manifest.status,
        reason=manifest.reason,
        reused=reused,
        tissue_mm2=facts.get("tissue", {}).get("tissue_mm2"),
        areas=tuple(
            ClassArea(name, colours[name], mm2)
            for name, mm2 in stitch.get("area_mm2", {}).items()
            if name in colours
        ),
        examined_share=(
            stitch["share_in_detail"] + stitch["share_coarsely"] if stitch else None
        ),
        mpp=sum(tile["mpp"]) / 2 if tile else None,
        mpp_source=tile.get("mpp_source", ""),
        seconds=sum(manifest.seconds.values()) if manifest.seconds else None,
        peak_memory_bytes=max(manifest.peak_bytes.values(), default=None),
        folder=manifest.slide_id if folder.path.is_dir() else None,
        pictures=tuple(p.name for p in pictures if shown and p.is_file()),
        files=tuple(_files(facts.get("export", {}))),
        attention=_attention(select) if "patches" in select else None,
        unreadable_tiles=tile.get("unreadable_tiles"),
        warnings=(*tile.get("warnings", ()), *select.get("warnings", ())),
    )


def _files(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the record of the stage "export" says was written."""
    for file in facts.get("files", ()):
        yield file["title"], file["path"]
    for name in facts.get("detections", ()):
        yield "Attention for QuPath", name


def _attention(facts: Mapping[str, Any]) -> Attention:
    """What the record of the stage "select" says."""
    net = f"{facts['device']}, {facts['precision']}"
    words = [
        f"mode {facts['mode']}",
        f"{facts['batch']} patches at a time on {net}",
        f"{_memory(facts['budget_bytes'])} allowed",
        f"{_memory(facts['peak_reserved_bytes'])} used at the peak",
    ]
    if facts["downgrades"]:
        words.append(f"fewer at a time {len(facts['downgrades'])} times, out of memory")
    if screen := facts.get("screen"):
        missed = screen["missed"]
        words.append(
            f"{screen['kept'] + screen['audited']} in full after a coarse look at all "
            f"for a recall of {screen['recall']:g}; of the best {facts['top_m']} about "
            f"{missed['estimate']:g} missed ({missed['low']} to {missed['high']})"
        )
    return Attention(
        facts["patches"],
        facts["chosen"],
        facts["captured_mass"],
        tuple(facts["predictions"].items()),
        "; ".join(words),
    )


def _csv(rows: Sequence[SlideRow]) -> str:
    classes = _classes(rows)
    choices = [row.attention for row in rows if row.attention]
    tasks = dict.fromkeys(task for one in choices for task, _ in one.predictions)
    header = [
        *("slide_id", "slide", "status", "reason", "reused", "mpp_um_per_px"),
        *("mpp_source", "tissue_mm2", "examined_share", "seconds"),
        *("peak_memory_bytes", "unreadable_tiles", "warnings"),
        *("patches", "chosen_patches", "captured_attention"),
        *(f"area_mm2_{name}" for name, _ in classes),
        *(f"probability_{task}" for task in tasks),
    ]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([cell(name) for name in header])
    for row in rows:
        areas = {area.name: area.mm2 for area in row.areas}
        choice = row.attention
        found = dict(choice.predictions) if choice else {}
        values: list[str | float | None] = [
            *(row.slide_id, row.slide, row.status, row.reason),
            *("true" if row.reused else "false", row.mpp, row.mpp_source),
            *(row.tissue_mm2, row.examined_share, row.seconds, row.peak_memory_bytes),
            row.unreadable_tiles,
            " | ".join(row.warnings),
            *(getattr(choice, key, None) for key in ("patches", "chosen", "captured")),
            *(areas.get(name) for name, _ in classes),
            *(found.get(task) for task in tasks),
        ]
        writer.writerow([_written(value) for value in values])
    return stream.getvalue()


def _written(value: str | float | None) -> str | int | None:
    """A cell; floats in ten digits."""
    return f"{value:.10g}" if isinstance(value, float) else cell(value)


def _html(rows: Sequence[SlideRow], run: RunFacts) -> str:
    environment = Environment(
        loader=PackageLoader("wsi_pipeline", "."),
        autoescape=True,
        finalize=lambda value: shown(value) if isinstance(value, str) else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=_number,
        duration=_duration,
        memory=_memory,
        colour=_colour,
        probability=_probability,
    )
    counts = Counter(row.status for row in rows)
    totals = {
        name: sum(a.mm2 for row in rows for a in row.areas if a.name == name)
        for name, _ in _classes(rows)
    }
    return environment.get_template("report.html.j2").render(
        rows=rows,
        run=run,
        counts=[(status, counts[status]) for status in STATUSES],
        reused=sum(row.reused for row in rows),
        tissue_mm2=sum(row.tissue_mm2 or 0.0 for row in rows),
        areas=[ClassArea(name, rgb, totals[name]) for name, rgb in _classes(rows)],
    )


def _classes(
    rows: Sequence[SlideRow],
) -> list[tuple[str, tuple[int, int, int]]]:
    """Every class by name, in the order in which the rows bring them up."""
    found: dict[str, tuple[int, int, int]] = {}
    for row in rows:
        for area in row.areas:
            found.setdefault(area.name, area.rgb)
    return list(found.items())


def _number(value: float) -> str:
    """Three significant digits."""
    if value >= 100 or value == 0:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 0.001 else "< 0.001"


def _probability(value: float) -> str:
    """Two digits; never that something is sure."""
    if 0.01 <= value <= 0.99:
        return f"{value:.2f}"
    return "above 0.99" if value > 0.99 else "below 0.01"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _memory(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _colour(rgb: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)
