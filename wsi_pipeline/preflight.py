"""Refuses what no slide could be run with, before any slide is touched."""

from wsi_pipeline.config import RunConfig
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.exporters import EXPORTERS
from wsi_pipeline.models.budget import resolve_device


def check_config(config: RunConfig) -> None:
    """Refuse, before any slide is touched, what no slide could be run with.

    Raises
    ------
    ConfigError
        If the device or the tissue mask is not there.
    UnknownNameError
        If there is no such export format.
    """
    for options in (config.select, config.segment):
        resolve_device(options.device)
    EXPORTERS.load(config.export.format)
    if config.tissue.mask is not None and not config.tissue.mask.is_file():
        raise ConfigError(f"{config.tissue.mask}: no such file for --tissue-mask")
