"""A tiling that was killed goes on behind the blocks that are whole."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest

from tests.slides import NumberSlide
from tests.test_tiling import SMALL, digest
from wsi_pipeline.cluster import processes
from wsi_pipeline.publishing import STAGING, list_files
from wsi_pipeline.tiling import tile_slide

KEY, OTHER = "k" * 64, "o" * 64


def interrupt(call: partial, blocks: int) -> None:
    """Stop a tiling after some blocks."""

    def tick(done: int, total: int) -> None:
        if done == blocks:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(progress=tick)


@pytest.mark.parametrize("how", ["threads", "processes", "0.4"])
def test_blocks_that_are_whole_are_used_again(tmp_path: Path, how: str) -> None:
    slide = NumberSlide.of(5000, 3000)
    version = "0.4" if how == "0.4" else "0.5"
    options = SMALL.model_copy(update={"ome_zarr": version, "workers": 1})
    whole = tile_slide(slide, tmp_path / "whole.zarr", options)
    path, seen = tmp_path / "a.zarr", []
    with processes(1) if how == "processes" else nullcontext() as pool:
        call = partial(tile_slide, slide, path, options, key=KEY, pool=pool)
        interrupt(call, 8)
        assert not path.exists()
        (room,) = (tmp_path / STAGING).iterdir()
        shards = [p for p in list_files(room / path.name) if p.name.isdigit()]
        shards[0].write_bytes(b"rotten")
        call(progress=lambda done, total: seen.append((done, total)))
    total = seen[0][1]
    # 8 blocks less the rotten one; those that were under way may be whole too
    assert seen == [(done, total) for done in range(seen[0][0], total + 1)]
    assert 8 <= seen[0][0] <= 11
    assert digest(path) == digest(whole.path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "whole.zarr"]


def test_what_was_tiled_for_another_key_is_not_used(tmp_path: Path) -> None:
    path, seen = tmp_path / "a.zarr", []
    old, new = NumberSlide.of(3000, 2000), NumberSlide.of(3001, 2000)
    interrupt(partial(tile_slide, old, path, SMALL, key=KEY), 3)
    tile_slide(new, path, SMALL, key=OTHER, progress=lambda n, _: seen.append(n))
    assert seen[0] == 1
    assert digest(path) == digest(tile_slide(new, tmp_path / "b.zarr", SMALL).path)


def test_without_a_key_nothing_is_left(tmp_path: Path) -> None:
    slide = NumberSlide.of(3000, 2000)
    interrupt(partial(tile_slide, slide, tmp_path / "a.zarr", SMALL), 3)
    assert list(tmp_path.iterdir()) == []
