"""Slides and pyramids behind URLs: the bytes of local ones, or one plain sentence."""

import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import numpy as np
import pytest
import tifffile

from tests.servers import Store, Web, local_client, s3_store, web_server
from tests.slides import NumberSlide
from tests.tiff_files import HALF_UM, Pixels, tissue_like
from wsi_pipeline import publishing
from wsi_pipeline.cli import main
from wsi_pipeline.config import RunConfig, TileOptions
from wsi_pipeline.errors import (
    ConfigError,
    ExportError,
    NotASlideError,
    PyramidError,
    SlideError,
)
from wsi_pipeline.geometry import Box
from wsi_pipeline.inputs import list_inputs
from wsi_pipeline.keys import fingerprint
from wsi_pipeline.places import as_place, list_objects
from wsi_pipeline.pyramid import open_pyramid
from wsi_pipeline.readers import open_slide
from wsi_pipeline.readers.discovery import find_slides, slide_id
from wsi_pipeline.readers.probe import Prober
from wsi_pipeline.stages import SlideJob
from wsi_pipeline.tiling import tile_slide

SMALL = TileOptions(block_px=1024, chunk_px=256, workers=2)
SECRET = "hunter2"  # noqa: S105  # of nobody

Keep = Callable[[str, bytes], str]


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with pytest.MonkeyPatch.context() as patch, s3_store() as running:
        patch.setenv("AWS_ENDPOINT_URL", running.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "someone")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="slides")
        yield running


@pytest.fixture
def keep(store: Store, request: pytest.FixtureRequest) -> Keep:
    """Puts an object into a folder of the test's own; returns its URL."""

    def put(name: str, data: bytes) -> str:
        key = f"{request.node.name}/{name}"
        boto3.client("s3").put_object(Bucket="slides", Key=key, Body=data)
        return f"s3://slides/{key}"

    return put


@pytest.fixture
def web() -> Iterator[Web]:
    with web_server() as running:
        yield running


def tiff(
    width: int = 1500, height: int = 1100, levels: int = 3, **options: object
) -> bytes:
    """A tiled JPEG pyramid at 0.5 um/px."""
    options = HALF_UM | {"photometric": "rgb", "compression": "jpeg"} | options
    options |= {"tile": (128, 128), "metadata": None}
    image, file = tissue_like(width, height), io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for level in range(levels):
            part = np.ascontiguousarray(image[:: 2**level, :: 2**level])
            writer.write(part, subfiletype=min(level, 1), **options)
    return file.getvalue()


def local(folder: Path, data: bytes, name: str = "a.tif") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def stored(url: str) -> dict[str, bytes]:
    place = as_place(url)
    return {name: (place / name).read_bytes() for name in list_objects(place)}


def files(folder: Path) -> dict[str, bytes]:
    paths = [p for p in folder.rglob("*") if p.is_file()]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


def levels_of(path: Path | str) -> list[Pixels]:
    with open_slide(path) as slide:
        return [slide.read(slide.info.box, i) for i in range(len(slide.info.levels))]


def again[T](value: T) -> T:
    """What another process gets."""
    return pickle.loads(pickle.dumps(value))  # type: ignore[no-any-return]  # noqa: S301


