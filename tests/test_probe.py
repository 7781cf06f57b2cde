"""A slide that crashes, hangs or eats memory costs a child process, nothing more."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.test_readers import tissue_like, write_pyramid
from wsi_pipeline.config import ProbeOptions
from wsi_pipeline.errors import MissingScaleError, NotASlideError, SlideError
from wsi_pipeline.geometry import Box
from wsi_pipeline.readers import open_slide
from wsi_pipeline.readers.probe import Prober, probe_slide, read_samples


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probe") / "sound.tif"
    write_pyramid(path, tissue_like(700, 500), 2, compression="jpeg")
    return path


def overwrite(path: Path, **tags: int) -> None:
    with tifffile.TiffFile(path, mode="r+") as file:
        for name, value in tags.items():
            file.pages[0].tags[name].overwrite(value)


@pytest.fixture
def crashing(tmp_path: Path) -> Path:
    """Tiles of 16 000 x 16 000 px: OpenSlide asks GLib for 1 GB, which aborts."""
    path = tmp_path / "huge-tiles.tif"
    write_pyramid(path, tissue_like(700, 500), compression="deflate")
    overwrite(path, TileWidth=16000, TileLength=16000)
    return path


SMALL = ProbeOptions(memory=1 << 30)


def test_a_probe_returns_what_open_slide_knows(sound: Path) -> None:
    with Prober() as prober:
        info = prober.probe(sound)
        assert info == open_slide(sound).info
        given = prober.probe(sound, mpp=0.3, mpp_source="samplesheet")
        assert (given.scale.x, given.scale_source) == (0.3, "samplesheet")
        assert prober.probe(sound, backend="openslide").backend == "openslide"


def test_refusals_come_back_as_they_are(sound: Path, tmp_path: Path) -> None:
    no_scale = tmp_path / "no-scale.tif"
    write_pyramid(no_scale, tissue_like(300, 300), resolution=(1, 1))
    picture = tmp_path / "p.tif"
    picture.write_bytes(b"\x89PNG" + bytes(99))
    with Prober() as prober:
        for path, kind in [
            (no_scale, MissingScaleError),
            (picture, NotASlideError),
            (tmp_path / "none.svs", SlideError),
        ]:
            with pytest.raises(SlideError) as here:
                open_slide(path)
            with pytest.raises(SlideError) as there:
                prober.probe(path)
            assert type(there.value) is type(here.value) is kind
            assert str(there.value) == str(here.value)
        assert prober.probe(sound).size_px == (700, 500)


def test_a_crash_is_a_sentence_and_the_next_slide_is_served(
    sound: Path, crashing: Path
) -> None:
    with Prober(SMALL) as prober:
        with pytest.raises(SlideError) as caught:
            prober.probe(crashing, backend="openslide")
        message = str(caught.value)
        assert message.startswith(
            "huge-tiles.tif: reading it crashed the reader (signal"
        )
        assert message.endswith("the file is damaged; copy it again from the scanner")
        assert prober.probe(sound).size_px == (700, 500)


def test_without_a_child_that_file_would_take_the_program_down(crashing: Path) -> None:
    code = (
        "import resource, sys; from wsi_pipeline.readers import open_slide\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "open_slide(sys.argv[1], backend='openslide')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(crashing)], capture_output=True, check=False
    )
    assert run.returncode < 0


def test_a_slide_that_takes_too_long_is_given_up(sound: Path) -> None:
    with Prober(ProbeOptions(seconds=1e-6)) as prober:
        with pytest.raises(
            SlideError, match=r"sound\.tif: opening it takes over 1e-06 s"
        ):
            prober.probe(sound)
        prober._options = ProbeOptions()
        assert prober.probe(sound).size_px == (700, 500)


def test_a_slide_that_needs_too_much_memory_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "strip.tif"
    image = np.full((9000, 9000, 3), 200, np.uint8)
    tifffile.imwrite(
        path,
        image,
        compression="deflate",
        rowsperstrip=9000,
        photometric="rgb",
        metadata=None,
        resolution=(20000, 20000),
        resolutionunit=3,
    )
    with pytest.raises(SlideError, match="needs more than 480 MiB of memory"):
        probe_slide(path, options=ProbeOptions(memory=480 << 20))


def test_a_limit_below_what_any_slide_needs_is_named(sound: Path) -> None:
    with pytest.raises(SlideError, match="opening it needs more than 50 MiB of memory"):
        probe_slide(sound, options=ProbeOptions(memory=50 << 20))


def test_more_pixels_than_allowed_are_refused(sound: Path) -> None:
    with Prober(ProbeOptions(pixels=700 * 500)) as prober:
        assert prober.probe(sound).size_px == (700, 500)
    message = r"sound\.tif: has 700 x 500 px, more than 349,999 \(\[probe\] pixels\)"
    with pytest.raises(SlideError, match=message):
        probe_slide(sound, options=ProbeOptions(pixels=700 * 500 - 1))


def test_the_child_imports_no_heavy_library() -> None:
    code = (
        "import sys, wsi_pipeline.readers.probe\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'dask', 'distributed')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_bad_tile_passes_and_all_bad_tiles_do_not(tmp_path: Path) -> None:
    path = tmp_path / "bad.tif"
    write_pyramid(path, tissue_like(1024, 1024), 2, compression="deflate")
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        ranges = list(zip(page.dataoffsets, page.databytecounts, strict=True))

    def spoil(start: int, count: int) -> None:
        with path.open("r+b") as file:
            file.seek(start)
            file.write(b"\x11" * count)

    spoil(*ranges[0])
    slide = open_slide(path)
    with pytest.raises(SlideError):
        slide.read(Box(0, 0, 9, 9))
    read_samples(slide)
    for start, count in ranges:
        spoil(start, count)
    with pytest.raises(SlideError, match=r"bad\.tif: cannot be read at level 0"):
        probe_slide(path)


def test_mutated_slides_are_opened_or_refused_in_our_words(
    tmp_path: Path, sound: Path
) -> None:
    data = sound.read_bytes()
    with tifffile.TiffFile(sound) as file:
        places = [page.offset for page in file.pages]
    rng = np.random.default_rng(3)
    path = tmp_path / "mutant.tif"
    outcomes = {"opened": 0, "refused": 0}
    with Prober(SMALL) as prober:
        for _ in range(40):
            mutant = bytearray(data)
            for _ in range(3):
                # the directories, where geometry and byte ranges are stated
                place = int(rng.choice(places)) + int(rng.integers(250))
                mutant[min(place, len(data) - 1)] = int(rng.integers(256))
            path.write_bytes(mutant)
            try:
                prober.probe(path)
                outcomes["opened"] += 1
            except SlideError as error:
                refusal = str(error)
                outcomes["refused"] += 1
                if "unexpectedly" in refusal:
                    raise
        assert prober.probe(sound).size_px == (700, 500)
    assert min(outcomes.values()) > 5


def test_damage_to_the_coarse_level_alone_refuses_no_slide(tmp_path: Path) -> None:
    path = tmp_path / "coarse.tif"
    write_pyramid(path, tissue_like(1024, 1024), 2, compression="deflate")
    with tifffile.TiffFile(path) as file:
        page = file.pages[1]
        ranges = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    with path.open("r+b") as file:
        for start, count in ranges:
            file.seek(start)
            file.write(b"\x11" * count)
    with pytest.raises(SlideError, match="at level 1"):
        open_slide(path).read(Box(0, 0, 1024, 1024), 1)
    assert probe_slide(path).size_px == (1024, 1024)


@pytest.mark.parametrize("kind", [SlideError, MissingScaleError, NotASlideError])
def test_errors_survive_the_way_between_processes(kind: type[SlideError]) -> None:
    error = pickle.loads(pickle.dumps(kind("a.svs: is odd; mend it")))  # noqa: S301
    assert type(error) is kind
    assert str(error) == "a.svs: is odd; mend it"
    assert isinstance(error, OSError)
