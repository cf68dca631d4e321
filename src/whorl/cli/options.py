"""Options that mean the same everywhere."""

from pathlib import Path
from typing import Annotated

import typer

MethodOption = Annotated[
    list[str] | None, typer.Option("--method", help="Method name; repeat for several. Default: all.")
]
AdapterOption = Annotated[str | None, typer.Option("--adapter", help="LoRA adapter folder to merge into the model.")]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="Hub branch, tag or commit.")]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Open no socket; use only what is on disk.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Print only the verdict or the path of what was made.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="Also write the result to this file.")]
