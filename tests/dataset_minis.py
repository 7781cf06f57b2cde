"""Miniatures of labelled datasets: the same folders, names and values, few images."""

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tests.tiff_files import tissue_like

Pixels = NDArray[np.uint8]
HALF_UM_CM = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}


def save(path: Path, pixels: Pixels) -> Path:
    """Write a picture; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write(path: Path, lines: Iterable[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def bands(h: int, w: int, values: Iterable[int]) -> Pixels:
    """Upright bands of equal width, one per value."""
    row = np.array(list(values), np.uint8)
    return np.ascontiguousarray(
        np.broadcast_to(row[np.arange(w) * len(row) // w], (h, w))
    )


def coloured(labels: Pixels, colours: dict[int, tuple[int, int, int]]) -> Pixels:
    table = np.zeros((256, 3), np.uint8)
    for value, rgb in colours.items():
        table[value] = rgb
    return table[labels]


@dataclass(frozen=True)
class Mini:
    """A miniature: where it lies, its first training mask and image."""

    root: Path
    image: Path
    mask: Path


def mini_glas(root: Path) -> Mini:
    folder = root / "labelled" / "glas"
    rows = ["name,patient_id,grade,split"]
    for n, (patient, split) in enumerate(
        [(1, "train"), (1, "train"), (2, "train"), (3, "val")]
    ):
        save(folder / "images" / f"i_{n}.png", tissue_like(60, 40, n))
        save(folder / "masks3" / f"i_{n}.png", bands(40, 60, [0, 1, 2]))
        rows.append(f"i_{n},{patient},benign,{split}")
    write(folder / "split.csv", rows)
    return Mini(root, folder / "images" / "i_0.png", folder / "masks3" / "i_0.png")


def mini_folder(root: Path, *, split: str | None = "named") -> Mini:
    """Ten images of five patients; `split` "named", "groups" or None."""
    rows = ["name,group,split" if split == "named" else "name,group"]
    for n in range(10):
        save(root / "images" / f"a{n}.png", tissue_like(48, 32, n))
        save(root / "masks" / f"a{n}.png", bands(32, 48, [7, 3, 255]))
        part = ("train", "train", "train", "val", "test")[n // 2]
        rows.append(f"a{n},p{n // 2}" + (f",{part}" if split == "named" else ""))
    write(
        root / "classes.csv",
        ["value,name,r,g,b", "7,Tumour,213,94,0", "3,Stroma,204,121,167"],
    )
    write(root / "mpp.txt", ["0.5"])
    if split:
        write(root / "split.csv", rows)
    return Mini(root, root / "images" / "a0.png", root / "masks" / "a0.png")


def mini_pca_histo(root: Path) -> Mini:
    """Six cases of three strips; every case is in at least two of the lists."""
    first = root / "train" / "images" / "301_0.png"
    for part, strips in (("train", (0,)), ("val", (1,)), ("test", (2,))):
        lines = []
        for case in range(301, 307):
            w = 160 + 16 * (case - 301)
            for strip in strips:
                name = f"{case}_{strip}.png"
                save(root / part / "images" / name, tissue_like(w, 32, case))
                save(root / part / "labels" / name, bands(32, w, range(1, 7)))
                pair = {
                    "fpath_img": f"{part}/images/{name}",
                    "fpath_segm": f"{part}/labels/{name}",
                    "width": w,
                    "height": 32,
                }
                lines.append(json.dumps(pair))
        write(root / f"full_{part}_list_{len(lines)}.odgt", lines)
    return Mini(root, first, root / "train" / "labels" / "301_0.png")


DEEPGLOBE_RGB = {
    0: (0, 255, 255),
    1: (255, 255, 0),
    2: (255, 0, 255),
    3: (0, 255, 0),
    4: (0, 0, 255),
    5: (255, 255, 255),
    6: (0, 0, 0),
}


@cache
def _deepglobe_bytes() -> tuple[bytes, bytes]:
    """A plain scene and its mask; the real masks are not pure either."""
    labels = bands(2448, 2448, range(7))
    mask = np.clip(coloured(labels, DEEPGLOBE_RGB), 9, 246)
    found = []
    for pixels, kind in ((np.full_like(mask, 90), "JPEG"), (mask, "PNG")):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format=kind)
        found.append(buffer.getvalue())
    return found[0], found[1]


def mini_deepglobe(root: Path) -> Mini:
    folder = root / "land-train"
    folder.mkdir(parents=True)
    scene, mask = _deepglobe_bytes()
    for n in (11, 22, 33):
        (folder / f"{n}_sat.jpg").write_bytes(scene)
        (folder / f"{n}_mask.png").write_bytes(mask)
    return Mini(root, folder / "11_sat.jpg", folder / "11_mask.png")


def mini_cityscapes(root: Path, kind: str = "labelIds") -> Mini:
    values = range(34) if kind == "labelIds" else [*range(19), 255]
    labels = bands(1024, 2048, values)
    plain = np.full((1024, 2048, 3), 90, np.uint8)
    for split, city in (("train", "aachen"), ("train", "bochum"), ("val", "lindau")):
        stem = f"{city}_000000_000019"
        save(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", plain)
        save(root / "gtFine" / split / city / f"{stem}_gtFine_{kind}.png", labels)
    stem = "aachen/aachen_000000_000019"
    return Mini(
        root,
        root / "leftImg8bit" / "train" / f"{stem}_leftImg8bit.png",
        root / "gtFine" / "train" / f"{stem}_gtFine_{kind}.png",
    )


CAMVID_NAMES = (
    "0001TP_006690",
    "0006R0_f01290",
    "0016E5_01050",
    "0016E5_02160",
    "Seq05VD_f02460",
)


def mini_camvid_segnet(root: Path) -> Mini:
    for split, names in (
        ("train", CAMVID_NAMES[:2]),
        ("val", CAMVID_NAMES[2:4]),
        ("test", CAMVID_NAMES[4:]),
    ):
        for name in names:
            save(root / split / f"{name}.png", tissue_like(480, 360))
            save(root / f"{split}annot" / f"{name}.png", bands(360, 480, range(12)))
    first = f"{CAMVID_NAMES[0]}.png"
    return Mini(root, root / "train" / first, root / "trainannot" / first)


def mini_camvid_original(root: Path) -> Mini:
    """Bands of sky, car, wall (which has no class of its own among 11) and void."""
    colours = {0: (128, 128, 128), 1: (64, 0, 128), 2: (64, 192, 0), 3: (0, 0, 0)}
    mask = coloured(bands(720, 960, range(4)), colours)
    for name in CAMVID_NAMES:
        save(root / "701_StillsRaw_full" / f"{name}.png", tissue_like(960, 720))
        save(root / "LabeledApproved_full" / f"{name}_L.png", mask)
    first = CAMVID_NAMES[0]
    return Mini(
        root,
        root / "701_StillsRaw_full" / f"{first}.png",
        root / "LabeledApproved_full" / f"{first}_L.png",
    )


def write_levels(path: Path, pixels: Pixels, tags: dict[str, object]) -> Path:
    """A TIFF of two levels, 1 and 4, as PANDA's are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as file:
        kind = "rgb" if pixels.ndim == 3 else "minisblack"
        file.write(pixels, tile=(32, 32), photometric=kind, metadata=None, **tags)
        coarse = np.ascontiguousarray(pixels[::4, ::4])
        file.write(
            coarse, tile=(32, 32), photometric=kind, metadata=None, subfiletype=1
        )
    return path


