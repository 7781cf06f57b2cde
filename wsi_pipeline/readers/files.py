"""First look at a file by its bytes and neighbours, before any image library."""

import configparser
from pathlib import Path

from wsi_pipeline.errors import NotASlideError, SlideError
from wsi_pipeline.places import Place, opened

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
TIFF_EXTENSIONS = (".svs", ".tif", ".tiff", ".ndpi", ".scn", ".bif", ".btf", ".qptiff")
PICTURES = {
    b"\x89PNG": "PNG picture",
    b"GIF8": "GIF picture",
    b"BM": "BMP picture",
    b"%PDF": "PDF document",
    b"PK\x03\x04": "ZIP archive",
    b"\x1f\x8b": "gzip archive",
}
LFS_POINTER = b"version https://git-lfs"
_COPY = "copy it again from the scanner"


def first_bytes(path: Place) -> bytes:
    """The first 512 bytes of an existing, readable, non-empty file.

    Raises
    ------
    SlideError
        If there is no such file, it is a folder, empty, or not readable.
    """
    head = _local_head(path) if isinstance(path, Path) else _remote_head(path)
    if not head:
        raise SlideError(f"{path.name}: is empty (0 bytes); {_COPY}")
    return head


def _remote_head(place: Place) -> bytes:
    with opened(place) as file:
        head: bytes = file.read(512)
        return head


def _local_head(path: Path) -> bytes:
    if not path.exists():
        what = "is a link to a file that is gone" if path.is_symlink() else "not found"
        raise SlideError(f"{path.name}: {what}; check the path {path}")
    if path.is_dir():
        raise SlideError(f"{path.name}: is a folder, not a slide file; name the file")
    if not path.is_file():
        raise SlideError(f"{path.name}: is a device or pipe, not a file; name the file")
    try:
        with path.open("rb") as file:
            return file.read(512)
    except PermissionError as error:
        raise SlideError(
            f"{path.name}: may not be read by this user; change its permissions"
        ) from error
    except OSError as error:
        raise SlideError(
            f"{path.name}: cannot be read ({error.strerror}); check the disk"
        ) from error


def check_file(path: Place) -> bytes:
    """Refuse what is no slide by its first bytes; returns them.

    Raises
    ------
    NotASlideError
        For pictures, documents and archives.
    SlideError
        For Git LFS pointers, incomplete MIRAX slides, and what `first_bytes` refuses.
    """
    head = first_bytes(path)
    if head.startswith(LFS_POINTER):
        raise SlideError(
            f"{path.name}: is a Git LFS pointer, {path.stat().st_size} bytes, not the "
            "slide: run git lfs pull"
        )
    for magic, kind in PICTURES.items():
        if head.startswith(magic):
            raise NotASlideError(f"{path.name}: is a {kind}, not a slide; leave it out")
    if path.suffix.lower() == ".mrxs":
        if isinstance(path, Path):
            _check_mirax(path)
    elif head.startswith(b"\xff\xd8\xff") and path.suffix.lower() not in (".vms",):
        raise NotASlideError(
            f"{path.name}: is a JPEG picture, not a slide; leave it out"
        )
    return head


def check_extension(path: Place, head: bytes) -> None:
    """Refuse a file that is named like a TIFF or DICOM and does not begin like one.

    Parameters
    ----------
    path : Path or UPath
        A file that does not begin like a TIFF.
    head : bytes
        Its first bytes.


    Raises
    ------
    SlideError
        For those: damaged or renamed, where other unknown files are no slides.
    """
    extension = path.suffix.lower()
    foreign_dicom = extension == ".dcm" and not is_dicom(head)
    if extension in TIFF_EXTENSIONS or foreign_dicom:
        raise SlideError(
            f"{path.name}: does not begin like a {extension} file, so it is "
            f"damaged or something else with that name; {_COPY}"
        )


def is_dicom(head: bytes) -> bool:
    """Whether the first bytes are those of a DICOM file."""
    return head[128:132] == b"DICM"


def _check_mirax(path: Path) -> None:
    """Refuse a MIRAX slide whose folder of data files is not complete."""
    folder = path.with_suffix("")
    together = f"copy {path.name} together with its folder {folder.name}"
    index = folder / "Slidedat.ini"
    if not index.is_file():
        what = f"Slidedat.ini is missing in the folder {folder.name}"
        if not folder.is_dir():
            what = f"its folder {folder.name} is missing"
        raise SlideError(f"{path.name}: {what}; {together}")
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(index.read_text("utf-8-sig", errors="replace"))
        names = [v for k, v in parser["DATAFILE"].items() if k != "file_count"]
        names.append(parser["HIERARCHICAL"]["INDEXFILE"])
    except (configparser.Error, KeyError) as error:
        raise SlideError(
            f"{path.name}: Slidedat.ini in its folder is damaged; {together}"
        ) from error
    kind = parser.get("GENERAL", "SLIDE_TYPE", fallback="")
    if "FLUORESCENCE" in kind.upper():
        raise NotASlideError(
            f"{path.name}: is a fluorescence slide ({kind}); brightfield slides only, "
            "such as H&E"
        )
    missing = [n for n in names if not (folder / n).is_file()]
    if missing:
        raise SlideError(
            f"{path.name}: {len(missing)} of {len(names)} data files are missing in "
            f"its folder {folder.name} ({missing[0]} first); {together}"
        )
