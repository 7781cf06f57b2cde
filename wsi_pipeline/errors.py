"""The tree of errors that the package raises on purpose.

::

    WsiError
    |- SlideError (OSError)         a slide cannot be opened, read or used
    |  |- MissingScaleError         no plausible um/px; --mpp or the sheet gives it
    |  |- NotASlideError            the file is something else: a batch skips it
    |  `- UnreadableError           a part of it cannot be decoded, twice over
    |- PyramidError (ValueError)    an OME-Zarr is missing, damaged or of another kind
    |- RegionError (ValueError)     patches, regions or annotations do not fit
    |- ConfigError (ValueError)     an option is unknown or out of range
    |- ModelError (RuntimeError)    a model folder is incomplete or does not fit
    |  `- BudgetError               too little memory; names the least that works
    |- ExportError (OSError)        a result cannot be written
    `- UnknownNameError (KeyError)  no such name in a table; lists those there are
"""


class WsiError(Exception):
    """Base of every error that this package raises on purpose."""


class SlideError(WsiError, OSError):
    """A slide cannot be opened, read or used."""


class MissingScaleError(SlideError):
    """The slide states no plausible um/px, and none was supplied."""


class NotASlideError(SlideError):
    """The file is no slide; a batch lists it as skipped."""


class UnreadableError(SlideError):
    """A part of a slide cannot be decoded; the rest of it may be sound."""


class PyramidError(WsiError, ValueError):
    """An OME-Zarr pyramid is missing, damaged or of another kind."""


class RegionError(WsiError, ValueError):
    """Patches, selections, regions or annotations are inconsistent."""


class ConfigError(WsiError, ValueError):
    """An option is unknown, of the wrong type or out of range."""


class ModelError(WsiError, RuntimeError):
    """A model folder is incomplete, foreign or does not fit the slide."""


class BudgetError(ModelError):
    """The stated memory budget is smaller than the smallest workable one."""


class ExportError(WsiError, OSError):
    """A result cannot be written."""


class UnknownNameError(WsiError, KeyError):
    """A name is not in its table."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""