def wsi(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, standard output and error of the command, run in this process."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["wsi", *map(str, words)])
        patch.setattr("signal.signal", lambda *_: None)
        main()
    code = ended.value.code
    return int(code or 0), *capsys.readouterr()


def test_a_slide_in_a_store_is_the_local_slide(tmp_path: Path, keep: Keep) -> None:
    data = tiff()
    path, url = local(tmp_path, data), keep("a.tif", data)
    here, there = open_slide(path).info, open_slide(url).info
    assert str(there.path) == url
    assert there.read_px == 2048
    assert here == replace(there, path=path, read_px=here.read_px)
    for one, other in zip(levels_of(path), levels_of(url), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_store_to_store_gives_the_bytes_of_folder_to_folder(
    tmp_path: Path, keep: Keep, version: str
) -> None:
    data = tiff(2600, 1900)
    path, url = local(tmp_path, data), keep("a.tif", data)
    options = SMALL
    if version == "0.4":
        options = TileOptions(ome_zarr="0.4", block_px=1024, workers=2)
    out = url.replace("a.tif", "out/a.zarr")
    tile_slide(open_slide(path), tmp_path / "a.zarr", options)
    tile_slide(open_slide(url), out, options)
    assert stored(out) == files(tmp_path / "a.zarr")


def test_workers_in_other_processes_read_and_write_a_store(
    tmp_path: Path, keep: Keep
) -> None:
    data = tiff()
    path, url = local(tmp_path, data), keep("a.tif", data)
    out = url.replace("a.tif", "a.zarr")
    tile_slide(open_slide(path), tmp_path / "a.zarr", SMALL)
    with local_client(1) as client:
        tile_slide(open_slide(url), out, SMALL, pool=client)
    assert stored(out) == files(tmp_path / "a.zarr")


def test_a_pyramid_in_a_store_reads_as_the_local_one(
    tmp_path: Path, keep: Keep
) -> None:
    slide = NumberSlide.of(1500, 900)
    here = tile_slide(slide, tmp_path / "a.zarr", SMALL)
    url = keep("old", b"").replace("old", "a.zarr")
    there = tile_slide(slide, url, SMALL)
    assert str(there.path) == url
    box = Box(100, 200, 700, 600)
    for pyramid in (there, open_pyramid(url), again(there)):
        found = pyramid.read_level(box, 0)
        np.testing.assert_array_equal(found, here.read_level(box, 0))
    lazy = again(open_pyramid(url).level(1))
    np.testing.assert_array_equal(lazy.compute(), here.level(1).compute())


def test_the_command_tiles_from_url_to_url_and_then_reuses(
    tmp_path: Path, keep: Keep, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiff()
    path, url = local(tmp_path, data), keep("a.tif", data)
    out = url.removesuffix("/a.tif") + "/out"
    assert wsi(capsys, "tile", path, "-o", tmp_path / "out")[0] == 0
    code, printed, _ = wsi(capsys, "tile", url, "-o", out)
    name = slide_id(find_slides([url])[0])
    assert code == 0
    assert printed.split() == [
        f"{out}/{name}/slide.ome.zarr",
        f"{out}/{name}/thumbnail.png",
    ]
    here, there = files(tmp_path / "out"), stored(out)
    record = f"{name}/stages/tile.json"
    assert there.keys() == here.keys()
    assert {n for n in here if here[n] != there[n]} == {record}  # it holds seconds
    store.requests.clear()
    assert wsi(capsys, "tile", url, "-o", out)[0] == 0
    assert store.count("PUT") == 0


def test_opening_and_reading_take_few_requests(keep: Keep, store: Store) -> None:
    url = keep("a.tif", tiff(3000, 2400, levels=4))
    store.requests.clear()
    slide = open_slide(url)
    # twice the size and the first block; the tables of four levels lie in two more;
    # the overview: a level of 375 x 300 px in one
    assert store.count("HEAD") == 2
    assert store.count("GET") <= 6
    store.requests.clear()
    slide.read(Box(0, 0, 2048, 2048))  # 256 tiles in 16 rows
    assert len(store.requests) <= 16


def test_an_answer_that_comes_short_is_asked_for_again(
    tmp_path: Path, keep: Keep, store: Store
) -> None:
    data = tiff()
    url = keep("cut.tif", data)
    slide, whole = open_slide(url), open_slide(local(tmp_path, data))
    store.cuts = 1
    box = Box(0, 0, 300, 300)
    np.testing.assert_array_equal(slide.read(box), whole.read(box))
    store.cuts = 10**6
    with pytest.raises(SlideError, match=r"cut\.tif: cannot be read .* try again"):
        slide.read(box)
    store.cuts = 0
    np.testing.assert_array_equal(slide.read(box), whole.read(box))


def test_an_object_that_is_cut_short_is_refused(keep: Keep) -> None:
    data = tiff(compression="none")  # tifffile writes the tables in front
    url = keep("a.tif", data[: len(data) - 5000])
    with pytest.raises(SlideError, match=r"a\.tif: is cut short"):
        open_slide(url)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://slides/none.svs", r"none\.svs: not found; check s3://slides/none\.svs"),
        ("s3://no-such-bucket/a.svs", r"a\.svs: not found; check s3://no-such"),
        ("s3://slides/forbidden.svs", r"forbidden\.svs: access to .*AWS_PROFILE"),
    ],
)
def test_what_cannot_be_reached_is_named(store: Store, url: str, words: str) -> None:
    with pytest.raises(SlideError, match=words):
        open_slide(url)
    with pytest.raises(SlideError, match=words):
        find_slides([url])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "s3://slides/a.svs cannot be"),
        ({"AWS_ACCESS_KEY_ID": ""}, "no credentials for s3://slides/a.svs; give them"),
    ],
)
def test_a_store_that_is_away_and_missing_credentials_are_named(
    store: Store, tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    none = str(tmp_path / "none")
    alone = {"AWS_SHARED_CREDENTIALS_FILE": none, "AWS_CONFIG_FILE": none}
    alone |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "wsi_pipeline", "info", "s3://slides/a.svs"],
        capture_output=True,
        text=True,
        env=os.environ | alone | changes,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"wsi: a.svs: {words}")
    assert done.stderr.count("\n") == 1
    assert SECRET not in done.stderr


