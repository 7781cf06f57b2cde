"""Nothing is promised without a test, and the table says what the tests said."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.table import PROMISES, TESTS, Result, linked, read_record, table

pytestmark = pytest.mark.promise("R21")
ROOT = TESTS.parent


def test_every_promise_has_a_test() -> None:
    assert linked().keys() == PROMISES.keys()


def test_a_promise_without_a_test_is_seen(tmp_path: Path) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    mark = "promise" + '("{}")'
    for promise in PROMISES:
        if promise != "R7":
            (tests / f"test_{promise}.py").write_text(mark.format(promise))
    assert PROMISES.keys() - linked(tests).keys() == {"R7"}


def test_the_page_in_the_docs_has_a_row_for_every_promise() -> None:
    page = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    for promise, words in PROMISES.items():
        (row,) = [x for x in page.splitlines() if x.startswith(f"| {promise} |")]
        assert words in row
        assert "`tests/" in row


def test_the_table_tells_what_a_record_of_pytest_holds(tmp_path: Path) -> None:
    mark = "pytest.mark.promise"  # apart, so that this file proves neither of the two
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        f"pytestmark = {mark}('R2')\n"
        "def test_a(record_property): record_property('measured', '9 of 9')\n"
        "def test_b(): assert False\n"
        f"@{mark}('R3')\n"
        "def test_c(): pytest.skip('absent')\n"
    )
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    words = "--junitxml=record.xml", "-p", "no:cacheprovider", "--rootdir", tmp_path
    config = "-c", ROOT / "pyproject.toml"
    subprocess.run(
        [sys.executable, "-m", "pytest", *config, *words, tmp_path],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    results = read_record(tmp_path / "record.xml")
    assert results == [
        Result("test_some.py", ("R2",), "passed", "9 of 9"),
        Result("test_some.py", ("R2",), "failed"),
        Result("test_some.py", ("R3", "R2"), "skipped"),
    ]
    rows = table({"R2": ["tests/test_some.py"]}, results).splitlines()
    text = f"| R2 | {PROMISES['R2']} | `tests/test_some.py` | 1 failed, 1 passed, "
    assert f"{text}1 skipped |" in rows
    assert f"| R9 | {PROMISES['R9']} | none | not run |" in rows
    assert "- R2: 9 of 9" in rows
