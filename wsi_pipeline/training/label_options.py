"""What training from slide-level labels can be told; imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wsi_pipeline.errors import ConfigError


@dataclass(frozen=True)
class BagOptions:
    """What is not in the table.

    Parameters
    ----------
    results : Path, optional
        Folder with the slides' results, one folder per sample.
    tasks : tuple of str
        Columns that are labels; left out, all that are nothing else.
    patch_px : int, optional
        Side of a patch: of pictures, and of features whose files do not state it.
    mpp : float, optional
        um/px of these patches, likewise.
    seed : int
        Of the split, where the table states none.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    results: Path | None = None
    tasks: tuple[str, ...] = ()
    patch_px: int | None = None
    mpp: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("patch_px", "mpp"):
            _check_positive(name, getattr(self, name))


@dataclass(frozen=True)
class LabelTraining:
    """How a selector is trained from labels.

    Parameters
    ----------
    steps : int, optional
        Optimizer steps; left out, 30 rounds over the training slides.
    bags : int
        Slides per step and device.
    top_m : int
        M, in training and in the card: attention is calibrated to it. Few patches find
        small lesions; with many, those that happen to be chosen are learned by heart.
    share : float
        Share of a slide's patches that a step looks at, drawn anew; see `select_bag`.
    lr : float
        Peak learning rate; a tenth of it for a pretrained encoder.
    pretrained : Path, optional
        Weights that the encoder starts from: a safetensors file of the net itself, or
        of another selector with the same encoder.
    precision : str
        "32-true", or "bf16-mixed".
    device : str
        "cpu", "cuda" or "cuda:N".
    devices : int
        GPUs to train on at once, each with its own slides.
    seed : int
        Of weights, order and augmentation.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    steps: int | None = None
    bags: int = 4
    top_m: int = 16
    share: float = 0.5
    lr: float = 1e-3
    pretrained: Path | None = None
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    device: str = "cpu"
    devices: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("bags", "top_m", "lr", "devices"):
            _check_positive(name, getattr(self, name))
        if not 0 < self.share <= 1:
            raise ConfigError(f"share must be above 0 and at most 1, got {self.share}")


def _check_positive(name: str, value: float | None) -> None:
    if value is not None and not 0 < value < float("inf"):
        raise ConfigError(f"{name} must be above 0, got {value}")
