"""The folder of one slide's results: names, stage records, manifest."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.locking import Lock
from wsi_pipeline.places import Place, list_objects, remote_errors
from wsi_pipeline.publishing import (
    KEPT,
    STAGING,
    clear_staging,
    list_files,
    make_folder,
    publish_json,
    remove,
    sha256_file,
)
from wsi_pipeline.repeating import put_together, split_config, split_facts

Status = Literal["done", "degraded", "failed", "skipped"]
NOTICE = "Research use only, not for diagnosis."


@dataclass(frozen=True)
class StageRecord:
    """What one stage published.

    Parameters
    ----------
    verb : str
        "tile", "tissue", "select", "segment", "stitch" or "export".
    key : str
        sha256 over the inputs' keys, the options and the weights that decide the
        outputs.
    options : mapping
        The act's options, resolved.
    outputs : mapping of str to int
        Paths relative to the slide's folder, with their size in bytes; labels count
        apart from the pyramid they lie in.
    facts : mapping
        What was found and measured, JSON values only.
    seconds : float
        Wall time.
    peak_bytes : int
        Peak resident memory of the process during the stage.
    """

    verb: str
    key: str
    options: Mapping[str, Any]
    outputs: Mapping[str, int]
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    peak_bytes: int = 0


_RECORD = TypeAdapter(StageRecord)


class SlideFolder:
    """Where a slide's results lie; only names, nothing is opened.

    Parameters
    ----------
    place : Path or UPath
        ``<results>/<slide_id>``; what tiling makes may be remote.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.pyramid: Place = place / "slide.ome.zarr"
        self.thumbnail: Place = place / "thumbnail.png"
        self.manifest: Place = place / "manifest.json"
        self.run: Place = place / "run.json"
        self.crate: Place = place / "ro-crate-metadata.json"
        self.config: Place = place / "config.toml"

    @property
    def slide_id(self) -> str:
        """The folder's name."""
        return self.place.name

    @property
    def path(self) -> Path:
        """The folder, which all stages but tiling need on this machine.

        Raises
        ------
        ConfigError
            If it is remote.
        """
        if not isinstance(self.place, Path):
            raise ConfigError(
                f"{self.place}: `wsi tile` can write there; the other stages keep "
                "their results in a local folder"
            )
        return self.place

    @property
    def tissue(self) -> Path:
        """The tissue mask."""
        return self.path / "tissue.png"

    @property
    def patches(self) -> Path:
        """The grid of patches."""
        return self.path / "patches.parquet"

    @property
    def selection(self) -> Path:
        """Scores of patches, and which are chosen."""
        return self.path / "selection.parquet"

    @property
    def journal(self) -> Path:
        """What a selection that is under way has found; gone when it is published."""
        return self.path / STAGING / f"selection{KEPT}"

    @property
    def predictions(self) -> Path:
        """What the nets put out."""
        return self.path / "predictions.zarr"

    @property
    def attention(self) -> Path:
        """Picture of the scores."""
        return self.path / "attention.png"

    @property
    def heat_map(self) -> Path:
        """The scores as an image that lies over the pyramid."""
        return self.path / "attention.ome.zarr"

    @property
    def top_patches(self) -> Path:
        """Picture of the patches with the best scores."""
        return self.path / "top_patches.png"

    @property
    def plans(self) -> Path:
        """Measured peaks of nets, one file beside run.json for all slides."""
        return self.path.resolve().parent / "plans.json"

    @property
    def overlay(self) -> Path:
        """Picture of the classes."""
        return self.path / "overlay.png"

    def lock(self) -> Lock:
        """What a run holds while it writes there; it lies beside the folder."""
        return Lock(self.path.parent / STAGING / f"{self.slide_id}.lock")

    def clear(self, *, finished: bool = False) -> None:
        """Remove what killed runs left beside results; see `clear_staging`."""
        for place in (self.path, self.path / "stages", self.label("")):
            clear_staging(place, finished=finished)

    def prepare(self) -> None:
        """Make the folder.

        Raises
        ------
        ExportError
            If it cannot be written.
        """
        make_folder(self.place)

    def label(self, name: str) -> Path:
        """Folder of a label image."""
        return self.path / "slide.ome.zarr" / "labels" / name

    def name_of(self, place: Place) -> str:
        """Name of something in the folder, relative to it."""
        return str(place).removeprefix(str(self.place)).lstrip("/")

    def record(self, verb: str) -> StageRecord | None:
        """The record of a stage, or None where it has not been published."""
        file = self.place / "stages" / f"{verb}.json"
        try:
            return _RECORD.validate_json(file.read_bytes())
        except remote_errors(ValidationError):
            return None

    def holds(self, record: StageRecord) -> bool:
        """Whether everything that a stage published is there, in its full size."""
        return all(
            size_of(self.place / name) == size for name, size in record.outputs.items()
        )

    def withdraw(self, verbs: Sequence[str]) -> None:
        """Take back the manifest and the records of stages that are made anew."""
        for place in (self.manifest, self.crate, self.run):
            remove(place)
        for verb in reversed(verbs):
            remove(self.place / "stages" / f"{verb}.json")

    def keep_one_form(self, name: str, kept: Path | None) -> None:
        """Remove the files whose names begin with `name`, such as .gz ones, but one."""
        for old in self.path.glob(f"{name}*"):
            if old != kept:
                remove(old)

    def publish_record(self, record: StageRecord) -> None:
        """Write a stage's record: the stage counts as published from here on."""
        publish_json(self.place / "stages" / f"{record.verb}.json", asdict(record))


