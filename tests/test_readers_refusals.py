"""What is no usable slide is refused by a sentence that says why and what helps."""

import re
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.test_readers import tissue_like, write_pyramid
from wsi_pipeline.errors import (
    MissingScaleError,
    NotASlideError,
    SlideError,
    UnreadableError,
)
from wsi_pipeline.geometry import Box, Level, Scale
from wsi_pipeline.readers import open_slide
from wsi_pipeline.readers.base import check_geometry
from wsi_pipeline.readers.content import not_brightfield, not_coloured
from wsi_pipeline.slide import SlideInfo

HALF_UM = {"resolution": (20000, 20000), "resolutionunit": 3}

# every file of the folder with real odd slides: kind of error, words of the sentence
REAL = {
    "dicom/CMU-1-Small-Region-JPEG/1.2.826.0.1.3680043.8.498."
    "35220404935377466417110411569853018212.dcm": (SlideError, "YBR_FULL"),
    "dicom/multiframe_camelyon_challenge_image.dcm": (MissingScaleError, "28.97 um/px"),
    "dicom-tiny/full_with_bot.dcm": (MissingScaleError, "124.2 um/px"),
    "dicom-tiny/sparse_no_bot.dcm": (MissingScaleError, "124.2 um/px"),
    "dicom-tiny/sm_image_jpegls.dcm": (SlideError, "compressed as JPEG-LS"),
    "hamamatsu/fluorescence-dapi.ndpi": (NotASlideError, "fluorescence image"),
    "odd/crash-2020-10-test.tif": (SlideError, "stores colours as YCBCR"),
    "odd/crash-63b1dffefc8c075ddc606c0a2f5fdc15ece78863.tif": (
        SlideError,
        "stores colours as YCBCR",
    ),
    "odd/git-lfs-pointer.tiff": (SlideError, "Git LFS pointer, 131 bytes"),
    "odd/histolab-broken.svs": (SlideError, "does not begin like a .svs file"),
    "odd/invalid_tiles_tiff.tif": (MissingScaleError, "117.6 um/px"),
    "odd/mirax-truncated/Mirax2-Fluorescence-1.mrxs": (
        NotASlideError,
        "is a fluorescence slide",
    ),
    "odd/old-style-jpeg-compression.tif": (SlideError, "OJPEG compression"),
    "odd/tiff_tiled_planar_lzw.tiff": (MissingScaleError, "only 72 dpi"),
    "odd/total-pages-zero.tif": (NotASlideError, "black-and-white image"),
    "odd/unopenable.tiff": (SlideError, "unknown compression (52479)"),
    "odd/unreadable.svs": (UnreadableError, "cannot be read at level 0"),
    "ome/4D-series.ome.tiff": (NotASlideError, "series of 7 time points"),
    "qptiff/small_vectra.qptiff": (NotASlideError, "channels (DAPI, FITC, Cy3)"),
    "tiff/CMU-1-Small-Region.jpeg.tiff": (MissingScaleError, "0.00499 um/px"),
    "tiff/CMU-1-Small-Region.webp.tiff": (MissingScaleError, "0.00499 um/px"),
    "tiff/boxes.tiff": (MissingScaleError, "only 72 dpi, a print default"),
    "tiff/no_dzi.tif": (NotASlideError, "is a grey image or a label mask"),
    "tiff/test_orient1.tif": (NotASlideError, "is a grey image or a label mask"),
    "tiff/yb10kx5k.zstd.tiff": (MissingScaleError, "only 72 dpi, a print default"),
}


@pytest.mark.parametrize("name", REAL)
def test_real_odd_files_are_refused_by_name(data_dir: Path, name: str) -> None:
    kind, words = REAL[name]
    path = data_dir / "slides" / name
    with pytest.raises(SlideError) as caught:
        open_slide(path)
    message = str(caught.value)
    assert type(caught.value) is kind
    assert message.startswith(f"{path.name}: ")
    assert words in message
    assert re.search(r"[;:] \S", message.removeprefix(f"{path.name}: ")), "no cure"
    assert str(data_dir) not in message


