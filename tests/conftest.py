"""Fixtures that more than one test file uses."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples every time, and no clock: machines are shared.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

# Whoever starts in a shell's background ignores Ctrl-C, and so would all it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real slides and labelled images (WSI_DATA), or skip."""
    folder = Path(os.environ.get("WSI_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data absent: no folder {folder} (set WSI_DATA)")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say in the record of a run which promises a test proves."""
    for item in items:
        for mark in item.iter_markers("promise"):
            item.user_properties.append(("promise", mark.args[0]))