def test_a_batch_goes_on_after_what_cannot_be_reached(
    tmp_path: Path, keep: Keep, capsys: pytest.CaptureFixture[str]
) -> None:
    good = keep("a.tif", tiff())
    rows = ["s3://slides/none.svs", "s3://slides/forbidden.svs", good]
    sheet = tmp_path / "sheet.csv"
    lines = [f"s{i},{url}" for i, url in enumerate(rows)]
    sheet.write_text("\n".join(["sample,slide", *lines]))
    code, printed, errors = wsi(capsys, "info", sheet)
    assert code == 3
    assert errors == ""
    assert printed.count("error") == 2
    assert f"slide  {good}" in printed


def test_nothing_is_left_when_a_block_cannot_be_read(keep: Keep) -> None:
    url = keep("other/kept", b"kept")
    slide = NumberSlide.of(2000, 2000, broken=Box(1500, 1500, 1, 1))
    keep("a.zarr2/kept", b"kept")
    folder = url.removesuffix("/other/kept")
    with pytest.raises(SlideError, match="damaged"):
        tile_slide(slide, f"{folder}/a.zarr", SMALL)
    assert stored(folder) == {"a.zarr2/kept": b"kept", "other/kept": b"kept"}


def test_nothing_is_left_when_the_store_refuses_a_shard(
    keep: Keep, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = keep("old", b"").replace("old", "a.zarr")
    monkeypatch.setattr(store, "refused", "/1/c/")
    with pytest.raises(ExportError, match="is refused; check the credentials"):
        tile_slide(NumberSlide.of(2000, 2000), url, SMALL)
    assert stored(url) == {}


def test_a_pyramid_that_was_killed_half_way_is_none_and_is_made_anew(
    tmp_path: Path, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = keep("old", b"").replace("old", "a.zarr")
    slide = NumberSlide.of(2000, 2000)
    here = tile_slide(slide, tmp_path / "a.zarr", SMALL)
    tile_slide(NumberSlide.of(4000, 300), url, SMALL)  # an older one

    def killed(done: int, total: int) -> None:
        # a process that is gone removes nothing
        monkeypatch.setattr(publishing, "remove", lambda place: None)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tile_slide(slide, url, SMALL, progress=killed)
    left = stored(url)
    assert any(name.startswith("0/c/") for name in left)
    assert "zarr.json" not in left
    with pytest.raises(PyramidError, match="no OME-Zarr there"):
        open_pyramid(url)
    monkeypatch.undo()
    tile_slide(slide, url, SMALL)
    assert stored(url) == files(here.path)


def test_a_place_that_takes_nothing_is_named(store: Store, web: Web) -> None:
    slide = NumberSlide.of(300, 300)
    with pytest.raises(ExportError, match=r"a\.zarr: not found; check s3://no-such"):
        tile_slide(slide, "s3://no-such-bucket/a.zarr", SMALL)
    with pytest.raises(
        ExportError, match=r"access to s3://slides/forbidden/a\.zarr is"
    ):
        tile_slide(slide, "s3://slides/forbidden/a.zarr", SMALL)
    with pytest.raises(ExportError, match="cannot write there; choose s3:// or gs://"):
        tile_slide(slide, f"{web.url}/a.zarr", SMALL)


def test_other_verbs_than_tile_refuse_urls_for_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (("run", tmp_path, "-o", "s3://slides/x"), ("tissue", "s3://b/x")):
        code, _, errors = wsi(capsys, *words)
        assert code == 2
        assert "only `wsi tile` writes its results to URLs" in " ".join(errors.split())


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.mrxs", b"\xff\xd8\xff\xe0", r"a\.mrxs: is no TIFF; download it first"),
        ("a.dcm", bytes(128) + b"DICM", r"a\.dcm: is no TIFF; download it first"),
        ("a.tif", tiff(levels=1, compression="jpeg2000"), "JPEG 2000; download"),
        ("a.tif", tiff(levels=1, description="<scn></scn>"), "Leica SCN; download"),
        ("a.tif", tiff(levels=1, software="MedScan 1"), "Trestle TIFF; download"),
        ("a.tif", b"not a TIFF", r"a\.tif: does not begin like a \.tif file"),
        ("a.svs", b"", r"a\.svs: is empty"),
    ],
)
def test_what_only_openslide_reads_is_to_be_downloaded(
    keep: Keep, name: str, data: bytes, words: str
) -> None:
    with pytest.raises(SlideError, match=words):
        open_slide(keep(name, data))


def test_openslide_and_pictures_are_refused(keep: Keep) -> None:
    with pytest.raises(SlideError, match="openslide opens local files only"):
        open_slide(keep("a.tif", tiff(levels=1)), backend="openslide")
    with pytest.raises(NotASlideError, match="PNG picture"):
        open_slide(keep("a.png", b"\x89PNG"))