@dataclass(frozen=True)
class Manifest:
    """What became of a slide, and every file that belongs to it.

    Parameters
    ----------
    slide_id, slide : str
        Id and file name.
    key : str
        Key of the last stage: equal keys mean equal input, config, model and version.
    status : str
        "done", "degraded", "failed" or "skipped".
    reason : str
        Why, in a sentence; empty for a plain "done".
    facts : mapping
        By stage: what was found.
    config : mapping
        The resolved config.
    model : mapping
        Name, version and sha256 of the weights.
    seconds, peak_bytes : mapping
        By stage.
    files : mapping
        Relative path to ``{"size": bytes, "sha256": hex}``.
    software : mapping
        Versions of the packages that this one needs.
    ended : str
        Date and time.

    Notes
    -----
    ``manifest.json`` holds what a second run of the same repeats to the byte; times,
    memory, places and how the work was shared out are in ``run.json`` beside it.
    """

    slide_id: str
    slide: str
    key: str
    status: Status
    reason: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=dict)
    ended: str = ""
    version: str = version("wsi-pipeline")
    notice: str = NOTICE

    def documents(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What ``manifest.json`` and ``run.json`` hold, JSON values."""
        same = asdict(self)
        run = {name: same.pop(name) for name in ("seconds", "peak_bytes", "ended")}
        same["facts"], run["facts"] = split_facts(same["facts"])
        same["config"], run["config"] = split_config(same["config"])
        return same, run

    def publish(self, folder: SlideFolder) -> None:
        """Write ``run.json``, then ``manifest.json``: the slide counts as finished."""
        same, run = self.documents()
        publish_json(folder.run, run)
        publish_json(folder.manifest, same)

    @staticmethod
    def load(folder: SlideFolder) -> "Manifest | None":
        """Read both files; None where one is missing or is not what it should be."""
        try:
            same = _JSON.validate_json(folder.manifest.read_bytes())
            run = _JSON.validate_json(folder.run.read_bytes())
            return _MANIFEST.validate_python(put_together(same, run))
        except (OSError, ValidationError):
            return None


_JSON: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
_MANIFEST = TypeAdapter(Manifest)


def size_of(path: Place) -> int:
    """Bytes of a file, or of all files of a folder but its labels; -1 if missing."""
    if not isinstance(path, Path):
        sizes = list_objects(path)
        images = [n for name, n in sizes.items() if not name.startswith("labels/")]
        return sum(images) if sizes else -1
    if path.is_file():
        return path.stat().st_size
    if not path.is_dir():
        return -1
    return sum(
        file.stat().st_size
        for file in list_files(path)
        if file.relative_to(path).parts[0] != "labels"
    )


def checksums(folder: SlideFolder) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file of a slide's results.

    But of those that tell how they were made: the manifest, what lies beside it about
    the same run, and the records of the stages.
    """
    beside = folder.manifest, folder.run, folder.crate, folder.place / "stages"
    notes = [folder.path / place.name for place in beside]
    return {
        path.relative_to(folder.path).as_posix(): {
            "size": path.stat().st_size,
            "sha256": sha256_file(path),
        }
        for path in list_files(folder.path)
        if not any(path.is_relative_to(note) for note in notes)
    }
