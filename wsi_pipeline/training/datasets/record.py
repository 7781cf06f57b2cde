"""What a dataset that a segmenter can be trained on is to the rest of the package."""

from dataclasses import dataclass

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.errors import ConfigError, UnknownNameError
from wsi_pipeline.training.data import LabelledImages

UNLABELLED = 255
"""Value of a label pixel that counts for no class."""

NO_SCALE_MPP = 1.0
"""um/px that a set without a physical scale gets; its note says so."""


@dataclass(frozen=True)
class DatasetOptions:
    """What a reader can be asked for; each row of the table uses its part.

    Parameters
    ----------
    images : int
        Training images to paint, where images are painted.
    classes : str, optional
        Name of another set of classes ("binary" of glas; see each row).
    mpp : float, optional
        um/px: of the files where they do not state it; wanted where they do.
    split : str, optional
        Name of another split ("paper" of pca-histo, "Val2" of sicapv2; see each row).
    scale : float
        Size of synthetic strips, 1 = the paper's.
    level : int
        Level of multi-level files, 0 = the finest.
    region_px : int
        Side of the regions that slides are cut into.
    seed : int
        Of what is painted, and of splits that are not published.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    images: int = 96
    classes: str | None = None
    mpp: float | None = None
    split: str | None = None
    scale: float = 0.25
    level: int = 1
    region_px: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ConfigError(f"images must be at least 1, got {self.images}")
        if self.mpp is not None and not 0 < self.mpp < float("inf"):
            raise ConfigError(f"mpp must be above 0 um/px, got {self.mpp}")
        if not 0.02 <= self.scale <= 1:
            raise ConfigError(f"scale must be 0.02 to 1, got {self.scale}")
        if self.level < 0:
            raise ConfigError(f"level must be at least 0, got {self.level}")
        if self.region_px < 64:
            raise ConfigError(f"region_px must be at least 64, got {self.region_px}")
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, got {self.seed}")


@dataclass(frozen=True)
class SegmentData:
    """A dataset that a segmenter can be trained on.

    Parameters
    ----------
    name : str
        Row of the table of datasets.
    classes : tuple of MaskClass
        Of the labels: values 0, 1, ... in order, as a net's channels are.
    train, validation : LabelledImages
        At least one image each.
    test : LabelledImages or None
        None where the set has no labelled test images.
    frame_px : (h, w) or None
        Size of every image; None where sizes differ.
    budgets : tuple of (h, w)
        Numbers of nodes that are usual for the set; empty where none are. For strips
        the pair is a rule, see `strip_nodes`.
    cases_disjoint : bool
        Whether it is known that no patient, slide or scene is in two splits.
    licence : str
        Of the images, as far as known; weights inherit it.
    note : str
        What a reader of results must know about the set.

    Raises
    ------
    ConfigError
        If a split is empty, class values are not 0, 1, ..., or cases that are said to
        be disjoint are not.
    """

    name: str
    classes: tuple[MaskClass, ...]
    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages | None
    frame_px: tuple[int, int] | None
    budgets: tuple[tuple[int, int], ...]
    cases_disjoint: bool
    licence: str
    note: str

    def __post_init__(self) -> None:
        values = [kind.value for kind in self.classes]
        if not values or values != list(range(len(values))):
            raise ConfigError(
                f"dataset {self.name!r}: class values must be 0, 1, ..., got {values}"
            )
        splits = {"train": self.train, "validation": self.validation}
        if self.test is not None:
            splits["test"] = self.test
        seen: dict[str, str] = {}
        for split, part in splits.items():
            if not len(part):
                raise ConfigError(f"dataset {self.name!r}: split {split!r} is empty")
            for group in set(part.groups) if self.cases_disjoint else ():
                if group in seen:
                    raise ConfigError(
                        f"dataset {self.name!r}: case {group!r} is in {seen[group]!r} "
                        f"and in {split!r}"
                    )
                seen[group] = split

    def split(self, name: str) -> LabelledImages:
        """Images of a split.

        Parameters
        ----------
        name : str
            "train", "validation" or "test".

        Raises
        ------
        UnknownNameError
            If the set has no labelled images under that name.
        """
        there = {"train": self.train, "validation": self.validation, "test": self.test}
        found = there.get(name)
        if found is None:
            names = ", ".join(key for key, part in there.items() if part is not None)
            raise UnknownNameError(
                f"dataset {self.name!r} has no split {name!r}; it has: {names}"
            )
        return found
