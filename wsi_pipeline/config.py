"""Options of every act: one class per act, gathered in RunConfig, read from TOML.

The default of a number lives here and nowhere else. Imports no torch, dask or zarr.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ByteSize, Field, model_validator

from wsi_pipeline.amounts import MemoryAmount, Recall
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.options import Options

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

AUDIT = 256
"""Patches that an audit draws where nothing else is said."""
MAX_PIXELS = 2**38
"""Pixels of level 0: a whole-mount at 0.1 um/px has a tenth of it."""


class ProbeOptions(Options):
    """Limits of the process that looks at a slide before anything else does."""

    memory: ByteSize = Field(
        ByteSize(8 << 30),
        gt=0,
        description="address space of that process; the libraries alone map 1 GiB",
    )
    seconds: Positive = Field(60.0, description="time for one slide, s")
    pixels: int = Field(
        MAX_PIXELS,
        ge=1,
        le=MAX_PIXELS,
        description="pixels of a slide's level 0; the default is 524288 x 524288, more "
        "than any scanner makes",
    )


class TileOptions(Options):
    """Options of tiling: Slide to Pyramid."""

    target_mpp: Positive | Literal["native"] | None = Field(
        None,
        description="um/px that the pyramid's base must not be coarser than; 'native' "
        "keeps level 0; left out, the finest that the model needs",
    )
    codec: Literal["zstd", "jpeg"] = Field(
        "zstd",
        description="zstd: lossless, 4 to 10 times the size of a JPEG slide; jpeg: "
        "tiles of JPEG slides copied undecoded, coarser levels encoded anew, about "
        "the size of the slide; readable only where imagecodecs is installed",
    )
    jpeg_quality: int = Field(
        80, ge=1, le=100, description="quality of what --codec jpeg encodes, 1 to 100"
    )
    ome_zarr: Literal["0.5", "0.4"] = Field(
        "0.5",
        description="OME-Zarr version: 0.5 (Zarr v3, sharded), or 0.4 (Zarr v2, Blosc) "
        "for QuPath 0.7, OMERO and Bio-Formats",
    )
    block_px: int = Field(
        4096,
        ge=512,
        description="side of a block at most, which is one task and one shard, px",
    )
    chunk_px: int | None = Field(
        None,
        ge=64,
        multiple_of=2,
        description="side of a chunk inside a shard, px; left out, whole tiles of the "
        "slide, about 512",
    )
    zstd_level: int = Field(1, ge=1, le=19, description="compression level")
    workers: int = Field(0, ge=0, description="parallel blocks; 0 = one per CPU")
    scheduler: str = Field(
        "auto",
        pattern=r"^(auto|threads|processes|(tcp|tls|ws|wss)://\S+)$",
        description="threads; processes; auto: processes for slides that are worth "
        "their start, and for each of several, which then cannot take each other down; "
        "or the address of a Dask scheduler whose workers see the same files, "
        "tcp://HOST:PORT or tls://HOST:PORT",
    )
    tls_ca: Path | None = Field(None, description="tls://, wss://: who signed, PEM")
    tls_cert: Path | None = Field(None, description="tls://, wss://: certificate, PEM")
    tls_key: Path | None = Field(None, description="tls://, wss://: its key, PEM")
    patience: Positive = Field(
        300.0,
        description="seconds without a finished block after which processes and Dask "
        "workers count as stalled: they are ended, and Dask does their blocks again",
    )

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.chunk_px is not None:
            parts = self.block_px // self.chunk_px
            if parts * self.chunk_px != self.block_px or parts & (parts - 1):
                raise ValueError(
                    f"block_px {self.block_px} is not chunk_px {self.chunk_px} times a "
                    "power of two"
                )
        if self.ome_zarr == "0.4" and (self.codec == "jpeg" or self.chunk_px):
            raise ValueError(
                "ome_zarr 0.4 has chunks of 1024 px and Blosc compression, which its "
                "readers know; codec jpeg and chunk_px belong to 0.5"
            )
        if self.ome_zarr == "0.4" and self.block_px % 1024:
            raise ValueError(
                f"block_px {self.block_px} is not a multiple of 1024, the chunk of "
                "ome_zarr 0.4"
            )
        files = [self.tls_ca, self.tls_cert, self.tls_key]
        secure = self.scheduler.startswith(("tls:", "wss:"))
        if any(files) and not (all(files) and secure):
            raise ValueError(
                "tls_ca, tls_cert and tls_key are given together, with a scheduler at "
                f"tls:// or wss://; it is {self.scheduler}"
            )
        return self


class TissueOptions(Options):
    """Options of the tissue finder: Pyramid to tissue mask and PatchGrid."""

    mask_mpp: float = Field(8.0, gt=0, description="um/px of the mask")
    min_area_um2: float = Field(
        40_000.0, ge=0, description="smaller pieces of tissue are dropped, um2"
    )
    min_hole_um2: float = Field(
        5_000_000.0,
        ge=0,
        description="smaller holes in tissue are filled, um2; lumens belong to tissue, "
        "gaps beyond 5 mm2 do not",
    )
    min_patch_tissue: float = Field(
        0.05, ge=0, le=1, description="share of tissue that makes a patch count"
    )
    max_unreadable: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of the tissue that may be unreadable before the slide "
        "fails; all of a tile that cannot be decoded counts as tissue",
    )
    mask: Path | None = Field(
        None,
        description="your own tissue mask instead of the finder: a PNG, or annotations "
        "(GeoJSON, ImageScope or ASAP XML, HALO, Darwin)",
    )
    mask_frame: Literal["auto", "qupath", "level0", "halo"] = Field(
        "auto",
        description="where coordinates of such annotations start: as their file or "
        "format says; at the corner of the scan's bounds, as in QuPath; at that of "
        "level 0; or as in HALO on MIRAX slides",
    )


class NetOptions(Options):
    """Where the nets of an act run, and in how much memory."""

    gpu_memory: MemoryAmount | None = Field(
        None,
        description="memory that the nets may use on the GPU: bytes, with a unit "
        "(5GiB), or a share of the card's (0.5, 50%); left out, nine tenths of what is "
        "free",
    )
    memory: MemoryAmount = Field(
        2 << 30,
        description="memory that the nets may use on the CPU: bytes, with a unit "
        "(2GiB), or a share of the machine's (0.5, 50%), which is that of the cgroup "
        "where one sets a limit",
    )
    device: str | None = Field(
        None, description="cpu, cuda or cuda:N; left out, cuda where there is one"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="numbers that the nets compute with; auto: bfloat16 where the "
        "device multiplies it in hardware (GPUs since Ampere, CPUs with AMX)",
    )


class SelectOptions(NetOptions):
    """Options of patch selection: Pyramid and PatchGrid to Selection."""

    mode: Literal["exact", "ips", "full"] = Field(
        "exact",
        description="exact: one softmax over all patches, then the top M; ips: the "
        "published rule, a buffer of M patches that meets the others by chunks; full: "
        "as exact, but the slide is judged by all patches, not by the M chosen",
    )
    top_m: int | None = Field(
        None, ge=1, description="patches to choose; left out, the model card's M"
    )
    chunk: int | None = Field(
        None,
        ge=1,
        description="mode ips: patches that meet the buffer at a time; left out, M",
    )
    seed: int | None = Field(
        None,
        ge=0,
        description="mode ips: seed of the patches' order; with a screen, of its "
        "audit; left out, 0",
    )
    screen: Recall = Field(
        "off",
        description="recall of the top M, such as 0.95, for which a coarse screen "
        "rejects as many patches as it may; off: all are looked at in full",
    )
    audit: int | None = Field(
        None,
        ge=1,
        description="with a screen: rejected patches that are looked at in full, "
        f"drawn at random, to estimate what was missed; left out, {AUDIT}",
    )
    compile: bool = Field(
        False,
        description="compile the encoder first, which takes about a minute and a C++ "
        "compiler; pays for many or large slides",
    )
    queue: ByteSize | None = Field(
        None,
        description="host memory for pixels that are read ahead of the net, counted in "
        "the budget on the CPU; left out, 256MiB, for a GPU 1GiB",
    )

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        screened = self.screen != "off"
        if self.mode == "full" and screened:
            raise ValueError(
                "mode full judges the slide by all patches, a screen leaves most of "
                "them out; set screen = off, or mode exact or ips"
            )
        if self.audit is not None and not screened:
            raise ValueError("audit belongs to a screen, and screen is off")
        seed = None if screened else self.seed
        if self.mode != "ips" and (self.chunk is not None or seed is not None):
            raise ValueError(
                "chunk and seed belong to mode ips, seed to a screen as well; the mode "
                f"is {self.mode}"
            )
        return self


class SegmentOptions(NetOptions):
    """Options of segmentation: Pyramid and Selection to RegionPredictions."""

    strategy: str = Field(
        "learned",
        description="how samples are placed in a region: one that the model has "
        "weights for",
    )
    coverage: Literal["selected", "all"] = Field(
        "selected",
        description="segment the regions around chosen patches only, or all tissue "
        "(the rest of it coarsely)",
    )
    overlap: float = Field(
        0.125, ge=0, le=0.5, description="share of a region's side shared with the next"
    )


class StitchOptions(Options):
    """Options of stitching: RegionPredictions to MaskPyramid."""

    keep_predictions: bool = Field(
        False, description="keep predictions.zarr for stitching again"
    )
    device: str = Field(
        "cpu",
        description="where regions are un-deformed: cpu, or cuda or cuda:N, which "
        "solves every pixel",
    )


def _split(value: Any) -> Any:  # Any: as given; pydantic checks what comes out
    """Names separated by commas, or in a list of such, each once."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple):
        return value
    names = [part.strip() for text in texts for part in str(text).split(",")]
    return tuple(dict.fromkeys(name for name in names if name))


