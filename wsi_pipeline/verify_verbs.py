"""The verb that reads results again."""

from pathlib import Path
from typing import Annotated

import typer

from wsi_pipeline.arguments import Json
from wsi_pipeline.console import print_json, terminal_of
from wsi_pipeline.inert import shown


def verify(
    out: Annotated[
        Path, typer.Argument(help="Results folder of `wsi run`, or of one slide.")
    ],
    jobs: Annotated[
        int, typer.Option(min=0, help="Threads that read; 0 = one per CPU.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Read all results again and name what is missing, changed or extra.

    Every file is hashed, every chunk counted, and the areas of labels, tables and
    exports are compared. Exit codes: 0 all is as it was published; 3 something is not.
    """
    from wsi_pipeline.verifying import verify_results

    with terminal_of(quiet=as_json) as terminal:
        verdict = verify_results(out, jobs=jobs, progress=terminal.ticker("verify"))
    if as_json:
        print_json(verdict.to_json())
    else:
        for finding in verdict.findings:
            print(shown(f"{finding.kind:>10}  {finding.path}  {finding.detail}"))
        print(
            f"{verdict.slides} slides, {verdict.files} files, "
            f"{verdict.size_bytes / 1e6:.1f} MB: {len(verdict.findings)} findings"
        )
    raise typer.Exit(verdict.exit_code)