@pytest.mark.parametrize(
    "name",
    [
        "aperio/cmu-1-small-region.svs",
        "dicom-tiny/sm_image.dcm",
        "odd/unicode-name.svs",
        "ome/HE_example.tif",
        "ome/cells.ome.tif",
    ],
)
def test_the_sound_ones_open(data_dir: Path, name: str) -> None:
    slide = open_slide(data_dir / "slides" / name)
    assert slide.read(slide.info.box).shape == (*slide.info.size_px[::-1], 3)


def refuse(path: Path, words: str, kind: type[SlideError] = SlideError) -> None:
    with pytest.raises(SlideError, match=re.escape(words)) as caught:
        open_slide(path)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"{path.name}: ")


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    refuse(tmp_path / "none.svs", "not found; check the path")
    (tmp_path / "link.svs").symlink_to(tmp_path / "none.svs")
    refuse(tmp_path / "link.svs", "is a link to a file that is gone")
    refuse(tmp_path, "is a folder, not a slide file")
    for name, data, words, kind in [
        ("a.svs", b"", "is empty (0 bytes)", SlideError),
        ("b.tif", b"\x89PNG\r\n" + bytes(99), "is a PNG picture", NotASlideError),
        ("c.jpg", b"\xff\xd8\xff\xe0" + bytes(99), "JPEG picture", NotASlideError),
        ("d.tif", b"hello" * 30, "does not begin like a .tif file", SlideError),
        ("d.dcm", b"hello" * 30, "does not begin like a .dcm file", SlideError),
        ("e.xyz", b"hello" * 30, "no slide format that this program", NotASlideError),
        ("f.tif", b"II*\0" + bytes(99), "is cut short or damaged", SlideError),
        ("g.tif", b"II*\0\xff\xff\xff\x7f", "is cut short or damaged", SlideError),
    ]:
        (tmp_path / name).write_bytes(data)
        refuse(tmp_path / name, words, kind)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "deflate"])
def test_a_copy_that_was_cut_short_is_refused(
    tmp_path: Path, share: float, compression: str
) -> None:
    path = tmp_path / "cut.tif"
    write_pyramid(path, tissue_like(1000, 800), 3, compression=compression)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SlideError, match=r"cut\.tif: is (cut short|a damaged TIFF)"):
        open_slide(path)


def mirax(folder: Path, drop: str = "", kind: str = "BRIGHTFIELD") -> Path:
    data = folder / "X"
    data.mkdir()
    (data / "Slidedat.ini").write_text(
        f"[GENERAL]\nSLIDE_TYPE = SLIDE_TYPE_{kind}\n[HIERARCHICAL]\n"
        "INDEXFILE = Index.dat\n[DATAFILE]\nFILE_COUNT = 2\nFILE_0 = Data0000.dat\n"
        "FILE_1 = Data0001.dat\n",
        "utf-8-sig",
    )
    for name in ("Index.dat", "Data0000.dat", "Data0001.dat"):
        (data / name).write_bytes(b"0")
    if drop:
        (data / drop).unlink()
    (folder / "X.mrxs").write_bytes(b"\xff\xd8\xff\xe0" + bytes(99))
    return folder / "X.mrxs"


@pytest.mark.parametrize("drop", ["Index.dat", "Data0001.dat"])
def test_mirax_with_missing_files_says_which(tmp_path: Path, drop: str) -> None:
    refuse(
        mirax(tmp_path, drop),
        f"1 of 3 data files are missing in its folder X ({drop} first); "
        "copy X.mrxs together with its folder X",
    )


