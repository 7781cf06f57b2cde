"""What the process may use: memory of the machine, or of a control group."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from wsi_pipeline.process import total_memory_bytes

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
V1 = "9:cpuset:/\n4:memory:/jobs/7\n0::/\n"
V2 = "0::/jobs/7\n"


def system(root: Path, groups: str, limits: dict[str, str]) -> Path:
    """A root with the files that tell of control groups."""
    files = {"proc/self/cgroup": groups}
    files |= {f"sys/fs/cgroup/{name}": f"{limit}\n" for name, limit in limits.items()}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, MACHINE),
        ({"jobs/7/memory.max": "1000"}, 1000),
        ({"jobs/7/memory.max": "max"}, MACHINE),
        ({"jobs/7/memory.max": "3000", "jobs/memory.max": "2000"}, 2000),
        # in a container: the own group is the root of what is mounted
        ({"memory.max": "4000"}, 4000),
        ({"jobs/7/memory.max": str(2 * MACHINE)}, MACHINE),
        ({"other/memory.max": "5"}, MACHINE),
        ({"../memory.max": "5"}, MACHINE),
    ],
)
def test_the_tightest_limit_of_a_group_and_those_above_counts(
    tmp_path: Path, limits: dict[str, str], expected: int
) -> None:
    assert total_memory_bytes(system(tmp_path, V2, limits)) == expected


@pytest.mark.parametrize(
    ("folder", "expected"), [("jobs/7", 1000), ("", 1000), ("other", MACHINE)]
)
def test_groups_of_version_1_count_too(
    tmp_path: Path, folder: str, expected: int
) -> None:
    limits = {f"memory/{folder}/memory.limit_in_bytes": "1000"}
    assert total_memory_bytes(system(tmp_path, V1, limits)) == expected


def test_without_groups_it_is_the_machine(tmp_path: Path) -> None:
    assert total_memory_bytes(tmp_path) == MACHINE
    assert 0 < total_memory_bytes() <= MACHINE


TOUCH_AGAIN = """
import resource
import numpy as np
from wsi_pipeline.process import keep_freed_memory

{first}
for turn in range(20):
    np.ones(2**26, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_kept_memory_is_cleared_by_the_system_once() -> None:
    """20 x 64 MiB in pages of 4 KiB."""
    faults = [
        int(
            subprocess.run(
                [sys.executable, "-c", TOUCH_AGAIN.format(first=first)],
                env=os.environ | {"NUMPY_MADVISE_HUGEPAGE": "0"},
                capture_output=True,
                check=True,
            ).stdout
        )
        for first in ("keep_freed_memory(2**27)", "")
    ]
    assert faults[1] - faults[0] > 18 * 2**14
