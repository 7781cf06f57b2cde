"""Patches cut from blocks are those read alone, in bounded memory, each chunk once."""

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import GzipCodec

from tests.pyramids import SMALL, copy_files, grid_of, noise_pyramid
from wsi_pipeline import chunks, feeding
from wsi_pipeline.codecs import BloscLz4, Jpeg
from wsi_pipeline.errors import PyramidError
from wsi_pipeline.feeding import PyramidSource
from wsi_pipeline.layout import Layout
from wsi_pipeline.places import as_place
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import PatchGrid

PX = 32
QUEUE = 8 << 20
LAYOUTS = {
    "zstd": SMALL,
    "zstd, a shard per chunk": Layout(chunk_px=128, block_px=128),
    "jpeg": replace(SMALL, codec=Jpeg(90)),
    "jpeg as RGB": replace(SMALL, codec=Jpeg(90, "RGB")),
    "0.4": Layout("0.4", 128, 256, BloscLz4()),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pyramids")


@pytest.fixture(scope="module")
def pyramid(folder: Path) -> Pyramid:
    return noise_pyramid(folder / "slide.ome.zarr")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "_LARGEST_BLOCK_PX", 256)


def random_grid(mpp: float, count: int = 24, patch_px: int = PX) -> PatchGrid:
    """Patches anywhere, some of them outside the slide in part or wholly."""
    size = round(patch_px * mpp / 0.5)
    corners = np.random.default_rng(0).integers(-2 * size, 640, (count, 2))
    return PatchGrid(corners, size, patch_px, mpp, np.ones(count, np.float32))


def read_all(source: PyramidSource, size: int) -> np.ndarray:
    """All patches by their id."""
    order = source.order
    out = np.zeros((len(order), 3, PX, PX), np.uint8)
    for ids, patches in source.batches(order, size):
        out[ids] = patches
    return out


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("mpp", [0.5, 0.62, 1.0, 1.3])
def test_patches_are_those_that_the_pyramid_reads_one_by_one(
    folder: Path, name: str, mpp: float, small_blocks: None
) -> None:
    path = folder / name
    made = Pyramid(path) if path.exists() else noise_pyramid(path, LAYOUTS[name])
    grid = random_grid(mpp)
    found = read_all(PyramidSource(made, grid, QUEUE), 7)
    for patch in range(len(grid)):
        expected = made.read(grid.box(patch), mpp, (PX, PX))
        assert (found[patch] == expected).all()
    assert found.std() > 20


def test_a_pyramid_in_a_store_gives_the_same_patches(pyramid: Pyramid) -> None:
    place = as_place("memory://feeding/slide.ome.zarr")
    copy_files(pyramid.path, place)
    grid = random_grid(0.5)
    remote = PyramidSource(Pyramid(place), grid, QUEUE)
    assert (
        read_all(remote, 16) == read_all(PyramidSource(pyramid, grid, QUEUE), 16)
    ).all()


@pytest.mark.parametrize(
    ("readers", "size", "queue", "count"),
    [
        (1, 7, QUEUE, 40),
        (2, 7, QUEUE, 40),
        (5, 1, 1, 40),
        (2, 64, 1 << 18, 40),
        (1, 40, 1 << 18, 40),
        (2, 7, QUEUE, 1),
        (2, 7, QUEUE, 0),
    ],
)
def test_batches_do_not_depend_on_readers_and_memory(
    pyramid: Pyramid, readers: int, size: int, queue: int, count: int
) -> None:
    grid = random_grid(0.5, count)
    source = PyramidSource(pyramid, grid, queue, readers)
    sizes = []
    for number, (ids, patches) in enumerate(source.batches(source.order, size)):
        assert (ids == source.order[number * size : (number + 1) * size]).all()
        for patch, pixels in zip(ids, patches, strict=True):
            assert (pixels == pyramid.read(grid.box(int(patch)), 0.5, (PX, PX))).all()
        sizes.append(len(ids))
    assert sum(sizes) == count
    assert all(full == size for full in sizes[:-1])


