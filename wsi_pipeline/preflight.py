"""Refuses what no slide could be run with, before any slide is touched."""

from wsi_pipeline.config import RunConfig
from wsi_pipeline.errors import ConfigError, UnknownNameError
from wsi_pipeline.exporters import EXPORTERS
from wsi_pipeline.models.budget import resolve_device
from wsi_pipeline.models.cards import ModelCard


def check_config(config: RunConfig, card: ModelCard) -> None:
    """Refuse, before any slide is touched, what no slide could be run with.

    Raises
    ------
    ConfigError
        If the device or the tissue mask is not there.
    UnknownNameError
        If there is no such export format, or the model has no such strategy.
    ModelError
        If the model has no screen and one is to be used.
    """
    if config.select.screen != "off":
        card.need_screen()
    arms = card.need_segmenter().architecture.get("strategies", ())
    if config.segment.strategy not in arms:
        raise UnknownNameError(
            f"model {card.name!r} has no weights for strategy "
            f"{config.segment.strategy!r}; it has: {', '.join(arms)}"
        )
    for options in (config.select, config.segment):
        resolve_device(options.device)
    for name in config.export.formats:
        EXPORTERS.load(name)
    if config.tissue.mask is not None and not config.tissue.mask.is_file():
        raise ConfigError(f"{config.tissue.mask}: no such file for --tissue-mask")
