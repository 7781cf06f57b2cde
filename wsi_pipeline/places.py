"""Where files lie: a local path, or a URL that fsspec opens.

Credentials, endpoints and proxies are the back ends' own (botocore, gcsfs, aiohttp).
"""

import base64
import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from wsi_pipeline.errors import ConfigError, SlideError, WsiError

if TYPE_CHECKING:
    from upath import UPath

type Place = Path | UPath
"""A `Path` is local; anything else is remote."""

STORES = ("s3", "gs", "gcs", "memory")
"""Schemes that can be listed and written to."""
_WEB = ("http", "https")
_EXTRAS = {"s3": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}
_CREDENTIALS = {
    "s3": "AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "AWS_ENDPOINT_URL for stores other than Amazon's, FSSPEC_S3_ANON=true for public "
    "buckets",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth login",
    "http": "sign the URL, or put user:password@ before the host",
}
# What the back ends raise beside OSError, where they are loaded.
_FOREIGN = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
)
_VERSIONS = ("ETag", "etag", "md5Hash", "Content-MD5", "Last-Modified", "created")
_PIECE_BYTES = 2**24
_BLOCK_BYTES = 2**19  # a TIFF's tables lie in one or two of these per level


def is_url(text: object) -> bool:
    """Whether a path, as given, is a URL."""
    return not isinstance(text, Path) and "://" in str(text)


def as_place(text: "str | Place") -> Place:
    """A local path, made absolute, or a remote place.

    Parameters
    ----------
    text : str, Path or UPath
        A path, or a URL: ``s3://``, ``gs://``, ``https://``, ``http://``.

    Returns
    -------
    Path or UPath
        What a web URL holds of secrets (``user:password@``, the query that signs it)
        travels with the place but is no part of its text.

    Raises
    ------
    ConfigError
        If the scheme is unknown, its package is not installed, or the URL names no
        bucket or holds a password where none belongs.
    """
    if isinstance(text, Path):
        return text.absolute()
    if not isinstance(text, str):
        return text
    if not is_url(text):
        return Path(text).absolute()
    scheme = text.partition("://")[0].lower()
    if scheme not in (*STORES, *_WEB):
        raise ConfigError(
            f"{scheme}://: unknown kind of place; known are local paths, s3://, gs://, "
            "https:// and http://"
        )
    try:
        return _remote(text, scheme)
    except ImportError as error:
        raise ConfigError(
            f"{scheme}:// needs a package that is not installed: "
            f"pip install 'wsi-pipeline[{_EXTRAS[scheme]}]'"
        ) from error


def scheme_of(place: Place) -> str:
    """The scheme of a remote place; empty for a local one."""
    return "" if isinstance(place, Path) else str(place.protocol)


def file_system(place: "UPath") -> Any:  # Any: fsspec ships no types
    """The file system of a place, as fsspec makes it for this process.

    Notes
    -----
    One made before a fork waits for a thread that the fork left behind.
    """
    known = place.fs
    return type(known)(*known.storage_args, **known.storage_options)


@contextmanager
def opened(place: Place) -> Iterator[Any]:  # Any: fsspec ships no types
    """What a parser of files takes: the path, or an open file that reads by blocks.

    Raises
    ------
    SlideError
        If a remote place is not there, cannot be reached, or its server sends whole
        files only.

    Notes
    -----
    Memory: 16 MiB of blocks where the place is remote.
    """
    if isinstance(place, Path):
        yield place
        return
    blocks = {"block_size": _BLOCK_BYTES, "cache_type": "blockcache"}
    with (
        reaching(place, SlideError),
        file_system(place).open(place.path, "rb", **blocks) as file,
    ):
        if scheme_of(place) in _WEB:
            _check_ranges(place, file)
        yield file


def list_objects(place: "UPath") -> dict[str, int]:
    """Bytes of every object at a place or below it, by name relative to it, sorted.

    Returns
    -------
    dict of str to int
        The name of an object that is the place itself is empty.
    """
    root = str(place.path).rstrip("/")
    found = file_system(place).find(root, detail=True)
    names = {
        str(path).removeprefix(root).strip("/"): int(facts["size"] or 0)
        for path, facts in found.items()
    }
    return dict(sorted(names.items()))