def test_a_folder_of_a_store_lists_like_a_local_one(tmp_path: Path, keep: Keep) -> None:
    names = ["b.svs", "a/x.tif", "a/notes.txt", "a/p.zarr/zarr.json", "a/p.zarr/0/c",
             ".hidden/a.svs", "B.tif", "m.mrxs", "m/Data1.dat"]  # fmt: skip
    for name in names:
        url = keep(name, b"x")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    folder = url.removesuffix("/m/Data1.dat")
    here, there = find_slides([tmp_path]), find_slides([folder])
    assert [(slide_id(r), r.kind, r.reason) for r in there] == [
        (slide_id(r), r.kind, r.reason) for r in here
    ]
    assert [str(r.path) for r in there] == [
        f"{folder}/{r.path.relative_to(tmp_path)}" for r in here
    ]


def test_equal_names_in_a_folder_and_a_store_get_ids_of_their_own(
    tmp_path: Path, keep: Keep
) -> None:
    path, url = local(tmp_path, b"x"), keep("a.tif", b"x")
    assert slide_id(find_slides([path])[0]) == slide_id(find_slides([url])[0])
    both = find_slides([path, url, url])
    assert [row.kind for row in both] == ["slide", "slide"]
    assert len({slide_id(row) for row in both}) == 2


def test_a_slide_in_a_store_is_known_by_its_version(keep: Keep, store: Store) -> None:
    keys = []
    for seed in (b"one", b"two", b"one"):
        job = SlideJob("a", as_place(keep("a.tif", seed)))
        store.requests.clear()
        keys.append(fingerprint(job, RunConfig(), list_inputs(job.path)))
        assert store.count("GET") == 0
    assert keys[0] == keys[2] != keys[1]


def test_the_probe_reads_a_store_from_its_own_process(keep: Keep) -> None:
    with Prober() as prober:
        info = prober.probe(keep("a.tif", tiff()))
        assert info.size_px == (1500, 1100)
        with pytest.raises(SlideError, match=r"none\.tif: not found"):
            prober.probe("s3://slides/none.tif")


def test_a_slide_on_the_web_is_the_local_slide(tmp_path: Path, web: Web) -> None:
    web.files["x/a.tif"] = tiff()
    path = local(tmp_path, web.files["x/a.tif"])
    url = f"{web.url}/x/a.tif"
    for one, other in zip(levels_of(path), levels_of(url), strict=True):
        np.testing.assert_array_equal(one, other)
    assert slide_id(find_slides([url])[0]) == slide_id(find_slides([path])[0])
    with pytest.raises(SlideError, match=r"b\.tif: not found; check http"):
        open_slide(f"{web.url}/x/b.tif")


def test_a_web_server_without_ranges_is_refused(web: Web) -> None:
    web.ranges = False
    web.files["a.tif"] = tiff(3000, 2400)
    with pytest.raises(SlideError, match=r"a\.tif: .* whole files only"):
        open_slide(f"{web.url}/a.tif")


def test_passwords_and_signatures_are_used_and_never_shown(
    web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    web.user, web.query = f"me:{SECRET}", f"X-Signature={SECRET}%2B1&X-Id=me"
    web.files["a.tif"] = tiff()
    host = web.url.removeprefix("http://")
    url = f"http://me:{SECRET}@{host}/a.tif?{web.query}"
    wrong = f"http://me:{SECRET}@{host}/a.tif?X-Signature={SECRET}"
    place = as_place(url)
    assert (place.name, str(place)) == ("a.tif", f"http://{host}/a.tif")
    assert SECRET not in repr(place)
    code, printed, errors = wsi(capsys, "info", url, wrong)
    assert code == 0  # one slide, named twice
    assert f"slide  http://{host}/a.tif" in printed
    assert SECRET not in printed + errors
    code, printed, errors = wsi(capsys, "info", wrong)
    assert code == 1
    assert "access to" in printed
    assert SECRET not in printed + errors
    with pytest.raises(ConfigError, match="credentials come from") as refused:
        as_place(f"s3://me:{SECRET}@slides/a.svs")
    assert SECRET not in str(refused.value)


def test_a_missing_package_and_an_unknown_scheme_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ConfigError, match=r"pip install 'wsi-pipeline\[gs\]'"):
        as_place("gs://slides/a.svs")
    with pytest.raises(ConfigError, match="az://: unknown kind of place"):
        as_place("az://slides/a.svs")
    with pytest.raises(ConfigError, match="names no bucket"):
        as_place("s3:///a.svs")
    with pytest.raises(ConfigError, match="s3://: no valid URL"):
        as_place("s3://[[b/c")


def test_the_command_line_starts_without_what_is_behind_urls() -> None:
    code = "import sys, wsi_pipeline.cli, wsi_pipeline.readers.discovery; "
    code += "print([m for m in ('fsspec', 'upath', 's3fs') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
