"""OpenSlide into memory of ours: pixels of the public call, background, errors."""

import inspect
from concurrent.futures import ThreadPoolExecutor
from ctypes import POINTER, c_int32, c_int64, c_uint32
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from openslide import lowlevel

from tests.tiff_files import HALF_UM, Make, Pixels, write_make
from wsi_pipeline.errors import SlideError
from wsi_pipeline.geometry import Box
from wsi_pipeline.readers import open_slide
from wsi_pipeline.readers import openslide as reader
from wsi_pipeline.readers.openslide import READ_PX, OpenSlideHandle

WHITE, GREEN = (255, 255, 255), (10, 200, 77)


def public_rgba(path: Path, box: Box, level: int = 0) -> Pixels:
    """What `openslide.OpenSlide` gives; a corner of level 0, a size of the level."""
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((box.x, box.y), level, (box.w, box.h)))


def test_openslide_python_still_has_the_call_that_fills_our_memory() -> None:
    call = getattr(lowlevel, "_read_region", None)
    assert call is not None, (
        f"openslide-python {openslide.__version__} has no lowlevel._read_region any "
        "more; readers/openslide.py fills its own memory with it"
    )
    assert call.argtypes == [
        lowlevel._OpenSlide,
        POINTER(c_uint32),
        c_int64,
        c_int64,
        c_int32,
        c_int64,
        c_int64,
    ]
    assert call.errcheck is lowlevel._check_error
    for name in ("open", "cache_create", "set_cache", "get_level_count"):
        assert getattr(lowlevel, name).available, name
    assert list(inspect.signature(lowlevel.read_region).parameters) == [
        *("slide", "x", "y", "level", "w", "h")
    ]


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("halves") / "slide.tif"
    write_make(path, Make(sizes=((832, 640), (416, 320), (208, 160))))
    return path


@pytest.mark.parametrize(
    "box",
    [
        Box(0, 0, 1, 1),
        Box(831, 639, 1, 1),
        Box(5, 7, 1, 300),
        Box(5, 7, 300, 1),
        Box(63, 64, 65, 63),
        Box(0, 0, 832, 640),
    ],
    ids=lambda box: f"{box.x},{box.y},{box.w}x{box.h}",
)
def test_opaque_pixels_are_those_of_the_public_call(halves: Path, box: Box) -> None:
    planes = OpenSlideHandle(halves, GREEN).read_planes(box, 0)
    assert planes.flags.c_contiguous
    assert planes.shape == (3, box.h, box.w)
    wanted = public_rgba(halves, box)
    assert np.all(wanted[..., 3] == 255)
    assert np.array_equal(planes, wanted[..., :3].transpose(2, 0, 1))


def test_a_box_of_a_level_begins_where_the_public_call_begins(halves: Path) -> None:
    planes = OpenSlideHandle(halves, GREEN).read_planes(Box(20, 30, 50, 40), 2)
    wanted = public_rgba(halves, Box(80, 120, 50, 40), level=2)
    assert np.array_equal(planes, wanted[..., :3].transpose(2, 0, 1))


@pytest.mark.parametrize("ground", [WHITE, GREEN, (0, 0, 0)])
def test_partly_transparent_pixels_are_laid_on_the_background(
    tmp_path: Path, ground: tuple[int, int, int]
) -> None:
    rng = np.random.default_rng(0)
    alpha = rng.integers(0, 256, (150, 200), np.uint8)
    alpha[:20], alpha[20:40] = 0, 255
    colour = rng.integers(0, 256, (150, 200, 3)) * alpha[..., None] // 255
    tifffile.imwrite(
        tmp_path / "alpha.tif",
        np.dstack([colour, alpha]).astype(np.uint8),
        photometric="rgb",
        extrasamples=[1],
        tile=(64, 64),
        metadata=None,
        **HALF_UM,
    )
    box = Box(0, 0, 200, 150)
    read = OpenSlideHandle(tmp_path / "alpha.tif", ground).read_planes(box, 0)
    clear = np.array(ground) * (255 - alpha[..., None].astype(int))
    exact = colour + (clear + 127) // 255
    assert np.array_equal(read.transpose(1, 2, 0), exact)
    assert np.all(read[:, :20] == np.array(ground)[:, None, None])
    # the public call divides by alpha, rounding down: at most one value darker
    rgba = public_rgba(tmp_path / "alpha.tif", box).astype(float)
    straight = rgba[..., :3] * rgba[..., 3:] / 255 + clear / 255
    assert np.abs(read.transpose(1, 2, 0) - straight).max() < 1.5


