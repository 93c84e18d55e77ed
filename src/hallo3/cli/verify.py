"""`hallo3 verify`: does a bundle compute what was recorded?"""

from pathlib import Path
from typing import Annotated

import typer

from .options import bundle_names


def command(
    bundle: Annotated[
        str, typer.Argument(help="A bundle's folder or name.", autocompletion=bundle_names, show_default=False)
    ],
    recording: Annotated[
        Path, typer.Argument(help="A recording, or a folder that is searched for them.", show_default=False)
    ],
    tolerance: Annotated[
        float,
        typer.Option(min=0, help="Largest relative difference of one forward; a sampling run may have ten times it."),
    ] = 2e-5,
) -> None:
    """Replay recorded tensors through BUNDLE and compare.

    Recordings are the files transformer_io, sampler_io, vae_io and audio_io (.safetensors). The exit code is 1 when
    anything differs by more than the tolerance, or nothing could be checked.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..bundles.verify import verify

    result = verify(bundle, recording, tolerance=tolerance)
    console = Console(width=None if Console().is_terminal else 1000, highlight=False, markup=False)
    table = Table("recording", "tensor", "difference", "tolerance", "")
    for check in result.checks:
        number = check.note or f"{check.difference:.1e}"
        verdict = Text("ok", "green") if check.passed else Text("FAILED", "red")
        cells = (check.recording, check.tensor, number, f"{check.tolerance:.0e}")
        table.add_row(*map(Text, cells), verdict)
    if result.checks:
        console.print(table)
    reasons: dict[tuple[str, str], list[str]] = {}
    for skipped in result.unchecked:
        reasons.setdefault((skipped.recording, skipped.reason), []).append(skipped.tensor)
    for (name, reason), tensors in reasons.items():
        listed = ", ".join(tensors[:4]) + (f" and {len(tensors) - 4} more" if len(tensors) > 4 else "")
        console.print(f"not checked: {name}: {listed}: {reason}")
    for notice in result.notices:
        console.print(f"note: {notice}")
    failed = sum(not check.passed for check in result.checks)
    console.print(f"{len(result.checks) - failed} of {len(result.checks)} agree; {len(result.unchecked)} not checked")
    if not result.passed:
        raise typer.Exit(1)