def version_of(place: "UPath") -> list[str]:
    """Size and version of an object as its store states them, without reading it.

    Returns
    -------
    list of str
        ETag, or else another mark that changes with the content; where the store
        states none, the sha256 of the content, which is read for it.
    """
    files = file_system(place)
    facts = files.info(place.path)
    for name in _VERSIONS:
        if facts.get(name):
            return [str(facts["size"]), str(facts[name])]
    digest = hashlib.sha256()
    with files.open(place.path, "rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
    return [str(facts["size"]), digest.hexdigest()]


def remote_errors(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What a call to a remote place raises when it fails, whatever the back end.

    Parameters
    ----------
    more : types
        Errors to list along with them.
    """
    loaded = [(sys.modules.get(module), name) for module, name in _FOREIGN]
    foreign = [getattr(module, name) for module, name in loaded if module]
    return (OSError, *foreign, *more)


@contextmanager
def reaching(place: Place, kind: type[Exception]) -> Iterator[None]:
    """Turn what a failed call to a place raises into one sentence.

    Parameters
    ----------
    place : Place
        The place.
    kind : type
        Error to raise.
    """
    try:
        yield
    except WsiError:
        raise
    except remote_errors() as error:
        raise kind(f"{place.name or place}: {explain(place, error)}") from error


def explain(place: Place, error: BaseException) -> str:
    """Why a place cannot be used and what helps, without secrets."""
    if isinstance(place, Path) or not isinstance(error, remote_errors()):
        return _plain(error)
    scheme = {"https": "http", "gcs": "gs"}.get(scheme_of(place), scheme_of(place))
    status = _status(error)
    credentials = _CREDENTIALS.get(scheme, "")
    if isinstance(error, PermissionError) or status in (401, 403):
        return f"access to {place} is refused; check the credentials ({credentials})"
    if type(error).__name__ in ("NoCredentialsError", "DefaultCredentialsError"):
        return f"no credentials for {place}; give them ({credentials})"
    if isinstance(error, FileNotFoundError) and status in (None, 404, 410):
        return f"not found; check {place}"
    if status is not None:
        return f"{place} answers HTTP {status}; try again later"
    return f"{place} cannot be reached ({_plain(error)}); check the network"


def _remote(url: str, scheme: str) -> "UPath":
    """The place behind a URL of a known scheme; ImportError without its back end."""
    # what is behind URLs takes as long to import as the rest of the command line
    from upath import UPath

    try:
        parts = urlsplit(url)
    except ValueError as error:  # half a pair of brackets
        raise ConfigError(f"{scheme}://: no valid URL ({error})") from error
    # listings that are remembered hide what others, and we ourselves, write
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme in _WEB:
        options |= _web_options(parts)
        host = parts.netloc.rpartition("@")[2]
        url = parts._replace(netloc=host, query="", fragment="").geturl()
    elif "@" in parts.netloc:
        raise ConfigError(
            f"{scheme}://: a URL with a password in it; credentials come from the "
            f"environment ({_CREDENTIALS.get(scheme, '')})"
        )
    if not parts.hostname and scheme != "memory":
        raise ConfigError(f"{url}: names no bucket or host; write {scheme}://NAME/...")
    place: UPath = UPath(scheme + url[len(scheme) :], **options)
    _ = place.fs  # imports the back end
    return place


def _web_options(parts: SplitResult) -> dict[str, Any]:
    """What every request of a web URL sends along."""
    options: dict[str, Any] = {}
    if parts.query:
        options["params"] = parse_qsl(parts.query, keep_blank_values=True)
    if parts.username:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        coded = base64.b64encode(user.encode()).decode()
        options["headers"] = {"Authorization": f"Basic {coded}"}
    return options


def _check_ranges(place: Place, file: Any) -> None:  # Any: fsspec ships no types
    """Refuse a web server that does not answer requests for a part of a file."""
    try:
        file.seek(-1, 2)
        file.read(1)
        file.seek(0)
    except ValueError as error:
        raise SlideError(
            f"{place.name}: its web server sends whole files only, no parts of them; "
            "download it first"
        ) from error


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error, if there is one."""
    for cause in (error, error.__cause__):
        status = getattr(cause, "status", None)
        if isinstance(status, int):
            return status
    return None


def _plain(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