def test_mirax_without_its_folder_or_list(tmp_path: Path) -> None:
    refuse(mirax(tmp_path, "Slidedat.ini"), "Slidedat.ini is missing in the folder X")
    (tmp_path / "Y.mrxs").write_bytes(b"\xff\xd8\xff\xe0")
    refuse(tmp_path / "Y.mrxs", "its folder Y is missing; copy Y.mrxs together")


def test_mirax_that_is_complete_but_damaged_goes_to_openslide(tmp_path: Path) -> None:
    refuse(mirax(tmp_path), "; copy it again from the scanner")


def test_mirax_fluorescence_is_named(tmp_path: Path) -> None:
    path = mirax(tmp_path, kind="FLUORESCENCE")
    refuse(path, "is a fluorescence slide", NotASlideError)


GREY = tissue_like(200, 200)[..., 0]


@pytest.mark.parametrize(
    ("pixels", "options", "words"),
    [
        (GREY, {"photometric": "minisblack"}, "is a grey image or a label mask"),
        (GREY.astype(np.uint16), {"photometric": "minisblack"}, "is a grey image"),
        (
            tissue_like(200, 200).astype(np.uint16),
            {"photometric": "rgb"},
            "has 16 bits per colour (uint16)",
        ),
        (
            GREY,
            {
                "photometric": "palette",
                "colormap": np.zeros((3, 256), np.uint16),
            },
            "indexed colours (a palette)",
        ),
        (GREY > 128, {"photometric": "minisblack"}, "black-and-white image (1 bit)"),
        (
            np.dstack([GREY] * 3),
            {"photometric": "rgb"},
            "is a grey image, not a colour",
        ),
        (
            np.stack([GREY] * 5),
            {"photometric": "minisblack", "ome": True, "metadata": {"axes": "ZYX"}},
            "series of 5 focal planes",
        ),
        (
            np.stack([GREY] * 4),
            {"photometric": "minisblack", "ome": True, "metadata": {"axes": "CYX"}},
            "has 4 separate channels, as fluorescence",
        ),
        (
            np.stack([GREY] * 3),
            {
                "photometric": "minisblack",
                "ome": True,
                "metadata": {"axes": "CYX", "Channel": {"Name": ["DAPI", "B", "C"]}},
            },
            "has 3 separate channels (DAPI, B, C)",
        ),
        (
            np.stack([tissue_like(200, 200)] * 3),
            {"photometric": "rgb"},
            "is a stack of images",
        ),
    ],
)
def test_images_of_another_kind_are_refused(
    tmp_path: Path, pixels: np.ndarray, options: dict[str, object], words: str
) -> None:
    path = tmp_path / "kind.tif"
    options = {"metadata": None} | options
    if words.endswith("images"):
        options["metadata"] = {"axes": "QYXS"}
    tifffile.imwrite(path, pixels, **options, **HALF_UM)
    refuse(path, words, NotASlideError)


def test_three_unnamed_bright_channels_are_a_colour_slide(tmp_path: Path) -> None:
    image = tissue_like(200, 160)
    path = tmp_path / "planes.ome.tif"
    tifffile.imwrite(
        path,
        image.transpose(2, 0, 1),
        photometric="minisblack",
        ome=True,
        metadata={"axes": "CYX", "PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm"}
        | {"PhysicalSizeY": 500, "PhysicalSizeYUnit": "nm"},
    )
    slide = open_slide(path)
    assert np.array_equal(slide.read(slide.info.box), image)
    assert (slide.info.scale.x, slide.info.scale.y) == (0.5, 0.5)


def rgb(r: int, g: int, b: int, share: float, ground: int) -> np.ndarray:
    """10 000 pixels, a share of them in one colour."""
    pixels = np.full((10_000, 3), ground, np.uint8)
    pixels[: round(10_000 * share)] = r, g, b
    return pixels