@pytest.mark.parametrize("ground", [WHITE, GREEN])
@pytest.mark.parametrize(
    "make",
    [
        Make(sizes=((512, 384), (256, 192)), holes=((0, 9), (1, 2))),
        Make(codec="lzw", tagged="rgb", holes=((0, 9),)),
        Make(aperio=True, holes=((0, 9),)),
    ],
    ids=["jpeg", "lzw", "aperio"],
)
def test_what_was_not_scanned_is_background_and_not_black(
    tmp_path: Path, make: Make, ground: tuple[int, int, int]
) -> None:
    path = tmp_path / ("sparse.svs" if make.aperio else "sparse.tif")
    write_make(path, make)
    handle = OpenSlideHandle(path, ground)
    for level, tile in make.holes:
        w, h = make.sizes[level]
        rgba = public_rgba(path, Box(0, 0, w, h), level)
        columns = -(-w // 64)
        hole = Box(tile % columns * 64, tile // columns * 64, 64, 64)
        clear = np.zeros((h, w), bool)
        clear[hole.rows, hole.columns] = True
        assert np.array_equal(rgba[..., 3] == 0, clear)
        read = handle.read_planes(Box(0, 0, w, h), level)
        assert np.all(read[:, clear] == np.array(ground)[:, None])
        assert np.array_equal(read[:, ~clear], rgba[~clear, :3].T)


def test_the_background_is_the_one_that_the_slide_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sparse.tif"
    write_make(path, Make(holes=((0, 0),)))
    stated = dict(openslide.OpenSlide(path).properties)
    stated["openslide.background-color"] = "0AC84D"
    monkeypatch.setattr(openslide.OpenSlide, "properties", stated)
    slide = open_slide(path, backend="openslide")
    assert slide.info.background == GREEN
    read = slide.read(Box(-10, -10, 74, 74))  # outside, and a hole
    assert np.all(read == GREEN)


def test_an_error_is_openslides_and_stays_until_the_handle_is_dropped(
    tmp_path: Path,
) -> None:
    path = tmp_path / "bad.tif"
    write_make(path, Make())
    with tifffile.TiffFile(path) as file:
        start = file.pages[0].dataoffsets[0]
    slide = open_slide(path, backend="openslide")
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\x11" * 300)
    handle = OpenSlideHandle(path, WHITE)
    far = Box(192, 128, 64, 64)
    assert handle.read_planes(far, 0).std() > 10
    with pytest.raises(openslide.OpenSlideError):
        handle.read_planes(Box(0, 0, 64, 64), 0)
    with pytest.raises(openslide.OpenSlideError):
        handle.read_planes(far, 0)
    slide.close()
    with pytest.raises(SlideError, match="cannot be read at level 0"):
        slide.read(Box(0, 0, 64, 64))
    assert slide.read(far).std() > 10


def test_results_are_not_the_memory_that_is_used_again(halves: Path) -> None:
    handle = OpenSlideHandle(halves, WHITE)
    boxes = [Box(x, 0, 64, 64) for x in range(0, 832, 64)]
    kept = [handle.read_planes(box, 0) for box in boxes]
    for box, planes in zip(boxes, kept, strict=True):
        wanted = public_rgba(halves, box)[..., :3].transpose(2, 0, 1)
        assert np.array_equal(planes, wanted)
    assert len(handle._spare) == 1


def test_there_is_memory_for_each_thread_and_none_for_large_boxes(
    halves: Path, tmp_path: Path
) -> None:
    handle = OpenSlideHandle(halves, WHITE)
    boxes = list(Box(0, 0, 832, 640).blocks(61)) * 3
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda box: handle.read_planes(box, 0), boxes))
    for box, planes in zip(boxes[:30], read, strict=False):
        wanted = public_rgba(halves, box)[..., :3].transpose(2, 0, 1)
        assert np.array_equal(planes, wanted)
    assert 1 <= len(handle._spare) <= 4
    assert {len(spare) for spare in handle._spare} == {READ_PX**2 * 5}
    long = tmp_path / "long.tif"
    write_make(long, Make(sizes=((READ_PX + 64, READ_PX),), tile=(512, 512)))
    handle = OpenSlideHandle(long, WHITE)
    box = Box(0, 0, READ_PX + 64, READ_PX)
    wanted = public_rgba(long, box)[..., :3].transpose(2, 0, 1)
    assert np.array_equal(handle.read_planes(box, 0), wanted)
    assert len(handle._spare) == 0


def test_all_slides_of_a_process_share_one_cache(
    halves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, given = [], []
    create, put = lowlevel.cache_create, lowlevel.set_cache
    monkeypatch.setattr(lowlevel, "cache_create", lambda n: made.append(n) or create(n))
    monkeypatch.setattr(
        lowlevel, "set_cache", lambda s, c: given.append(c) or put(s, c)
    )
    reader._tile_cache.cache_clear()
    handles = [OpenSlideHandle(halves, WHITE) for _ in range(5)]
    box = Box(0, 0, 832, 640)
    first, *others = [handle.read_planes(box, 0) for handle in handles]
    assert all(np.array_equal(first, other) for other in others)
    assert made == [reader.CACHE_BYTES] == [128 * 2**20]
    assert len(given) == 5
    assert len({id(cache) for cache in given}) == 1
