"""What a screen loses of the top patches: measured means to the share it must keep."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_CONFIG = ConfigDict(frozen=True, extra="forbid")
_ROUNDING = 1e-9  # (19 * 0 + 1) / 20 shall count as 1 - 0.95


class MissTable(BaseModel):
    """What a screen loses of the top M, by the share of patches that it keeps."""

    model_config = _CONFIG

    top_m: int = Field(gt=0)
    missed: tuple[float, ...] = Field(
        description="mean share of a slide's top M that is not kept, per fraction"
    )
    kept: tuple[float, ...] = Field(
        description="mean share of a slide's patches that is kept, with neighbours"
    )


class Calibration(BaseModel):
    """What a screen loses on slides that it was not trained on."""

    model_config = _CONFIG

    slides: int = Field(gt=0)
    fractions: tuple[float, ...] = Field(
        min_length=1, description="of the patches, by coarse score; ascending to 1"
    )
    tables: tuple[MissTable, ...] = Field(min_length=1, description="by M, ascending")

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        count = len(self.fractions)
        for table in self.tables:
            if {len(table.missed), len(table.kept)} != {count}:
                raise ValueError(f"M = {table.top_m}: not one number per fraction")
        if self.fractions[-1] != 1 or list(self.fractions) != sorted(self.fractions):
            raise ValueError("fractions do not ascend to 1")
        if [t.top_m for t in self.tables] != sorted({t.top_m for t in self.tables}):
            raise ValueError("tables do not ascend by M")
        return self

    def table_for(self, top_m: int) -> MissTable:
        """The table of M, or of the next larger M there is, or of the largest."""
        larger = [table for table in self.tables if table.top_m >= top_m]
        return larger[0] if larger else self.tables[-1]

    def fraction_for(self, recall: float, top_m: int) -> float:
        """Share of the patches to keep for a recall of the top M.

        Parameters
        ----------
        recall : float
            Wanted on average over slides like those of the calibration, 0 to 1.
        top_m : int
            M; see `table_for`.

        Returns
        -------
        float
            The smallest that holds it; 1, all patches, where none does, as with fewer
            than recall / (1 - recall) slides.

        References
        ----------
        Angelopoulos et al., "Conformal Risk Control", ICLR 2024, theorem 1: with loss
        at most 1 that never rises with the fraction, n / (n + 1) times the mean loss
        of n slides and 1 / (n + 1) bound that of a new one.
        """
        n = self.slides
        for fraction, missed in zip(
            self.fractions, self.table_for(top_m).missed, strict=True
        ):
            if (n * missed + 1) / (n + 1) <= 1 - recall + _ROUNDING:
                return fraction
        return 1.0
