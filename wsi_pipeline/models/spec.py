"""What a segmenter is built from: the architecture that its card states."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from wsi_pipeline.errors import ModelError, UnknownNameError
from wsi_pipeline.models.cards import SegmenterCard
from wsi_pipeline.models.resizer import check_base
from wsi_pipeline.models.sampling import TAPS


@dataclass(frozen=True)
class SegmenterSpec:
    """What a segmenter is built from; the card's ``architecture``.

    Parameters
    ----------
    classes : int
        Classes, background included.
    nodes : int or (int, int)
        Rows and columns of the grid of nodes; one number where they are as many.
    widths, density_widths : tuple of int
        Channels per scale of the default segmentation net and of the density net.
    sigma : float
        Kernel of the map as a share of the short side.
    floor, temperature : float
        See `DensityNet`.
    view_stride : int
        How many times fewer samples per side the placer sees than there are nodes.
    taps : int
        Samples per side averaged in a cell.
    strategies : tuple of str
        Strategies whose weights the file holds.
    body : str
        Segmentation net, a name in the table of bodies.
    body_options : mapping
        Options of the body (JSON values); `widths` for the default one.
    resizer : str
        Base filter of a learned `Resizer` between the samples and the body; "" for
        none.

    Raises
    ------
    UnknownNameError
        If there is no such base filter.
    """

    classes: int
    nodes: int | tuple[int, int] = 64
    widths: tuple[int, ...] = (32, 64, 128)
    density_widths: tuple[int, ...] = (16, 32, 48, 64)
    sigma: float = 0.05
    floor: float = 0.2
    temperature: float = 1.0
    view_stride: int = 1
    taps: int = TAPS
    strategies: tuple[str, ...] = ("learned", "uniform")
    body: str = "unet"
    body_options: dict[str, Any] = field(default_factory=dict)
    resizer: str = ""

    def __post_init__(self) -> None:
        if self.resizer:
            check_base(self.resizer)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of nodes."""
        return (self.nodes, self.nodes) if isinstance(self.nodes, int) else self.nodes

    def to_json(self) -> dict[str, Any]:
        """As stored in the card."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_card(cls, card: SegmenterCard, file: Path) -> Self:
        """Inverse of `to_json`.

        Raises
        ------
        ModelError
            If a field is missing or unknown.
        """
        try:
            values: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in card.architecture.items()
            }
            if isinstance(known := values.get("resizer"), bool):
                # older cards: whether there is one, which was always bilinear
                values["resizer"] = "bilinear" if known else ""
            return cls(**values)
        except (TypeError, UnknownNameError) as error:
            raise ModelError(f"{file}: unknown architecture: {error}") from error
