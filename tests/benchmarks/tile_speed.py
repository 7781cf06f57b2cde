"""How long tiling takes on a gigapixel slide, against what the machine can do at best
and against other programs: one Markdown table, and whether each promise holds.

    python tests/benchmarks/tile_speed.py [--megapixels 1070] [--keep FOLDER]

Makes a JPEG TIFF, measures the floors (floors.py), then ours and the peers (peers.py),
each started anew on as many cores as threads; ours uses as many processes. Peers that
have to be installed run in the Python that --python-of-peers names; those that it
cannot import are skipped with the reason. Seconds are those of the conversion, the page
cache warm, without start-up and imports; `wsi tile` alone is timed whole.
"""

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import tifffile
from floors import Floor
from numpy.typing import NDArray
from peers import JPEG_QUALITY, Outcome, child, convert_timed, remove
from scipy.ndimage import gaussian_filter

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
DATA = Path(os.environ.get("WSI_DATA", ROOT.parent / "shared" / "data"))
REAL = DATA / "slides" / "aperio" / "cmu-1-small-region.svs"
FOREVER = 3600.0
TILE_PX, MPP, SEED = 256, 0.25, 1
TISSUE_SHARE, TISSUE_TILES, GLASS_TILES = 0.45, 1536, 64

Pixels = NDArray[np.uint8]


class Row(NamedTuple):
    """A line of the table: its name in peers.py, what it says, which floor it has.

    `foreign` rows need the peers' Python, `lossy` ones may differ from the slide.
    """

    name: str
    label: str
    floor: str = "zstd"
    foreign: bool = False
    lossy: bool = False


