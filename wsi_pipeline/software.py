"""Says which versions of the packages that this one needs are installed."""

import re
from importlib.metadata import requires, version

PACKAGE = "wsi-pipeline"
"""Name of this package."""


def installed_software() -> dict[str, str]:
    """Versions by name, sorted; extras, which results do not need, are left out."""
    names = sorted(
        re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()
        for requirement in requires(PACKAGE) or ()
        if "extra ==" not in requirement
    )
    return {name: version(name) for name in names}
