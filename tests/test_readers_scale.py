"""The ladder of pixel sizes: the user, then the metadata, then no."""

import math
from pathlib import Path

import pytest

from tests.test_readers import tissue_like, write_pyramid
from wsi_pipeline.errors import MissingScaleError
from wsi_pipeline.readers import open_slide
from wsi_pipeline.readers.base import GivenScale
from wsi_pipeline.readers.scale import (
    StatedScale,
    aperio_mpp,
    choose_scale,
    ome_mpp,
    resolution_mpp,
)

FILE = StatedScale(0.5, 0.5, "Aperio MPP")


def test_the_users_scale_wins_and_says_that_it_does() -> None:
    scale, source, warnings = choose_scale(
        "a.svs", [FILE], GivenScale(0.25, "samplesheet")
    )
    assert (scale.x, scale.y, source) == (0.25, 0.25, "samplesheet")
    assert warnings == (
        "samplesheet says 0.25 um/px, the file says 0.5 (Aperio MPP); "
        "samplesheet is used",
    )
    assert choose_scale("a.svs", [FILE], GivenScale(0.5))[2] == ()


def test_the_first_statement_of_the_file_is_taken() -> None:
    other = StatedScale(0.7, 0.7, "TIFF resolution tags", True)
    scale, source, warnings = choose_scale("a.svs", [FILE, other], GivenScale())
    assert (scale.x, source, warnings) == (0.5, "Aperio MPP", ())


@pytest.mark.parametrize(
    "mpp", [0, 0.005, 0.0499, 10.01, 50, -1, math.nan, math.inf, 352.8]
)
def test_impossible_scales_of_the_file_are_refused(mpp: float) -> None:
    for x, y in ((mpp, 0.5), (0.5, mpp)):
        with pytest.raises(MissingScaleError) as caught:
            choose_scale("a.svs", [StatedScale(x, y, "Aperio MPP")], GivenScale())
        message = str(caught.value)
        assert f"states {mpp:.4g} um/px (Aperio MPP)" in message
        assert "--mpp or in the samplesheet column mpp" in message


@pytest.mark.parametrize(
    ("mpp", "doubts"), [(0.05, 1), (0.099, 1), (0.1, 0), (2, 0), (2.01, 1), (10, 1)]
)
def test_unusual_scales_are_warned_of(mpp: float, doubts: int) -> None:
    _, _, warnings = choose_scale("a", [StatedScale(mpp, mpp, "F")], GivenScale())
    assert len(warnings) == doubts
    assert all("unusual pixel size" in w for w in warnings)


@pytest.mark.parametrize("mpp", [28.97, 0.01])
def test_the_user_may_give_any_scale_with_a_warning(mpp: float) -> None:
    scale, _, warnings = choose_scale("a", [], GivenScale(mpp))
    assert scale.x == mpp
    assert len(warnings) == 1


@pytest.mark.parametrize("mpp", [0, -0.5, math.nan, math.inf])
def test_the_user_may_not_give_nonsense(mpp: float) -> None:
    with pytest.raises(MissingScaleError, match=r"--mpp says .* give a number above 0"):
        choose_scale("a", [FILE], GivenScale(mpp))


def test_pixels_that_are_not_square_are_warned_of() -> None:
    _, _, warnings = choose_scale("a", [StatedScale(0.5, 0.54, "F")], GivenScale())
    assert warnings == ()
    _, _, warnings = choose_scale("a", [StatedScale(0.5, 0.56, "F")], GivenScale())
    assert warnings == ("pixels are not square: 0.5 x 0.56 um (F)",)


@pytest.mark.parametrize("dpi", [72, 96, 300])
def test_print_resolutions_are_no_scale(dpi: int) -> None:
    stated = resolution_mpp(dpi, dpi, 2)
    assert stated is not None
    with pytest.raises(MissingScaleError, match=f"only {dpi} dpi, a print default"):
        choose_scale("a", [stated], GivenScale())


def test_resolution_tags_need_a_real_unit() -> None:
    assert resolution_mpp(20000, 20000, 1) is None
    assert resolution_mpp(1, 1, 2) is None
    assert resolution_mpp(0, 0, 3) is None
    assert resolution_mpp(math.nan, 5000, 3) is None
    assert resolution_mpp(20000, 10000, 3) == StatedScale(
        0.5, 1.0, "TIFF resolution tags", True
    )
    assert resolution_mpp(50800, 50800, 2).x == 0.5  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "mpp"),
    [
        ("Aperio|AppMag = 20|MPP = 0.4990|Left = 1", 0.499),
        ("Aperio|MPP = 0,2520", 0.252),
        ("Aperio|MPP=0.25", 0.25),
        ("Aperio|XMPP = 3", None),
        ("Aperio|MPP = 0", None),
        ("Aperio|MPP = none", None),
    ],
)
def test_aperio_descriptions(text: str, mpp: float | None) -> None:
    stated = aperio_mpp(text)
    assert (None if stated is None else stated.x) == mpp


@pytest.mark.parametrize(
    ("sizes", "mpp"),
    [
        ('PhysicalSizeX="0.25" PhysicalSizeY="0.5"', (0.25, 0.5)),
        (
            'PhysicalSizeX="250" PhysicalSizeXUnit="nm" '
            'PhysicalSizeY="0.0005" PhysicalSizeYUnit="mm"',
            (0.25, 0.5),
        ),
        (
            'PhysicalSizeX="1" PhysicalSizeXUnit="pixel" '
            'PhysicalSizeY="1" PhysicalSizeYUnit="pixel"',
            None,
        ),
        ('PhysicalSizeX="much" PhysicalSizeY="1"', None),
        ("", None),
    ],
)
def test_ome_sizes(sizes: str, mpp: tuple[float, float] | None) -> None:
    stated = ome_mpp(f"<OME><Image><Pixels {sizes}/></Image></OME>")
    assert (stated and (pytest.approx(stated.x), pytest.approx(stated.y))) == mpp


def test_a_slide_records_where_its_scale_came_from(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    image = tissue_like(200, 100)
    write_pyramid(path, image, compression="deflate")
    for backend, source in [
        ("tiff", "TIFF resolution tags"),
        ("openslide", "openslide.mpp-x/y"),
    ]:
        info = open_slide(path, backend=backend).info
        assert (info.scale.x, info.scale_source) == (pytest.approx(0.5), source)
        info = open_slide(path, mpp=0.46, backend=backend).info
        assert (info.scale.x, info.scale_source) == (0.46, "--mpp")
        assert len(info.warnings) == 0
    write_pyramid(path, image, compression="deflate", resolution=(28.34, 28.34))
    for backend in ("tiff", "openslide"):
        with pytest.raises(MissingScaleError, match="only 72 dpi"):
            open_slide(path, backend=backend)
        assert open_slide(path, mpp=0.5, backend=backend).info.warnings == ()


def test_a_wrong_scale_is_mended_by_the_user(data_dir: Path) -> None:
    path = data_dir / "slides/tiff/CMU-1-Small-Region.jpeg.tiff"
    info = open_slide(path, mpp=0.499).info
    assert (info.scale.x, info.scale_source) == (0.499, "--mpp")
    assert info.warnings == (
        "--mpp says 0.499 um/px, the file says 0.00499 (TIFF resolution tags); "
        "--mpp is used",
    )
