"""Whatever a file holds, our parsers refuse it in our own words."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.parsers import PARSERS, Parser
from wsi_pipeline.errors import ConfigError

pytestmark = pytest.mark.promise("R17")
ROOT = Path(__file__).resolve().parent.parent.parent
SECONDS = 60
ODD = (b'"', b"{", b"[[", b"]", b"null", b"-1", b"1e999", b"\x00", b"\xff", b"\n", b",")


@st.composite
def spoilt(draw: st.DrawFn, examples: tuple[bytes, ...]) -> bytes:
    """An example with pieces cut out, doubled, or replaced by odd ones."""
    data = draw(st.sampled_from(examples))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.integers(0, 40)))
        odd = draw(st.sampled_from(ODD) | st.binary(max_size=6))
        piece = draw(st.sampled_from([b"", odd, data[start:stop] * 2]))
        data = data[:start] + piece + data[stop:]
    return data


def hammer(parser: Parser, folder: Path, count: int) -> None:
    @settings(
        max_examples=count,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(spoilt(parser.examples) | st.binary(max_size=200))
    def feed(data: bytes) -> None:
        parser.feed(data, folder)

    feed()


@pytest.mark.parametrize("name", PARSERS)
def test_examples_are_taken(name: str, tmp_path: Path) -> None:
    parser = PARSERS[name]
    for example in parser.examples:
        path = tmp_path / parser.name
        path.write_bytes(example)
        if name != "samplesheet":  # its slides are not there
            parser.read(path)


@pytest.mark.parametrize("name", PARSERS)
def test_spoilt_files_raise_no_foreign_error(name: str, tmp_path: Path) -> None:
    hammer(PARSERS[name], tmp_path, 60)


@pytest.mark.faults
@pytest.mark.parametrize("name", PARSERS)
def test_many_spoilt_files_raise_no_foreign_error(name: str, tmp_path: Path) -> None:
    hammer(PARSERS[name], tmp_path, 10_000)


@pytest.mark.faults
@pytest.mark.parametrize("name", PARSERS)
def test_a_minute_of_fuzzing_finds_no_foreign_error(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("the package atheris is not installed: pip install atheris")
    options = f"-max_total_time={SECONDS}", "-rss_limit_mb=4096"
    found = subprocess.run(
        [sys.executable, "-m", "tests.faults.fuzz", name, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    record_property("measured", found.stderr.strip().splitlines()[-1])


def test_a_foreign_error_is_seen(tmp_path: Path) -> None:
    def parse(path: Path) -> None:
        data = path.read_bytes()
        if not data.startswith(b"mpp"):
            raise ConfigError("no config")
        data.decode("ascii")  # the guard is missing

    with pytest.raises(UnicodeDecodeError):
        hammer(Parser("run.toml", parse, (b"mpp = 0.5\n",)), tmp_path, 300)