class ExportOptions(Options):
    """Options of export: MaskPyramid to files for other programs."""

    formats: Annotated[tuple[str, ...], BeforeValidator(_split)] = Field(
        ("geojson",),
        min_length=1,
        description="what to write, separated by commas: geojson; geoparquet, a table "
        "of the same objects; ometiff, a label image; csv, the area of each class",
    )
    simplify_um: float = Field(
        1.0, ge=0, description="tolerance of simplified outlines, um; 0 = pixel edges"
    )
    min_area_um2: float = Field(
        200.0, ge=0, description="smaller objects are left out, um2"
    )
    min_hole_um2: float = Field(
        50.0, ge=0, description="smaller holes of objects are filled, um2"
    )
    frame: Literal["qupath", "level0"] = Field(
        "qupath",
        description="origin of outlines' coordinates: QuPath's crop to the scan's "
        "bounds, or the full level 0",
    )
    gzip: bool = Field(False, description="write .geojson.gz")
    zip: bool = Field(False, description="write .geojson.zip")
    group: Literal["object", "class"] = Field(
        "object",
        description="what becomes one feature of the GeoJSON: each object, to be "
        "edited alone, or all of a class, to be looked at",
    )
    objects: Literal["annotation", "detection"] = Field(
        "annotation",
        description="what QuPath makes of the objects: annotations, to be reviewed and "
        "edited, or detections, of which it shows and counts many more",
    )
    unexamined: bool = Field(
        True,
        description="outline in the GeoJSON what has no result: tissue that was not "
        "examined and what could not be read, from 2500 um2 on, as annotations without "
        "a fill",
    )
    detections: Literal["all", "chosen", "none"] = Field(
        "all",
        description="patches in attention.geojson, 320 bytes each (55 with gzip): all, "
        "so that QuPath can colour the whole tissue by attention; the chosen ones; or "
        "none and no file",
    )

    @model_validator(mode="after")
    def _packed_once(self) -> Self:
        if self.gzip and self.zip:
            raise ValueError("gzip and zip are both on; choose one")
        return self

    @property
    def ending(self) -> str:
        """What the names of GeoJSON files end with, besides .geojson."""
        return ".gz" if self.gzip else ".zip" if self.zip else ""


class RunConfig(Options):
    """Everything that `wsi run` may be told, besides slides and output folder."""

    model: str | None = Field(None, description="name or folder of the model; required")
    mpp: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="um/px of level 0 where the slide does not state it",
    )
    probe: ProbeOptions = ProbeOptions()
    tile: TileOptions = TileOptions()
    tissue: TissueOptions = TissueOptions()
    select: SelectOptions = SelectOptions()
    segment: SegmentOptions = SegmentOptions()
    stitch: StitchOptions = StitchOptions()
    export: ExportOptions = ExportOptions()

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        """Read a TOML file with one table per act.

        Raises
        ------
        ConfigError
            If the file is missing, is not TOML, or holds an unknown key or wrong value.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path}: cannot read the config: {error}") from error
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def updated(self, table: str | None, **values: Any) -> Self:  # Any: as __init__
        """A copy with the given values (those not None) set in one act's table.

        Parameters
        ----------
        table : str or None
            "tile", "tissue", ...; None for the top level.
        """
        given = {key: value for key, value in values.items() if value is not None}
        data = self.model_dump()
        (data if table is None else data[table]).update(given)
        return type(self)(**data)
