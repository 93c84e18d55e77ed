"""`hallo3 bundles`: which bundles are on this machine."""

import json
from typing import Annotated

import typer


def command(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")] = False,
) -> None:
    """List the bundles on this machine, where they are, and what they lack."""
    from ..bundles.places import list_bundles

    found = list_bundles()
    if as_json:
        for bundle in found:
            values = {"name": bundle.name, "folder": str(bundle.folder), "kind": bundle.kind, "size": bundle.size}
            print(json.dumps({**values, "missing": list(bundle.missing), "problem": bundle.problem}))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if Console().is_terminal else 1000, highlight=False, markup=False)
    table = Table("name", "where", "size", "state")
    for bundle in found:
        state = bundle.problem or (f"lacks {', '.join(bundle.missing)}" if bundle.missing else "complete")
        table.add_row(*map(Text, (bundle.name, str(bundle.folder), _size(bundle.size), state)))
    if found:
        console.print(table)
    else:
        console.print("no bundles on this machine; `hallo3 download hallo3` fetches the published one")


def _size(count: int) -> str:
    for scale, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
