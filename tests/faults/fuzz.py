"""Feeds a parser what atheris makes up, led by the lines that it reaches.

`python -m tests.faults.fuzz NAME -max_total_time=60`; options are libFuzzer's.
"""

import sys
import tempfile
from pathlib import Path

import atheris

_OURS = ["annotations", "config", "models.cards", "models.weights", "options"]
_OURS += ["results", "repeating", "samplesheet"]
with atheris.instrument_imports(
    include=["csv", "tomllib", *(f"wsi_pipeline.{name}" for name in _OURS)]
):
    from tests.faults.parsers import PARSERS


def main(name: str, *options: str) -> None:
    """Fuzz one parser, beginning with its examples."""
    parser = PARSERS[name]
    with tempfile.TemporaryDirectory() as scratch:
        corpus, folder = Path(scratch, "corpus"), Path(scratch, "read")
        corpus.mkdir()
        folder.mkdir()
        for number, example in enumerate(parser.examples):
            (corpus / str(number)).write_bytes(example)
        atheris.Setup(
            [sys.argv[0], str(corpus), *options], lambda data: parser.feed(data, folder)
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