def panda_mask(labels: Pixels) -> Pixels:
    """Labels in the red channel, nothing in the others."""
    return np.stack([labels, np.zeros_like(labels), np.zeros_like(labels)], axis=-1)


def mini_panda(root: Path) -> Mini:
    """Five Radboud and five Karolinska images; one of each has no mask."""
    rows = ["image_id,data_provider,isup_grade,gleason_score"]
    for n in range(10):
        name, centre = f"{n:032x}", ("radboud", "karolinska")[n % 2]
        image = root / "train_images" / f"{name}.tiff"
        write_levels(image, tissue_like(128, 64, n), HALF_UM_CM)
        labels = bands(64, 128, range(6 if centre == "radboud" else 3))
        if n < 8:
            mask = root / "train_label_masks" / f"{name}_mask.tiff"
            write_levels(mask, panda_mask(labels), {})
        rows.append(f"{name},{centre},{n % 6},3+4")
    write(root / "train.csv", rows)
    name = f"{0:032x}"
    return Mini(
        root,
        root / "train_images" / f"{name}.tiff",
        root / "train_label_masks" / f"{name}_mask.tiff",
    )


SICAP_STEMS = (
    "16B0001851_Block_Region_1_0_0_xini_6803_yini_59786",
    "18B0001510J_Block_Region_2_0_55_xini_61855_yini_62018",
    "17B0022786_Block_Region_0_2_3_xini_1_yini_2",
)


