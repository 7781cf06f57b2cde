"""The table of bodies: this package's rows and those of installed packages."""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from wsi_pipeline.errors import ModelError, UnknownNameError
from wsi_pipeline.registry import Registry

GROUP = "wsi_pipeline.bodies"
"""Entry-point group where a package names its bodies: ``name = "module:builder"``."""

# what the extra `bodies` installs
_OPTIONAL = ("segmentation_models_pytorch", "timm")


class BodyTable(Registry):
    """A `Registry` that also knows the rows of installed packages.

    A broken or doubly claimed row is no error until it is loaded. Installed packages
    are looked up at each call, so one that is installed later is found.
    """

    def names(self) -> tuple[str, ...]:
        """Own names in the order of the table, then those of other packages."""
        own = super().names()
        foreign = {entry.name for entry in entry_points(group=GROUP)}
        return (*own, *sorted(foreign - set(own)))

    def load(self, name: str) -> Any:  # Any: the table cannot know its rows' types
        """Import and return the builder behind a name.

        Raises
        ------
        UnknownNameError
            If there is no such row; the message lists those there are.
        ModelError
            If several packages claim the name, if the row's package is broken, or if
            an optional package is missing.
        """
        claims = [entry for entry in entry_points(group=GROUP) if entry.name == name]
        own = name in super().names()
        if not own and not claims:
            raise UnknownNameError(
                f"unknown {self.kind} {name!r}; there are: {', '.join(self.names())}"
            )
        if own + len(claims) > 1:
            owners = ["wsi-pipeline"] * own + [_owner(entry) for entry in claims]
            raise ModelError(
                f"{self.kind} {name!r} is claimed by {' and by '.join(owners)}; "
                "uninstall or rename all but one"
            )
        return self._load_own(name) if own else self._load_foreign(claims[0])

    def _load_own(self, name: str) -> Any:  # Any: see load
        try:
            return super().load(name)
        except ModuleNotFoundError as error:
            if error.name not in _OPTIONAL:
                raise
            raise ModelError(
                f"{self.kind} {name!r} needs the package {error.name}: "
                "pip install 'wsi-pipeline[bodies]'"
            ) from error

    def _load_foreign(self, entry: EntryPoint) -> Any:  # Any: see load
        try:
            builder = entry.load()
        except Exception as error:  # another package's import can raise anything
            raise ModelError(
                f"{self.kind} {entry.name!r} of {_owner(entry)} cannot be loaded from "
                f"{entry.value!r}: {type(error).__name__}: {error}"
            ) from error
        if not callable(builder):
            raise ModelError(
                f"{self.kind} {entry.name!r} of {_owner(entry)} is a "
                f"{type(builder).__name__}, expected a callable"
            )
        return builder


def _owner(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "a package"
