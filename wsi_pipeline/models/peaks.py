"""Keeps the measured peaks of nets in a file, so that none is measured twice."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from wsi_pipeline.errors import ExportError
from wsi_pipeline.publishing import publish_json

_log = logging.getLogger(__name__)


class _Content(BaseModel):
    """What the file holds: by net and device, peak bytes by batch."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["peaks of nets, bytes by batch"] = "peaks of nets, bytes by batch"
    peaks: dict[str, dict[NonNegativeInt, NonNegativeInt]] = {}


def load_peaks(file: Path, key: str) -> dict[int, int]:
    """Peaks of one net on one device: batch to bytes.

    Parameters
    ----------
    file : Path
        What `keep_peaks` wrote; one that is damaged or something else is ignored, and
        the log says so.
    key : str
        Net and device.
    """
    try:
        return _read(file).peaks.get(key, {})
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        _log.warning("%s: no readable peaks of nets, not used (%s)", file, reason)
        return {}


def keep_peaks(file: Path, key: str, peaks: Mapping[int, int]) -> None:
    """Add peaks to the file, which is replaced whole.

    Notes
    -----
    Of two processes that write at once the last one wins, and what the other measured
    is measured again some day; the same where the file cannot be written, which the
    log says.
    """
    try:
        content = _read(file)
    except (OSError, ValidationError):
        content = _Content()
    content.peaks[key] = content.peaks.get(key, {}) | dict(peaks)
    try:
        publish_json(file, content.model_dump(mode="json"))
    except ExportError as error:
        _log.warning("peaks of nets were not kept: %s", error)


def _read(file: Path) -> _Content:
    try:
        return _Content.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return _Content()
