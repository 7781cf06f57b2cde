"""The classes of a mask: value, name and colour, as a model card states them."""

from dataclasses import dataclass

from wsi_pipeline.errors import ConfigError

NOT_COMPUTED = 255
"""Value of a mask pixel that no network looked at; also the fill value on disk."""

CERTAIN = 254
"""Value of the confidence label that means probability 1; it holds 254ths, or 255."""

NO_TISSUE, IN_DETAIL, COARSELY, SKIPPED, UNREADABLE = range(5)
"""Values of the coverage label: what was done to a pixel."""

ACCOUNTED_FOR = (NO_TISSUE, IN_DETAIL, COARSELY)
"""Those of pixels for which the mask has a result; the others have none."""


@dataclass(frozen=True, slots=True)
class MaskClass:
    """One class of a mask.

    Parameters
    ----------
    value : int
        Pixel value, 0 (background) to 254.
    name : str
        As shown in QuPath.
    rgb : tuple of int
        Red, green, blue, 0 to 255.

    Raises
    ------
    ConfigError
        If a number is out of range or the name is empty.
    """

    value: int
    name: str
    rgb: tuple[int, int, int]

    def __post_init__(self) -> None:
        if not 0 <= self.value < NOT_COMPUTED:
            raise ConfigError(f"class value must be 0..254, got {self.value}")
        if not self.name.strip():
            raise ConfigError(f"class {self.value} has no name")
        if len(self.rgb) != 3 or not all(0 <= part <= 255 for part in self.rgb):
            raise ConfigError(f"class {self.name!r}: colour must be 3 x 0..255")


COVERAGE_CLASSES = (
    MaskClass(NO_TISSUE, "No tissue", (255, 255, 255)),
    MaskClass(IN_DETAIL, "Segmented in detail", (0, 158, 115)),
    MaskClass(COARSELY, "Segmented coarsely", (86, 180, 233)),
    MaskClass(SKIPPED, "Tissue not examined", (230, 159, 0)),
    MaskClass(UNREADABLE, "Unreadable", (213, 94, 0)),
)

TISSUE_CLASSES = (
    MaskClass(0, "No tissue", (255, 255, 255)),
    MaskClass(1, "Tissue", (204, 121, 167)),
)
