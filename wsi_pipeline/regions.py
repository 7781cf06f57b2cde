"""Tissue, patches, selections and region predictions: the data that acts hand on."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from wsi_pipeline.errors import RegionError
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.tables import column, read_table, write_table


@dataclass(frozen=True)
class Tissue:
    """Where there is tissue.

    Parameters
    ----------
    mask : (h, w) bool array
        True = tissue. Pixel (i, j) covers level-0 pixels from (j, i) * downsample on.
    downsample : float
        Level-0 pixels per mask pixel, the same along x and y.
    scale : Scale
        um/px of the slide's level 0.
    """

    mask: NDArray[np.bool_]
    downsample: float
    scale: Scale

    @property
    def area_um2(self) -> float:
        """Area of the tissue, um2."""
        return float(self.mask.sum()) * self.downsample**2 * self.scale.area_um2

    def crop(self, box: Box) -> NDArray[np.bool_]:
        """Mask pixels that a level-0 box touches, clipped to the mask."""
        h, w = self.mask.shape
        part = Box(0, 0, w, h).intersect(box.scaled_down(self.downsample))
        return self.mask[part.rows, part.columns]

    def save(self, path: Path) -> None:
        """Write a 1-bit PNG whose text chunk holds the scale."""
        text = PngInfo()
        facts = {
            "downsample": self.downsample,
            "mpp": [self.scale.x, self.scale.y],
        }
        text.add_text("wsi_pipeline", orjson.dumps(facts).decode())
        Image.fromarray(self.mask).save(path, format="PNG", pnginfo=text)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        RegionError
            If the file is no such PNG.
        """
        try:
            with Image.open(path) as image:
                facts = orjson.loads(image.info["wsi_pipeline"])
                mask = np.asarray(image.convert("1"))
        except (OSError, KeyError, orjson.JSONDecodeError) as error:
            raise RegionError(
                f"{path}: no tissue mask of this package ({error!r})"
            ) from error
        return cls(mask, float(facts["downsample"]), Scale(*facts["mpp"]))


