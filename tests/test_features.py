"""Pre-extracted features: what TRIDENT, CLAM and Zarr files hold, read by rows."""

import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from wsi_pipeline import features
from wsi_pipeline.errors import ConfigError, RegionError
from wsi_pipeline.features import FeatureFile, digest_features
from wsi_pipeline.geometry import Scale

Arrays = dict[str, NDArray[np.generic]]
TRIDENT = {
    "patch_size": 256,
    "patch_size_level0": 512,
    "level0_magnification": 40,
    "target_magnification": 20,
    "overlap": 0,
    "name": "slide",
}
"""Attributes of coords that TRIDENT writes."""


def write_zarr(path: Path, arrays: Arrays, facts: dict[str, object], rows: int) -> Path:
    group = zarr.open_group(path, mode="w")
    for name, values in arrays.items():
        chunks = [min(rows, n) or 1 for n in values.shape[:-1]] + [
            values.shape[-1] or 1
        ]
        array = group.create_array(
            name, shape=values.shape, dtype=values.dtype, chunks=tuple(chunks)
        )
        array[...] = values
        if name == "coords":
            array.attrs.update(facts)
    return path


def write_hdf5(path: Path, arrays: Arrays, facts: dict[str, object], rows: int) -> Path:
    """As both programs write: a row per chunk; rows = 0 stores each array in one."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed (extra features)")
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            chunks = (min(rows, len(values)), *values.shape[1:]) if rows else None
            file.create_dataset(name, data=values, chunks=chunks)
        if "coords" in arrays:
            file["coords"].attrs.update(facts)
    return path


Write = Callable[[Path, Arrays, dict[str, object], int], Path]


@pytest.fixture(params=["zarr", "h5"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    """Writes arrays as a file of features of either kind."""
    made: Write = write_zarr if request.param == "zarr" else write_hdf5

    def write(
        arrays: Arrays, facts: dict[str, object] | None = None, rows: int = 1
    ) -> Path:
        return made(tmp_path / f"slide.{request.param}", arrays, facts or {}, rows)

    return write


def arrays_of(n: int = 60, width: int = 5, seed: int = 0) -> Arrays:
    """Rows in the order of columns, as a scan by x gives them."""
    rng = np.random.default_rng(seed)
    x, y = np.divmod(np.arange(n), 7)
    return {
        "features": rng.normal(size=(n, width)).astype(np.float32),
        "coords": np.stack([x * 512, y * 512], axis=1),
    }


def pick(file: FeatureFile, ids: list[int] | NDArray[np.int64]) -> NDArray[np.float32]:
    """Features of some ids, in two or three batches."""
    wanted = np.asarray(ids, np.int64)
    parts = [values for _, values in file.batches(wanted, max(1, len(wanted) // 2))]
    return np.concatenate([np.empty((0, file.width), np.float32), *parts])


def by_place(arrays: Arrays) -> dict[tuple[int, int], list[float]]:
    places = map(tuple, arrays["coords"].tolist())
    return dict(zip(places, arrays["features"].tolist(), strict=True))


def test_what_trident_writes_is_read(write: Callable[..., Path]) -> None:
    found = FeatureFile.open(write(arrays_of(), TRIDENT))
    assert (len(found), found.width) == (60, 5)
    assert (found.size_px, found.patch_px, found.mpp) == (512, 256, 0.5)
    assert found.level0_mpp == 0.25


def test_what_clam_writes_says_nothing_of_the_patches(
    write: Callable[..., Path],
) -> None:
    arrays = arrays_of()
    arrays["coords"] = arrays["coords"].astype(np.int32)
    found = FeatureFile.open(write(arrays))
    assert (found.size_px, found.patch_px, found.mpp) == (None, None, None)
    assert found.level0_mpp is None
    assert found.corners.dtype == np.int64


@pytest.mark.parametrize("rows", [0, 1, 7, 64])
def test_every_row_comes_once_with_its_own_place(
    write: Callable[..., Path], rows: int
) -> None:
    arrays = arrays_of()
    found, wanted = FeatureFile.open(write(arrays, TRIDENT, rows)), by_place(arrays)
    seen = []
    for ids, values in found.batches(found.order, 16):
        assert values.dtype == np.float32
        for place, value in zip(found.corners[ids].tolist(), values, strict=True):
            assert value.tolist() == wanted[tuple(place)]
        seen += ids.tolist()
    assert sorted(seen) == list(range(60))


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("run", [4, 1024])
def test_rows_are_picked_in_the_order_asked_for(
    write: Callable[..., Path], rows: int, run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_RUN", run)
    arrays = arrays_of()
    found, wanted = FeatureFile.open(write(arrays, TRIDENT, rows)), by_place(arrays)
    for ids in ([], [3], [59, 0, 31, 30, 29, 2, 2], list(range(60))):
        values = pick(found, ids)
        places = map(tuple, found.corners[ids].tolist())
        assert values.tolist() == [wanted[place] for place in places]


def test_patches_are_numbered_by_y_then_x(write: Callable[..., Path]) -> None:
    found = FeatureFile.open(write(arrays_of()))
    keys = [(y, x) for x, y in found.corners.tolist()]
    assert keys == sorted(keys)


def test_a_leading_axis_of_one_and_half_precision_are_understood(
    write: Callable[..., Path],
) -> None:
    arrays = arrays_of()
    whole = {"features": arrays["features"].astype(np.float16)[None]}
    found = FeatureFile.open(write(whole | {"coords": arrays["coords"][None]}))
    values = pick(found, np.arange(60))
    assert values.dtype == np.float32
    np.testing.assert_array_equal(
        values, arrays["features"].astype(np.float16)[found.rows]
    )


def test_picking_reads_little_more_than_what_is_wanted(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = arrays_of(5000, 3)
    found = FeatureFile.open(write(arrays, TRIDENT, 50))
    read, lengths = features._Rows.read, []

    def counting(self, start: int, stop: int):
        lengths.append(stop - start)
        return read(self, start, stop)

    monkeypatch.setattr(features._Rows, "read", counting)
    first, far = (int(np.flatnonzero(found.rows == row)[0]) for row in (10, 4990))
    list(found.batches(np.array([first, far]), 2))
    assert lengths == [1, 1]
    lengths.clear()
    list(found.batches(np.arange(5000), 5000))
    assert max(lengths) <= 1024
    lengths.clear()
    list(found.batches(found.order, 300))
    assert max(lengths) <= 300


def test_a_grid_has_the_files_patches(write: Callable[..., Path]) -> None:
    found = FeatureFile.open(write(arrays_of(), TRIDENT))
    grid = found.grid(256, 0.5, Scale(0.25, 0.25), (10_000, 10_000))
    assert (grid.size_px, grid.patch_px, grid.mpp) == (512, 256, 0.5)
    np.testing.assert_array_equal(grid.corners, found.corners)
    assert grid.tissue.tolist() == [1.0] * 60


def test_what_the_file_does_not_state_follows_from_the_selector_and_the_slide(
    write: Callable[..., Path],
) -> None:
    found = FeatureFile.open(write(arrays_of()))
    grid = found.grid(256, 0.5, Scale(0.2, 0.2), (10_000, 10_000))
    assert grid.size_px == 640


@pytest.mark.parametrize(
    ("patch_px", "mpp", "slide_px", "words"),
    [
        (224, 0.5, (9000, 9000), "256 px, the selector was trained on 224 px"),
        (256, 1.0, (9000, 9000), "0.5 um/px, the selector was trained on 1 um/px"),
        (256, 0.5, (4000, 9000), "at 4096, 0 lies outside.*another slide"),
    ],
)
def test_patches_of_another_kind_or_slide_are_refused(
    write: Callable[..., Path], patch_px, mpp, slide_px, words
) -> None:
    found = FeatureFile.open(write(arrays_of(), TRIDENT))
    with pytest.raises(RegionError, match=f"slide.*{words}"):
        found.grid(patch_px, mpp, Scale(0.25, 0.25), slide_px)


def test_numbers_that_are_not_finite_are_named(write: Callable[..., Path]) -> None:
    arrays = arrays_of()
    arrays["features"][41, 2] = np.nan
    found = FeatureFile.open(write(arrays))
    with pytest.raises(RegionError, match=r"slide.*row 41 .*not finite"):
        list(found.batches(found.order, 16))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": None}, "holds no 'features'"),
        ({"coords": None}, "holds no 'coords'"),
        ({"features": np.zeros(60, np.float32)}, "whole slide"),
        ({"features": np.zeros((60, 5), np.int32)}, "int32, expected floats"),
        ({"coords": np.zeros((59, 2), np.int64)}, "59 x 2.*each of 60"),
        ({"coords": np.zeros((60, 3), np.int64)}, "60 x 3"),
        ({"coords": np.full((60, 2), 0.5)}, "whole level-0 pixels"),
    ],
)
def test_what_does_not_fit_is_said(
    write: Callable[..., Path], change: Arrays, words: str
) -> None:
    arrays = {n: v for n, v in (arrays_of() | change).items() if v is not None}
    path = write(arrays)
    with pytest.raises(RegionError, match=words):
        FeatureFile.open(path)


def test_a_file_that_changed_is_refused(write: Callable[..., Path]) -> None:
    path = write(arrays_of())
    found = FeatureFile.open(path)
    write(arrays_of(61))
    with pytest.raises(RegionError, match="has changed: 61 x 5"):
        pick(found, [0, 1, 2])


def test_the_digest_is_that_of_all_content_whatever_the_place(tmp_path: Path) -> None:
    first, second = (
        write_zarr(tmp_path / name, arrays_of(), {}, 7) for name in ("a.zarr", "b.zarr")
    )
    assert digest_features(first) == digest_features(second)
    chunk = second / "features/c/8/0"  # the last of them
    chunk.rename(chunk.with_name("1"))  # the same bytes in the same order
    assert digest_features(first) != digest_features(second)


def test_a_file_whose_digest_cannot_be_taken_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    with pytest.raises(RegionError, match=r"a\.zarr: no such file of features"):
        digest_features(tmp_path / "a.zarr")
    monkeypatch.setattr(features, "sha256_file", refuse)
    with pytest.raises(RegionError, match=r"a\.zarr: cannot be read.*denied"):
        digest_features(write_zarr(tmp_path / "a.zarr", arrays_of(), {}, 7))


def test_a_file_survives_pickling_for_a_worker(write: Callable[..., Path]) -> None:
    found = FeatureFile.open(write(arrays_of()))
    list(found.batches(found.order, 16))
    again = pickle.loads(pickle.dumps(found))  # noqa: S301  # of our own
    assert pick(again, range(4)).tolist() == pick(found, range(4)).tolist()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("slide.pt", "pickle.*h5_files"),
        ("slide.npy", r"read from \.h5, \.hdf5, \.zarr"),
        ("gone.zarr", "no such file"),
    ],
)
def test_files_that_are_not_read_are_named(
    tmp_path: Path, name: str, words: str
) -> None:
    if not name.startswith("gone"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(RegionError, match=rf"{name}: .*{words}"):
        FeatureFile.open(tmp_path / name)


@pytest.mark.parametrize("name", ["slide.zarr", "slide.h5"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    if name.endswith("h5"):
        pytest.importorskip("h5py", reason="h5py is not installed (extra features)")
    (tmp_path / name).write_bytes(b"no such thing")
    with pytest.raises(RegionError, match=rf"{name}: cannot be read"):
        FeatureFile.open(tmp_path / name)


def test_without_h5py_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "slide.h5").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"wsi-pipeline\[features\]"):
        FeatureFile.open(tmp_path / "slide.h5")