def mini_sicapv2(root: Path) -> Mini:
    for stem in SICAP_STEMS:
        save(root / "images" / f"{stem}.jpg", tissue_like(512, 512))
        save(root / "masks" / f"{stem}.png", bands(512, 512, [0, 3, 4, 5]))
    head = "image_name,NC,G3,G4,G5"
    fold = root / "partition" / "Validation" / "Val1"
    write(fold / "Train.csv", [head, f"{SICAP_STEMS[0]}.jpg,0,1,0,0"])
    write(fold / "Test.csv", [head, f"{SICAP_STEMS[1]},0,1,0,0"])
    write(root / "partition/Test/Test.csv", [head, f"{SICAP_STEMS[2]}.jpg,1,0,0,0"])
    stem = SICAP_STEMS[0]
    return Mini(root, root / "images" / f"{stem}.jpg", root / "masks" / f"{stem}.png")


def polygon(x: int, y: int, w: int, h: int, kind: str | None) -> dict[str, object]:
    """A rectangle as QuPath writes it."""
    ring = [[x, y], [x + w, y], [x + w, y + h], [x, y + h], [x, y]]
    properties: dict[str, object] = {"objectType": "annotation"}
    if kind is not None:
        properties["classification"] = {"name": kind, "color": [1, 2, 3]}
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": properties,
    }


def mini_slides(root: Path) -> Mini:
    """Three slides of 512 x 256 px, 0.5 um/px: two drawn on, one with a label image."""
    for n, name in enumerate(("s1", "s2", "s3")):
        path = root / "slides" / f"{name}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        with tifffile.TiffWriter(path) as file:
            file.write(
                tissue_like(512, 256, n),
                tile=(128, 128),
                photometric="rgb",
                metadata=None,
                **HALF_UM_CM,
            )
    drawn = [
        polygon(0, 0, 256, 256, "Stroma"),
        polygon(64, 64, 64, 64, "Tumour"),
        polygon(0, 0, 512, 256, None),
    ]
    for name in ("s1", "s2"):
        document = {"type": "FeatureCollection", "features": drawn}
        write(root / "annotations" / f"{name}.geojson", [json.dumps(document)])
    save(root / "annotations" / "s3.png", bands(64, 128, [3, 7, 255, 255]))
    write(
        root / "classes.csv",
        ["value,name,r,g,b", "3,Stroma,204,121,167", "7,Tumour,213,94,0"],
    )
    write(root / "mpp.txt", ["1.0"])
    write(
        root / "split.csv", ["name,group,split", "s1,a,train", "s2,b,val", "s3,c,test"]
    )
    return Mini(root, root / "slides" / "s1.tif", root / "annotations" / "s1.geojson")


FILE_MINIS: dict[str, Callable[[Path], Mini]] = {
    "glas": mini_glas,
    "folder": mini_folder,
    "pca-histo": mini_pca_histo,
    "deepglobe": mini_deepglobe,
    "cityscapes": mini_cityscapes,
    "camvid": mini_camvid_segnet,
    "panda": mini_panda,
    "sicapv2": mini_sicapv2,
    "slides": mini_slides,
}
"""Generator of each row of the table that reads files."""
