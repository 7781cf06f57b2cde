"""The arguments and options that several verbs of `wsi` share."""

from pathlib import Path
from typing import Annotated, Any

import typer

from wsi_pipeline.config import AUDIT
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.places import Place, as_place, is_url

NETS, TILES, OUTPUT = "Nets and memory", "Pyramid", "Export"
DRAWN = "Annotations"


def _local(text: str) -> Path:
    """A path on this machine; URLs are refused before anything is done."""
    if is_url(text):
        raise typer.BadParameter(
            "a local folder expected: only `wsi tile` writes its results to URLs"
        )
    return Path(text)


def _place(text: str) -> Place:
    try:
        return as_place(text) if is_url(text) else Path(text)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


Slides = Annotated[
    list[str],
    typer.Argument(
        help="Slides, folders, globs, URLs (s3://, gs://, https://), or one "
        "samplesheet (sample,slide[,mpp,tissue,features,label])."
    ),
]
OneSlide = Annotated[
    str,
    typer.Argument(
        help="The slide, or the URL of a tiled TIFF or SVS (s3://, gs://, https://). "
        "Credentials and endpoints are those that the libraries for it find: "
        "AWS_PROFILE, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS."
    ),
]
Folder = Annotated[
    Path,
    typer.Argument(
        help="Folder of one slide's results, as `wsi tile` makes it.",
        parser=_local,
        metavar="FOLDER",
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        "--out", "-o", help="Results folder.", parser=_local, metavar="FOLDER"
    ),
]
AnyOut = Annotated[
    Any,  # a Place, which typer does not know
    typer.Option(
        "--out",
        "-o",
        help="Results folder, or its URL (s3://, gs://).",
        parser=_place,
        metavar="FOLDER",
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Name of a shipped model, or a model's folder."),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="TOML file with the tables probe, tile, tissue, select, segment, stitch, "
        "export.",
    ),
]
Mpp = Annotated[
    float | None,
    typer.Option(help="um/px of level 0, where the slides do not state it."),
]
TargetMpp = Annotated[
    str | None,
    typer.Option(
        help="um/px of the pyramid's base, or 'native'; else what the model needs.",
        rich_help_panel=TILES,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(help="Blocks tiled at once; 0 = one per CPU.", rich_help_panel=TILES),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        help="'threads', 'processes', 'auto' (processes for large or several slides), "
        "or a Dask scheduler's address (tcp://HOST:PORT) whose workers see the same "
        "files.",
        rich_help_panel=TILES,
    ),
]
Codec = Annotated[
    str | None,
    typer.Option(
        help="'zstd' (lossless), or 'jpeg': tiles of JPEG slides copied undecoded, "
        "about the slide's size; readable only with imagecodecs.",
        rich_help_panel=TILES,
    ),
]
JpegQuality = Annotated[
    int | None,
    typer.Option(
        help="Quality of what --codec jpeg encodes anew, 1 to 100.",
        rich_help_panel=TILES,
    ),
]
OmeZarr = Annotated[
    str | None,
    typer.Option(
        "--ome-zarr",
        help="'0.5', or '0.4' for QuPath 0.7, OMERO and Bio-Formats.",
        rich_help_panel=TILES,
    ),
]
TissueMask = Annotated[
    Path | None,
    typer.Option(help="Your own tissue mask: PNG, or annotations of QuPath, ..."),
]
Features = Annotated[
    Path | None,
    typer.Option(
        help="Features of the slide's patches (.h5, .hdf5, .zarr), for a model that "
        "reads them: `wsi tissue` takes its patches from there, `wsi select` scores "
        "them.",
    ),
]
GpuMemory = Annotated[
    str | None,
    typer.Option(
        help="GPU memory the nets may use: bytes, with a unit (5GiB), or a share of "
        "the card's (0.5, 50%).",
        rich_help_panel=NETS,
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        help="On the CPU, memory the nets may use: bytes, with a unit (2GiB), or a "
        "share of the machine's, or of its cgroup's limit (0.5, 50%).",
        rich_help_panel=NETS,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda or cuda:N; else the best.", rich_help_panel=NETS),
]
TopM = Annotated[
    int | None,
    typer.Option(
        help="Patches to choose; else the model card's.", rich_help_panel=NETS
    ),
]
Mode = Annotated[
    str | None,
    typer.Option(
        help="'exact' (one softmax over all patches), 'ips' (the published rule), or "
        "'full' (as exact; the slide is judged by all patches).",
        rich_help_panel=NETS,
    ),
]
Chunk = Annotated[
    int | None,
    typer.Option(
        help="--mode ips: patches that meet the buffer at a time; else M.",
        rich_help_panel=NETS,
    ),
]
ShuffleSeed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        help="--mode ips: seed of the patches' order; --screen: of the audit.",
        rich_help_panel=NETS,
    ),
]
Screen = Annotated[
    str | None,
    typer.Option(
        metavar="off|RECALL",
        help="Reject patches after a coarse look, so many that this share of the top M "
        "is kept, such as 0.95; 'off' looks at all of them in full.",
        rich_help_panel=NETS,
    ),
]
Audit = Annotated[
    int | None,
    typer.Option(
        help="--screen: rejected patches that are looked at after all, drawn at "
        f"random, to estimate what was missed; else {AUDIT}.",
        rich_help_panel=NETS,
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="Of the encoder: 'float32', 'bfloat16', or 'auto' (what is fast here).",
        rich_help_panel=NETS,
    ),
]
Compile = Annotated[
    bool | None,
    typer.Option("--compile", help="Compile the encoder first.", rich_help_panel=NETS),
]
Queue = Annotated[
    str | None,
    typer.Option(
        help="Host memory for pixels read ahead, e.g. 256MiB.", rich_help_panel=NETS
    ),
]
Strategy = Annotated[
    str | None,
    typer.Option(
        help="How samples are placed: 'learned', 'uniform', or another arm that the "
        "model was trained with.",
        rich_help_panel=NETS,
    ),
]
Coverage = Annotated[
    str | None,
    typer.Option(
        help="'selected' regions only, or 'all' tissue (the rest of it coarsely).",
        rich_help_panel=NETS,
    ),
]
KeepPredictions = Annotated[
    bool | None,
    typer.Option("--keep-predictions", help="Keep the nets' raw output for stitching."),
]
Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        help="What to write, separated by commas: 'geojson' (QuPath), 'geoparquet' (a "
        "table of the objects), 'ometiff' (a label image), 'csv' (area per class).",
        rich_help_panel=OUTPUT,
    ),
]
Simplify = Annotated[
    float | None,
    typer.Option(
        "--simplify-um",
        help="Tolerance of outlines, um; 0 = pixel edges.",
        rich_help_panel=OUTPUT,
    ),
]
Frame = Annotated[
    str | None,
    typer.Option(
        help="'qupath' (crop to the scan's bounds) or 'level0'.",
        rich_help_panel=OUTPUT,
    ),
]
Gzip = Annotated[
    bool | None,
    typer.Option("--gzip", help="Write .geojson.gz.", rich_help_panel=OUTPUT),
]
Zip = Annotated[
    bool | None,
    typer.Option("--zip", help="Write .geojson.zip.", rich_help_panel=OUTPUT),
]
ObjectKind = Annotated[
    str | None,
    typer.Option(
        "--objects",
        help="What QuPath makes of the objects: 'annotation' (to review and edit) or "
        "'detection' (to count, very many).",
        rich_help_panel=OUTPUT,
    ),
]
Group = Annotated[
    str | None,
    typer.Option(
        help="What becomes one annotation: each 'object', or all of a 'class'.",
        rich_help_panel=OUTPUT,
    ),
]
Unexamined = Annotated[
    bool | None,
    typer.Option(
        "--unexamined/--no-unexamined",
        help="Outline in the GeoJSON what has no result: tissue that was not examined, "
        "what could not be read; from 2500 um2 on, without a fill in QuPath.",
        rich_help_panel=OUTPUT,
    ),
]
Detections = Annotated[
    str | None,
    typer.Option(
        help="Patches in attention.geojson: 'all', 'chosen' or 'none'.",
        rich_help_panel=OUTPUT,
    ),
]
ClassMapFile = Annotated[
    Path | None,
    typer.Option(
        "--class-map",
        help="CSV with the columns drawn,class: what names in annotations mean; no "
        "class leaves an area out, 'Ignore*' its pixels.",
        rich_help_panel=DRAWN,
    ),
]
OverlapRule = Annotated[
    str,
    typer.Option(
        "--overlap",
        help="Of two areas the 'last' in the file wins, the 'smallest', or the one "
        "whose class is 'listed' last in the class map.",
        rich_help_panel=DRAWN,
    ),
]
DrawnFrame = Annotated[
    str,
    typer.Option(
        "--frame",
        help="Where drawn coordinates start: 'auto' (as the file or its program does), "
        "'qupath' (the scan's bounds), 'level0' or 'halo'.",
        rich_help_panel=DRAWN,
    ),
]
Deid = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Run the slides under pseudonyms, which no result tells from: which slide "
        "has which is in this table (CSV, readable by you only), made or added to. "
        "Ink and text on the tissue itself stay.",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the outcome as JSON on standard output.")
]
Data = Annotated[
    Path, typer.Option(envvar="WSI_DATA", help="Folder with the labelled images.")
]
Seed = Annotated[int, typer.Option(help="Seed; the same seed gives the same result.")]
