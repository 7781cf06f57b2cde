"""Writes the script that imports a folder of results into a QuPath project."""

from importlib import resources
from pathlib import Path

from wsi_pipeline.publishing import publish_bytes

SCRIPT = "open_in_qupath.groovy"


def publish_script(results: Path) -> Path:
    """Write the script into a folder of results, beside the slides' folders.

    It reads the manifests and what each GeoJSON file states of its frame when QuPath
    runs it: the same bytes for all results, which may be moved with it.

    Raises
    ------
    ExportError
        If it cannot be written.
    """
    path = results / SCRIPT
    text = resources.files("wsi_pipeline.exporters").joinpath(SCRIPT)
    publish_bytes(path, text.read_bytes())
    return path
