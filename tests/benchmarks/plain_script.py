"""A slide to a multi-scale Zarr as most people write it: OpenSlide, Dask, Zarr."""

import sys

import dask
import dask.array as da
import numpy as np
import openslide

BLOCK = 2048


def convert(slide_path: str, out: str, workers: int) -> None:
    slide = openslide.OpenSlide(slide_path)
    width, height = slide.dimensions

    @dask.delayed
    def read(x: int, y: int, w: int, h: int) -> np.ndarray:
        return np.array(slide.read_region((x, y), 0, (w, h)).convert("RGB"))

    rows = []
    for y in range(0, height, BLOCK):
        row, h = [], min(BLOCK, height - y)
        for x in range(0, width, BLOCK):
            w = min(BLOCK, width - x)
            row.append(da.from_delayed(read(x, y, w, h), (h, w, 3), np.uint8))
        rows.append(row)
    level = da.block([[[part] for part in row] for row in rows])
    with dask.config.set(scheduler="threads", num_workers=workers):
        for index in range(20):
            level = level.rechunk((512, 512, 3))
            level.to_zarr(out, component=str(index))
            if max(level.shape) <= 512:
                break
            level = da.from_zarr(out, component=str(index)).rechunk((BLOCK, BLOCK, 3))
            level = da.coarsen(np.mean, level, {0: 2, 1: 2}, trim_excess=True)
            level = level.astype(np.uint8)


if __name__ == "__main__":
    convert(sys.argv[1], sys.argv[2], int(sys.argv[3]))
