"""What training a screen can be told; imports nothing heavy."""

from dataclasses import dataclass

from wsi_pipeline.errors import ConfigError


@dataclass(frozen=True)
class ScreenTraining:
    """How a screen is trained.

    Parameters
    ----------
    factor : int
        How many times coarser than the selector it sees the patches, along a side.
    steps : int
        Optimizer steps of 128 patches of one slide.
    lr : float
        Peak learning rate.
    device : str
        "cpu", "cuda" or "cuda:N".
    seed : int
        Of weights, patches and augmentation; and of who trains and who calibrates,
        where that is drawn by lot.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    factor: int = 4
    steps: int = 1500
    lr: float = 3e-3
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.factor < 2:
            raise ConfigError(f"factor must be 2 or more, got {self.factor}")
        if self.steps < 1 or not 0 < self.lr < float("inf"):
            raise ConfigError(
                f"steps and lr must be above 0, got {self.steps} and {self.lr}"
            )