def test_patches_that_are_picked_come_in_the_order_that_is_asked_for(
    pyramid: Pyramid, small_blocks: None
) -> None:
    grid = grid_of(pyramid, PX)
    picked = np.random.default_rng(3).permutation(len(grid))[:50]
    source = PyramidSource(pyramid, grid, QUEUE)
    batches = list(source.batches(picked, 8))
    assert [len(ids) for ids, _ in batches] == [8] * 6 + [2]
    assert (np.concatenate([ids for ids, _ in batches]) == picked).all()
    patches = np.concatenate([patches for _, patches in batches])
    for patch, pixels in zip(picked, patches, strict=True):
        assert (pixels == pyramid.read(grid.box(int(patch)), 0.5)).all()


def test_the_order_goes_shard_by_shard(pyramid: Pyramid, small_blocks: None) -> None:
    grid = grid_of(pyramid, PX)
    order = PyramidSource(pyramid, grid, QUEUE).order
    assert sorted(order) == list(range(len(grid)))
    shards = [tuple(shard) for shard in (grid.corners[order] // 256).tolist()]
    changes = sum(a != b for a, b in pairwise(shards))
    assert changes + 1 == len(set(shards)) == 6


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[tuple[int, int]]]:
    """How often each chunk, by its corner, is read."""
    seen: Counter[tuple[int, int]] = Counter()
    real = chunks.ChunkReader.read

    def counted(self, cells, x, y, out):
        cells = list(cells)
        seen.update((cell.x, cell.y) for cell in cells)
        real(self, cells, x, y, out)

    monkeypatch.setattr(chunks.ChunkReader, "read", counted)
    return seen


def test_each_chunk_is_decoded_once_where_patches_keep_to_their_shards(
    pyramid: Pyramid, decoded: Counter[tuple[int, int]], small_blocks: None
) -> None:
    grid = grid_of(pyramid, PX, stride=32)
    source = PyramidSource(pyramid, grid, QUEUE)
    read_all(source, 16)
    assert len(decoded) == 5 * 4
    assert set(decoded.values()) == {1}
    facts = source.facts()
    assert facts["decoded_bytes"] == 3 * 640 * 480
    assert facts["strip_bytes"] == 0
    assert facts["block_px"] == 256
    assert facts["queue_bytes"] == QUEUE


def test_strips_that_reach_into_other_shards_are_counted(
    pyramid: Pyramid, decoded: Counter[tuple[int, int]], small_blocks: None
) -> None:
    corners = np.array([[0, 0], [240, 0]], np.int64)  # the second ends at x = 272
    grid = PatchGrid(corners, PX, PX, 0.5, np.ones(2, np.float32))
    source = PyramidSource(pyramid, grid, QUEUE)
    read_all(source, 16)
    assert decoded == {(0, 0): 1, (128, 0): 1, (256, 0): 1}
    chunk = 3 * 128 * 128
    assert source.facts()["decoded_bytes"] == 3 * chunk
    assert source.facts()["strip_bytes"] == chunk


def test_chunks_without_patches_are_not_decoded(
    pyramid: Pyramid, decoded: Counter[tuple[int, int]]
) -> None:
    corners = np.array([[0, 0], [500, 400]], np.int64)
    grid = PatchGrid(corners, PX, PX, 0.5, np.ones(2, np.float32))
    read_all(PyramidSource(pyramid, grid, QUEUE), 16)
    # 500 + 32 crosses the border of chunks at 512, 400 + 32 none
    assert set(decoded) == {(0, 0), (384, 384), (512, 384)}


@pytest.mark.parametrize(("queue", "batch"), [(1 << 20, 4), (1 << 21, 16)])
def test_pixels_that_wait_stay_in_their_half_of_the_queue(
    folder: Path, queue: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = noise_pyramid(folder / f"large-{queue}", size_px=(1280, 1280))
    grid = grid_of(made, PX, stride=32)
    source = PyramidSource(made, grid, queue, readers=2)
    waiting: list[int] = []
    windows: list[int] = []
    real_rows, real_window = PyramidSource._rows, PyramidSource._window_bytes

    def rows(self, ready, *args):
        found = real_rows(self, ready, *args)
        waiting.append(sum(batch.nbytes for batch in ready.values()))
        return found

    monkeypatch.setattr(PyramidSource, "_rows", rows)
    windows = [real_window(source, source.facts()["block_px"])]
    taken = 0
    for ids, _ in source.batches(source.order, batch):
        taken += len(ids)
    assert taken == 1600
    in_use = batch * 3 * PX * PX
    assert max(waiting) + in_use <= queue // 2
    assert max(waiting) > queue // 8
    assert 2 * windows[0] <= queue // 2


def test_nothing_is_read_before_a_batch_is_asked_for_and_little_ahead(
    folder: Path, decoded: Counter[tuple[int, int]]
) -> None:
    made = noise_pyramid(folder / "ahead", size_px=(1280, 1280))
    grid = grid_of(made, PX, stride=32)
    batches = (source := PyramidSource(made, grid, 1 << 20, 1)).batches(source.order, 8)
    assert not decoded
    next(batches)
    batches.close()
    assert 0 < len(decoded) < 40  # of 100


def test_blocks_shrink_with_the_memory_down_to_a_chunk(folder: Path) -> None:
    made = noise_pyramid(folder / "blocks", size_px=(1280, 1280))
    grid = grid_of(made, PX, stride=32)
    sides = [PyramidSource(made, grid, 1 << b).facts()["block_px"] for b in (26, 21, 8)]
    assert sides == [4096, 256, 128]


@pytest.mark.parametrize("change", ["cut", "flipped", "lost", "index", "absent"])
def test_damage_is_named(pyramid: Pyramid, tmp_path: Path, change: str) -> None:
    copy_files(pyramid.path, tmp_path / "copy")
    shard = tmp_path / "copy" / "0" / "c" / "0" / "0" / "1"
    data = bytearray(shard.read_bytes())
    if change == "flipped":
        data[100] ^= 1
    elif change == "index":
        data[-20] ^= 1
    elif change == "absent":
        index = np.frombuffer(bytes(data[-68:-4]), "<u8").copy()
        index[:] = 2**64 - 1
        data[-68:-4] = index.tobytes()
        data[-4:] = chunks.google_crc32c.value(index.tobytes()).to_bytes(4, "little")
    shard.write_bytes(data[: -200 if change == "cut" else None])
    if change == "lost":
        shard.unlink()
    copy = Pyramid(tmp_path / "copy")
    source = PyramidSource(copy, grid_of(copy, PX), QUEUE)
    words = {"absent": "was not written", "index": "checksum of its index"}
    with pytest.raises(PyramidError, match=rf"c/0/0/1.*{words.get(change, '')}"):
        read_all(source, 16)


def test_readers_end_when_the_batches_are_left_alone(pyramid: Pyramid) -> None:
    before = threading.active_count()
    batches = (
        source := PyramidSource(pyramid, grid_of(pyramid, PX), QUEUE, 2)
    ).batches(source.order, 4)
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_other_codecs_are_left_to_zarr(tmp_path: Path) -> None:
    array = zarr.create_array(
        tmp_path / "a",
        shape=(3, 64, 64),
        chunks=(3, 32, 32),
        shards=(3, 64, 64),
        dtype="uint8",
        compressors=GzipCodec(),
    )
    assert chunks.ChunkReader.of(tmp_path / "a", array) is None


def test_a_jpeg_chunk_of_another_size_is_refused(folder: Path) -> None:
    path = folder / "other size"
    made = noise_pyramid(path, LAYOUTS["jpeg"])
    codec = LAYOUTS["jpeg"].codec
    small = codec.seal(codec.encode(np.zeros((3, 64, 64), np.uint8)))
    shard = path / "0" / "c" / "0" / "0" / "0"
    data = shard.read_bytes()
    index = np.frombuffer(data[-68:-4], "<u8").reshape(2, 2, 2).copy()
    index[0, 0] = 0, len(small)
    crc = chunks.google_crc32c.value(index.tobytes()).to_bytes(4, "little")
    shard.write_bytes(small + data[len(small) : -68] + index.tobytes() + crc)
    source = PyramidSource(made, grid_of(made, PX), QUEUE)
    with pytest.raises(PyramidError, match=r"a chunk of \(64, 64, 3\) pixels"):
        read_all(source, 16)
