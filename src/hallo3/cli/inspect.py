"""`hallo3 inspect`: which marks a video carries."""

import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="The video.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Say what VIDEO's tags, content credentials and watermark tell: whether hallo3 made it, and how.

    Finding nothing proves nothing. The watermark is looked for in the first 20 seconds.
    """
    from ..media.inspection import inspect

    found = inspect(video)
    if as_json:
        print(json.dumps(found.to_dict()))
    else:
        print("\n".join(found.lines()))