OURS = (
    Row("zstd-1", "**ours**, zstd, 1 thread"),
    Row("zstd", "**ours**, zstd"),
    Row("jpeg", "**ours**, JPEG pass-through", "jpeg"),
    Row("ome-zarr-0.4", "**ours**, OME-Zarr 0.4"),
    Row("openslide", "**ours**, through OpenSlide", "openslide"),
    Row("wsi-tile", "**ours**, `wsi tile` with its start-up"),
)
PEERS = (
    Row("vips-tiff", "libvips, JPEG TIFF", foreign=True, lossy=True),
    Row("vips-dzsave", "libvips, DeepZoom", foreign=True, lossy=True),
    Row("tifffile-zarr", "tifffile + NumPy + zarr-python"),
    Row("plain-script", "plain script: OpenSlide + Dask + Zarr"),
    Row("ngff-zarr", "ngff-zarr", foreign=True),
)
NAMES = [row.name for row in (*OURS, *PEERS)]
KINDS = {
    "zstd": "zstd",
    "jpeg": "JPEG pass-through",
    "openslide": "OpenSlide `read_region`, reduce, zstd",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megapixels", type=float, default=1070.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=1, help="best of so many")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds per row")
    parser.add_argument("--keep", type=Path, help="folder for the slides, used again")
    parser.add_argument(
        "--flat-to",
        type=float,
        help="megapixels of a larger slide, for the peak memory of ours alone",
    )
    parser.add_argument(
        "--python-of-peers",
        type=Path,
        default=ROOT / ".venv-peers" / "bin" / "python",
        help="has pyvips and ngff-zarr; default: %(default)s",
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        run = Run(given, folder)
        run.measure()
        print("\n".join(["", *run.table(), "", *run.notes(), "", *run.promises()]))
    return 0


class Run:
    """One slide, its floors, and one conversion after the other."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given, self.folder, self.threads = given, folder, int(given.threads)
        self.slide = made(folder, given.megapixels)
        self.w, self.h, self.base_bytes, self.description = facts(self.slide)
        self.floors: dict[int, Floor] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.larger = Outcome()

    def measure(self) -> None:
        log("floors")
        words = [sys.executable, HERE / "floors.py", self.slide, self.folder]
        words += ["--threads", *sorted({1, self.threads})]
        for values in json.loads(child(words, self.threads, FOREVER)[0]):
            self.floors[values["threads"]] = Floor(**values)
        for row in (*OURS, *PEERS):
            if row.name in self.given.only:
                log(row.name)
                runs = [self.convert(row, self.slide) for _ in range(self.given.repeat)]
                best = min(runs, key=lambda run: (run.note, run.seconds))
                peak = max(run.peak_bytes for run in runs)
                self.outcomes[row.name] = replace(best, peak_bytes=peak)
        if self.given.flat_to:
            larger = made(self.folder, self.given.flat_to)
            log(f"zstd on {larger.name}")
            self.larger = self.convert(OURS[1], larger)

    def convert(self, row: Row, slide: Path) -> Outcome:
        python = self.given.python_of_peers if row.foreign else Path(sys.executable)
        if not python.exists():
            return Outcome(note=f"skipped: there is no {python}")
        threads = self.threads_of(row)
        out = self.folder / f"{row.name}.ome.zarr"  # ngff-zarr goes by the suffix
        if row.name == "wsi-tile":
            words = [python, "-m", "wsi_pipeline", "tile", slide, "--out", out]
            words += ["--target-mpp", "native", "--workers", threads]
        else:
            name = row.name.removesuffix("-1")
            words = [python, HERE / "peers.py", name, slide, out, "--threads", threads]
        try:
            limit = self.given.limit
            return convert_timed(words, slide, out, threads, limit, row.lossy)
        finally:
            remove(out)

    def threads_of(self, row: Row) -> int:
        return 1 if row.name == "zstd-1" else self.threads

    def seconds(self, name: str) -> float:
        """Seconds of a row; nan where it was not measured or its pixels are wrong."""
        found = self.outcomes.get(name, Outcome())
        return math.nan if found.note else found.seconds

    def table(self) -> Iterator[str]:
        """Floors and rows as Markdown."""
        yield (
            f"{self.w} x {self.h} px ({self.megapixels:.0f} MP), "
            f"{self.base_bytes / 1e6:.0f} MB, "
            f"{self.base_bytes * 8e-6 / self.megapixels:.2f} bits per pixel; "
            f"{self.description}. {self.threads} threads on {self.threads} cores "
            "unless said otherwise."
        )
        yield ""
        yield (
            "| what | seconds | MP/s | peak memory, MiB | output, MB | x floor "
            "| x plain script |"
        )
        yield "|---|--:|--:|--:|--:|--:|--:|"
        for kind, label in KINDS.items():
            for floor in self.floors.values():
                if kind in floor.seconds:
                    text = f"floor, {label}{', 1 thread' * (floor.threads == 1)}"
                    size = floor.out_bytes.get(kind, 0)
                    yield self.line(text, floor.best(kind), 0, size, floor.best(kind))
        for row in (*OURS, *PEERS):
            found = self.outcomes.get(row.name, Outcome())
            if not math.isnan(found.seconds):
                best = self.floors[self.threads_of(row)].best(row.floor)
                yield self.line(
                    row.label, found.seconds, found.peak_bytes, found.out_bytes, best
                )

    def line(
        self, label: str, seconds: float, peak: int, size: int, floor: float
    ) -> str:
        cells = (
            label,
            f"{seconds:.1f}",
            f"{self.megapixels / seconds:.0f}",
            f"{peak / 2**20:.0f}" if peak else "",
            f"{size / 1e6:.0f}" if size else "",
            f"{seconds / floor:.2f}",
            number(self.seconds("plain-script") / seconds),
        )
        return f"| {' | '.join(cells)} |"

    def notes(self) -> Iterator[str]:
        """What the floors are made of, and rows that are missing or wrong."""
        for floor in self.floors.values():
            for kind in floor.out_bytes:
                text = f"{KINDS[kind]} on {floor.threads}: {floor.explain(kind)}"
                yield f"- floor, {text}."
        for row in (*OURS, *PEERS):
            note = self.outcomes.get(row.name, Outcome()).note
            if note:
                yield f"- {row.label}: {note}."

    def promises(self) -> Iterator[str]:
        """Whether each bound holds in this run."""
        one, many = self.floors[1], self.floors[self.threads]
        zstd, jpeg = self.seconds("zstd"), self.seconds("jpeg")
        passed = self.outcomes.get("jpeg", Outcome())
        gain = one.best("zstd") / many.best("zstd")
        own_gain = self.seconds("zstd-1") / zstd
        peaks = [self.outcomes.get(row.name, Outcome()).peak_bytes for row in OURS[1:]]
        growth = self.larger.peak_bytes / (peaks[0] or math.nan)
        bounds = [
            ("1. zstd / floor", zstd / many.best("zstd"), 1.25),
            ("1. zstd / plain script", zstd / self.seconds("plain-script"), 1 / 3),
            ("1. zstd / libvips' JPEG TIFF", zstd / self.seconds("vips-tiff"), 1),
            ("2. pass-through / its floor", jpeg / many.best("jpeg"), 1.3),
            ("2. pass-through / zstd", jpeg / zstd, 1),
            ("2. level 0 / the slide's", passed.base_bytes / self.base_bytes, 1.02),
            ("2. all levels / the slide's", passed.out_bytes / self.base_bytes, 1.5),
            ("3. floor's gain from 1 thread / zstd's", gain / own_gain, 1 / 0.95),
            ("3. peak memory, GiB", max(peaks) / 2**30, 1.5),
            ("3. peak on the larger slide / here", growth, 1.1),
            (
                "4. OpenSlide path / `read_region`, reduce, zstd",
                self.seconds("openslide") / many.best("openslide"),
                1.15,
            ),
        ]
        yield "| promise | measured | at most | |"
        yield "|---|--:|--:|---|"
        for label, value, most in bounds:
            measured = value > 0  # 0 and nan: the row is not there
            verdict = "holds" if value <= most else "does not hold"
            yield (
                f"| {label} | {number(value) if measured else ''} | {most:.2f} "
                f"| {verdict if measured else 'not measured'} |"
            )

    @property
    def megapixels(self) -> float:
        return self.w * self.h / 1e6


def number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def made(folder: Path, megapixels: float) -> Path:
    """The slide of that size in the folder, made if it is not there."""
    path = folder / f"mosaic-{megapixels:g}mp.tif"
    if not path.exists():
        log(f"making {path.name}")
        # in a process of its own: what this one once held would count as the peak of
        # every process that it starts
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            part = path.with_suffix(".part")
            pool.submit(write_mosaic, part, megapixels).result()
        part.rename(path)
    return path


def facts(path: Path) -> tuple[int, int, int, str]:
    """Width, height, bytes of all tiles and description of a slide."""
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        size = int(page.imagewidth), int(page.imagelength)
        return *size, sum(page.databytecounts), str(page.description)


def write_mosaic(path: Path, megapixels: float) -> None:
    """Write a TIFF of one level: tissue in smooth blobs on noisy glass.

    Notes
    -----
    The same arguments give the same bytes. Its width is whole tiles, its height is not.
    A pool of tiles is encoded once, so memory and time hardly depend on the size.
    """
    lot = np.random.default_rng(SEED)
    w = math.ceil(math.sqrt(megapixels * 1e6) / TILE_PX) * TILE_PX
    h = round(megapixels * 1e6 / w)
    across, down = w // TILE_PX, -(-h // TILE_PX)
    origin, pictures = tissue_pictures()
    tissue = [encode(tile) for tile in cut_tissue(pictures, lot)]
    glass = [encode(tile) for tile in paint_glass(lot)]
    field = gaussian_filter(lot.standard_normal((down, across)), across / 20)
    is_tissue = field > np.quantile(field, 1 - TISSUE_SHARE)

    def tiles() -> Iterator[bytes]:
        for row in range(down):
            starts = lot.integers(len(tissue)), lot.integers(len(glass))
            for column in range(across):
                pool = (glass, tissue)[int(is_tissue[row, column])]
                # neighbours in the pool are often neighbours in the picture
                yield pool[(int(starts[len(pool) > GLASS_TILES]) + column) % len(pool)]

    share = np.mean(is_tissue)
    with tifffile.TiffWriter(path, bigtiff=megapixels > 10_000) as writer:
        writer.write(
            tiles(),
            shape=(h, w, 3),
            dtype=np.uint8,
            tile=(TILE_PX, TILE_PX),
            photometric="ycbcr",
            subsampling=(2, 2),
            compression="jpeg",
            resolution=(1e4 / MPP, 1e4 / MPP),
            resolutionunit="CENTIMETER",
            description=f"{TILE_PX} px JPEG tiles (quality {JPEG_QUALITY}, 4:2:0) of "
            f"{origin}, {share:.0%} tissue",
            metadata=None,
        )


def tissue_pictures() -> tuple[str, list[Pixels]]:
    """Where the pixels come from, and (h, w, 3) pictures of H&E."""
    if REAL.exists():
        return "real H&E", [tifffile.imread(REAL, key=0)]
    log(f"{REAL} is absent: painted tissue")
    from wsi_pipeline.synthetic import paint_region

    size, mix = (3072, 3072), (0.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    return "painted H&E", [paint_region(SEED, size, 2 * MPP, mix=mix)[0]]


def cut_tissue(pictures: list[Pixels], lot: np.random.Generator) -> Iterator[Pixels]:
    """Tiles that are at least 40 % tissue, each from another place or turned."""
    found = 0
    while True:
        for picture in pictures:
            turned = np.rot90(picture, int(lot.integers(4)))
            turned = turned[:, :: int(lot.choice((-1, 1)))]
            top, left = lot.integers(0, TILE_PX, 2)
            for y in range(int(top), turned.shape[0] - TILE_PX, TILE_PX):
                for x in range(int(left), turned.shape[1] - TILE_PX, TILE_PX):
                    tile = turned[y : y + TILE_PX, x : x + TILE_PX]
                    if np.mean(tile[..., 1] < 220) < 0.4:
                        continue
                    yield tile
                    found += 1
                    if found == TISSUE_TILES:
                        return


def paint_glass(lot: np.random.Generator) -> Iterator[Pixels]:
    """Tiles of lit glass, with the noise of a scanner's sensor."""
    for _ in range(GLASS_TILES):
        noisy = lot.normal((243, 243, 244), 1.5, (TILE_PX, TILE_PX, 3))
        yield np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def encode(tile: Pixels) -> bytes:
    pixels = np.ascontiguousarray(tile)
    data: Any = imagecodecs.jpeg8_encode(pixels, level=JPEG_QUALITY, subsampling="420")
    return bytes(data)


if __name__ == "__main__":
    sys.exit(main())
