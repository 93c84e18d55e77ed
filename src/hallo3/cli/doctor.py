"""`hallo3 doctor`: what works on this machine, and what to do about the rest."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

SIGNS = {"fine": "ok", "note": "note", "problem": "PROBLEM"}


def command(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Look at versions, device, codecs, models, disk and marks, and say what to do next.

    Nothing is changed and nothing is sent anywhere. The exit code is 1 when there is a problem.
    """
    from ..doctor import examine, next_step

    findings = list(examine())
    step = next_step(findings)
    if as_json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings], "next": step}))
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(width=None if Console().is_terminal else 160, highlight=False, markup=False)
        table = Table("", "", "found", "what to do")
        for finding in findings:
            table.add_row(*map(Text, (SIGNS[finding.state], finding.topic, finding.found, finding.remedy)))
        console.print(table)
        console.print(f"next: {step}")
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)