@dataclass(frozen=True)
class PatchGrid:
    """Square patches on tissue.

    Parameters
    ----------
    corners : (n, 2) int64 array
        x, y of each top-left corner, level-0 pixels; sorted by y, then x. The row
        number is the patch id.
    size_px : int
        Side of a patch in level-0 pixels.
    patch_px : int
        Side of a patch in pixels at `mpp`: what the encoder sees.
    mpp : float
        um/px at which patches are encoded.
    tissue : (n,) float32 array
        Share of tissue in each patch, 0 to 1.

    Raises
    ------
    RegionError
        If shapes disagree.
    """

    corners: NDArray[np.int64]
    size_px: int
    patch_px: int
    mpp: float
    tissue: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.corners.ndim != 2 or self.corners.shape[1] != 2:
            raise RegionError(f"corners must be (n, 2), got {self.corners.shape}")
        if self.tissue.shape != (len(self),):
            raise RegionError(f"tissue must be ({len(self)},), got {self.tissue.shape}")

    def __len__(self) -> int:
        return len(self.corners)

    def box(self, patch: int) -> Box:
        """Level-0 box of a patch."""
        x, y = self.corners[patch]
        return Box(int(x), int(y), self.size_px, self.size_px)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Columns of the table, in order."""
        return {
            "patch": np.arange(len(self), dtype=np.int64),
            "x": self.corners[:, 0],
            "y": self.corners[:, 1],
            "tissue": self.tissue,
        }

    def header(self) -> dict[str, Any]:
        """What the table's metadata holds besides the columns."""
        return {
            "size_px": self.size_px,
            "patch_px": self.patch_px,
            "mpp": self.mpp,
            "unit": "level-0 px",
        }

    def save(self, path: Path) -> None:
        """Write a Parquet table: patch, x, y, tissue."""
        write_table(path, self.columns(), self.header())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        RegionError
            If the file is no such table.
        """
        table, header = read_table(path)
        return cls._of(table, header)

    @classmethod
    def _of(cls, table: pa.Table, header: dict[str, Any]) -> Self:
        corners = np.stack([column(table, "x"), column(table, "y")], axis=1)
        return cls(
            corners.astype(np.int64),
            int(header["size_px"]),
            int(header["patch_px"]),
            float(header["mpp"]),
            column(table, "tissue").astype(np.float32),
        )


@dataclass(frozen=True)
class Selection:
    """Scores of all patches and the choice among them.

    Parameters
    ----------
    grid : PatchGrid
        The n patches.
    logits : (n, C) float32 array
        Attention logit per channel (head x query token); NaN where not examined.
    score : (n,) float64 array
        Attention averaged over channels after a softmax over all n patches; sums to 1.
        With weights an estimate of it, which sums to 1 when each patch counts with its
        weight; NaN where not examined.
    rank : (n,) int64 array
        0 = most salient; ties go to the lower patch id. Those that were not examined
        come last, by id.
    chosen : (n,) bool array
        The top M.
    facts : dict
        What was planned and measured (mode, M, batch, memory), JSON values only; not
        saved with the table, whose bytes must not depend on them.
    weight : (n,) float64 array, optional
        Left out, all patches were examined. Else, after a screening, how many patches
        each one stands for in estimates: 0 if it was not examined, 1 if the screen
        kept it, more if it was drawn at random from those that the screen rejected.
    """

    grid: PatchGrid
    logits: NDArray[np.float32]
    score: NDArray[np.float64]
    rank: NDArray[np.int64]
    chosen: NDArray[np.bool_]
    facts: dict[str, Any] = field(default_factory=dict)
    weight: NDArray[np.float64] | None = None

    @property
    def examined(self) -> NDArray[np.bool_]:
        """(n,) whether a patch was scored; the others were left out by a screening."""
        if self.weight is None:
            return np.ones(len(self.grid), np.bool_)
        return self.weight > 0

    @property
    def captured_mass(self) -> float:
        """Share of the attention that falls on chosen patches, 0 to 1."""
        return float(self.score[self.chosen].sum())

    @property
    def percentile(self) -> NDArray[np.float64]:
        """(n,) share of the patches that score no more than each, above 0 to 1.

        With weights an estimate; NaN where not examined.
        """
        seen = self.examined
        score = self.score[seen]
        order = np.argsort(score, kind="stable")
        weight = np.ones(len(score)) if self.weight is None else self.weight[seen]
        total = np.cumsum(weight[order])
        last = np.searchsorted(score[order], score, side="right") - 1
        share = np.full(len(seen), np.nan)
        share[seen] = np.minimum(total[last] / len(seen), 1)  # 1 but for rounding
        return share

    def save(self, path: Path) -> None:
        """Write a Parquet table: the grid's columns, score, rank, chosen, logit_c.

        After a screening, weight too.
        """
        columns = self.grid.columns() | {
            "score": self.score,
            "rank": self.rank,
            "chosen": self.chosen,
        }
        if self.weight is not None:
            columns["weight"] = self.weight
        for channel in range(self.logits.shape[1]):
            columns[f"logit_{channel}"] = self.logits[:, channel]
        write_table(path, columns, self.grid.header())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        RegionError
            If the file is no such table.
        """
        table, header = read_table(path)
        names = [name for name in table.column_names if name.startswith("logit_")]
        screened = "weight" in table.column_names
        if "chosen" not in table.column_names or not names:
            raise RegionError(f"{path}: no selection; `wsi select` writes one")
        return cls(
            PatchGrid._of(table, header),
            np.stack([column(table, name) for name in names], axis=1),
            column(table, "score"),
            column(table, "rank"),
            column(table, "chosen"),
            weight=column(table, "weight") if screened else None,
        )


DETAIL, COARSE = 1, 2
"""Codes of how a region was segmented; the same numbers as in the coverage label."""


@dataclass(frozen=True)
class RegionPrediction:
    """Class probabilities of one region on the nodes where it was sampled.

    Parameters
    ----------
    box : Box
        Level-0 pixels.
    probabilities : (c, h, w) float16 array
        Sum to 1 over c.
    grid : (2, h, w) float32 array
        x and y of each node in [0, 1] of the box: 0 is the centre of the box's first
        pixel on the pyramid's base, 1 the centre of its last.
    kind : int
        DETAIL or COARSE.
    """

    box: Box
    probabilities: NDArray[np.float16]
    grid: NDArray[np.float32]
    kind: int = DETAIL

    def __post_init__(self) -> None:
        if self.grid.shape != (2, *self.probabilities.shape[1:]):
            raise RegionError(
                f"grid must be (2, h, w) with the (h, w) of the probabilities "
                f"{self.probabilities.shape}, got {self.grid.shape}"
            )