@pytest.mark.parametrize(
    ("pixels", "refused"),
    [
        (rgb(10, 8, 200, 0.2, 0), True),  # DAPI
        (rgb(10, 220, 15, 0.4, 3), True),  # FITC
        (rgb(0, 0, 0, 0.5, 0), True),  # black
        (rgb(0, 0, 0, 0.2, 255), False),  # black fill on glass
        (rgb(200, 120, 170, 0.2, 0), False),  # section cut out on black
        (rgb(200, 120, 170, 0.01, 0), False),  # a very small one
        (rgb(80, 40, 120, 1.0, 0), False),  # dark tissue fills the view
        (rgb(200, 120, 170, 0.0, 255), False),  # blank glass
    ],
)
def test_brightfield_rule(pixels: np.ndarray, refused: bool) -> None:
    assert (not_brightfield(pixels) is not None) is refused


@pytest.mark.parametrize(
    ("pixels", "refused"),
    [
        (np.repeat(np.arange(10_000)[:, None] % 250, 3, 1).astype(np.uint8), True),
        (rgb(245, 244, 243, 0.5, 250), False),  # blank glass
        (rgb(0, 0, 0, 0.3, 250), False),  # blank glass with a black border
        (rgb(180, 110, 150, 0.01, 120), False),  # a little tissue on grey
    ],
)
def test_grey_rule(pixels: np.ndarray, refused: bool) -> None:
    assert (not_coloured(pixels) is not None) is refused


def test_wholemounts_cut_out_on_black_are_brightfield(data_dir: Path) -> None:
    folder = data_dir / "labelled" / "prostate-wholemount"
    images = [tifffile.imread(p) for p in sorted(folder.rglob("histology.tiff"))]
    assert len(images) == 31
    for image in images:
        pixels = image[::3, ::3, :3].reshape(-1, 3)
        assert not_brightfield(pixels) is None
        assert not_coloured(pixels) is None


def info_of(sizes: list[tuple[int, int, float]], tile: int = 256) -> SlideInfo:
    levels = tuple(Level((w, h), d) for w, h, d in sizes)
    return SlideInfo(
        Path("x.svs"),
        "tiff",
        "aperio",
        levels,
        Scale(0.5, 0.5),
        "Aperio MPP",
        levels[0].box,
        (tile, tile),
    )


@pytest.mark.parametrize(
    ("sizes", "tile", "words"),
    [
        ([(10**6, 10**6, 1)], 256, "1000000 x 1000000 px, more than any scanner makes"),
        ([(9000, 9000, 1)], 2**30, "stored in pieces of 1073741824 x 1073741824 px"),
        ([(9000, 9000, 1)], 0, "states tiles of 0 x 0 px"),
        ([(9000, 9000, 1), (4500, 2000, 2)], 256, "level 1 is 4500 x 2000 px"),
        ([(9000, 9000, 1), (9000, 9000, 1)], 256, "level 1 is not coarser"),
        ([(9000, 9000, 1), (1125, 1125, 8), (4500, 4500, 2)], 256, "level 2 is not"),
    ],
)
def test_impossible_geometry_is_refused(
    sizes: list[tuple[int, int, float]], tile: int, words: str
) -> None:
    with pytest.raises(SlideError, match=words):
        check_geometry("x.svs", info_of(sizes, tile))


def test_geometry_of_real_scanners_passes() -> None:
    check_geometry(
        "x.svs", info_of([(46000, 32914, 1), (11500, 8228, 4), (2875, 2057, 16)])
    )
    check_geometry("x.svs", info_of([(16, 16, 1)]))
    check_geometry(
        "x.svs", info_of([(300, 250, 1), (150, 125, 2), (75, 62, 4), (37, 31, 8)])
    )


def test_one_bad_tile_in_the_overview_does_not_refuse_the_slide(tmp_path: Path) -> None:
    path = tmp_path / "bad.tif"
    write_pyramid(path, tissue_like(512, 512), compression="deflate")
    with tifffile.TiffFile(path) as file:
        start = file.pages[0].dataoffsets[0]
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\x11" * 500)
    assert open_slide(path).read(Box(256, 256, 64, 64)).std() > 10
