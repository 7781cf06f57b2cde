"""Model folders and their cards: what a model is, without loading any net."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.errors import ModelError, UnknownNameError
from wsi_pipeline.models.calibration import Calibration
from wsi_pipeline.models.foreign import check_ending
from wsi_pipeline.publishing import publish_json, sha256_file

SHIPPED = Path(__file__).parent / "shipped"
"""Folder of the models that come with the package, one folder per model."""


OWN_LABELS = ("tissue", "coverage", "confidence", "annotations")
"""Labels of a slide beside the one that bears the model's name."""
FEATURE_ENCODERS = ("features:", "ips-features:")
"""How the names of encoders begin that read features; the features' length follows."""
_SAME_WIDTH = 0.01  # of a patch, relative: as near as grids must be to their model
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def model_name(name: str) -> str:
    """Check what a model is called: its name becomes a label's folder.

    Raises
    ------
    ValueError
        If a folder could not bear the name, or every slide has a label so called.
    """
    if not _NAME.fullmatch(name) or name in OWN_LABELS:
        raise ValueError(
            f"{name!r} is no name for a model; letters, digits, '.', '_', '-', and "
            f"none of {', '.join(OWN_LABELS)}"
        )
    return name


class _Card(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassCard(_Card):
    """A class of the masks."""

    value: int = Field(ge=0, le=254)
    name: str
    rgb: tuple[int, int, int]


class SelectorCard(_Card):
    """The selector: file, architecture and how it was trained and measured."""

    file: str = "selector.safetensors"
    sha256: str
    mpp: float = Field(gt=0, description="um/px at which patches are encoded")
    patch_px: int = Field(gt=0, description="side of a patch at mpp")
    top_m: int = Field(gt=0, description="patches chosen per slide by default")
    tasks: tuple[str, ...] = Field(description="what each query token predicts")
    architecture: dict[str, Any]
    training: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def inputs(self) -> int:
        """Length F of the features that it reads; 0 where it reads pixels."""
        encoder = str(self.architecture.get("encoder"))
        length = encoder.partition(":")[2]
        reads = encoder.startswith(FEATURE_ENCODERS) and length.isdecimal()
        return int(length) if reads else 0


class ScreenCard(SelectorCard):
    """A small selector that sees the same patches coarser, and says which are worth it.

    `top_m` is that of the selector whose choice it foretells.
    """

    file: str = "screen.safetensors"
    selector_sha256: str = Field(description="of the selector that it was trained from")
    calibration: Calibration


class SegmenterCard(_Card):
    """The segmenter and its density net."""

    file: str = "segmenter.safetensors"
    sha256: str
    mpp: float = Field(gt=0, description="um/px of a region's pixels")
    region_px: int = Field(gt=0, description="side of a region at mpp")
    nodes: int = Field(gt=0, description="side of the sampled image the net sees")
    architecture: dict[str, Any]
    training: dict[str, Any]
    metrics: dict[str, Any]


class ModelCard(_Card):
    """What card.json holds."""

    name: Annotated[str, AfterValidator(model_name)]
    version: str
    summary: str = Field(description="one line: what the model is for")
    intended_use: str
    limits: str
    licence: str
    data: str = Field(description="what it was trained on, and how that was split")
    classes: tuple[ClassCard, ...]
    selector: SelectorCard
    segmenter: SegmenterCard | None = Field(
        None, description="none in a model that only selects"
    )
    screen: ScreenCard | None = Field(
        None, description="none in a model that always looks at all patches"
    )

    def need_segmenter(self) -> SegmenterCard:
        """The segmenter.

        Raises
        ------
        ModelError
            If the model only selects.
        """
        if self.segmenter is None:
            raise ModelError(
                f"model {self.name!r} only selects, it has no segmenter; "
                "`wsi train segment` into its folder adds one"
            )
        return self.segmenter

    def need_screen(self) -> ScreenCard:
        """The screen.

        Raises
        ------
        ModelError
            If the model has none, or one that does not belong to its selector.
        """
        if self.screen is None:
            raise ModelError(
                f"model {self.name!r} has no screen; `wsi train screen` adds one, "
                "--screen off does without"
            )
        own, seen = self.screen, self.selector
        if own.selector_sha256 != seen.sha256:
            raise ModelError(
                f"the screen of model {self.name!r} was trained from another selector; "
                "`wsi train screen` makes a new one, --screen off does without"
            )
        widths = own.patch_px * own.mpp, seen.patch_px * seen.mpp
        if abs(widths[0] / widths[1] - 1) > _SAME_WIDTH:
            raise ModelError(
                f"the screen of model {self.name!r} sees patches of {widths[0]:g} um, "
                f"its selector of {widths[1]:g} um"
            )
        return own

    @property
    def mask_classes(self) -> tuple[MaskClass, ...]:
        """Classes as the rest of the package uses them."""
        return tuple(MaskClass(c.value, c.name, c.rgb) for c in self.classes)

    @property
    def finest_mpp(self) -> float:
        """um/px that a pyramid's base must not be coarser than."""
        parts = (self.selector, self.segmenter)
        return min(part.mpp for part in parts if part is not None)


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk: weights are only loaded after their sha256 was compared.

    Parameters
    ----------
    path : Path
        Folder with ``card.json``, ``selector.safetensors`` and, unless it only
        selects, ``segmenter.safetensors``; with a screen, ``screen.safetensors``.
    card : ModelCard
        The card.
    """

    path: Path
    card: ModelCard

    def weights(self, part: SelectorCard | SegmenterCard) -> Path:
        """File of a part's weights, its sha256 checked against the card.

        Raises
        ------
        ModelError
            If the file is missing, a link, no safetensors file, or has another sha256.
        """
        file = self.path / Path(part.file).name
        check_ending(file)
        if file.is_symlink():  # what it leads to may be another file tomorrow
            raise ModelError(f"{file}: a link; copy the file itself into the folder")
        if not file.is_file():
            raise ModelError(f"{file}: missing; the card names it")
        found = sha256_file(file)
        if found != part.sha256:
            raise ModelError(
                f"{file}: sha256 is {found[:12]}..., the card says "
                f"{part.sha256[:12]}...; the file was changed or is incomplete"
            )
        return file


def shipped_models() -> dict[str, ModelCard]:
    """Cards of the models that come with the package, by name."""
    return {
        folder.name: read_card(folder)
        for folder in sorted(SHIPPED.glob("*"))
        if (folder / "card.json").is_file()
    }


def find_model(name: str | Path | None) -> ModelFolder:
    """Find a model by its shipped name or its folder.

    Raises
    ------
    UnknownNameError
        If no name is given, or it is neither shipped nor a folder; the message lists
        the shipped models with what each is for.
    ModelError
        If the folder has no valid card, or a file of weights is given that could run
        code.
    """
    shipped = shipped_models()
    listing = "; ".join(f"{key}: {card.summary}" for key, card in shipped.items())
    if name is None:
        raise UnknownNameError(f"no model given; --model takes a folder or: {listing}")
    if str(name) in shipped:
        return ModelFolder(SHIPPED / str(name), shipped[str(name)])
    path = Path(name)
    if path.is_file():
        check_ending(path)
    if not path.is_dir():
        raise UnknownNameError(
            f"unknown model {str(name)!r}; --model takes a folder or: {listing}"
        )
    return ModelFolder(path, read_card(path))


def read_card(folder: Path) -> ModelCard:
    """Read and check a folder's card.json.

    Raises
    ------
    ModelError
        If it is missing or does not fit the schema.
    """
    file = folder / "card.json"
    try:
        if file.exists() and not file.is_file():  # a pipe would never end
            raise ModelError(f"{file}: no regular file")
        return ModelCard(**orjson.loads(file.read_bytes()))
    except (OSError, TypeError, orjson.JSONDecodeError, ValidationError) as error:
        raise ModelError(f"{file}: no valid model card: {error}") from error


def write_card(folder: Path, card: ModelCard) -> None:
    """Write card.json."""
    publish_json(folder / "card.json", card.model_dump(mode="json"))
