"""The commands' options, frozen: one that appears or goes is noticed here, and in the changelog."""

import pytest
import typer.main

from hallo3.cli.app import app

COMMANDS = "ablate animate batch bench bundles convert doctor download inspect plan serve studio train verify"
ANIMATE = """
    --bundle --certificate --crf --decoding --device --dtype --face --face-box --framing --i-have-the-rights --json
    --no-credentials --no-face --no-watermark --output --overwrite --private-key --prompt --quiet
    --reference-scale --resume --seed --separate-vocals --speech-scale --steps --strategy --text-scale
    --vocal-separator --weights
"""


BATCH = """
    --bundle --certificate --crf --decoding --device --dtype --i-have-the-rights --json --no-credentials
    --no-face --no-watermark --out --overwrite --private-key --quiet --seed --separate-vocals --steps --strategy
    --vocal-separator --weights
"""

SERVE = """
    --bundle --certificate --data --decoding --device --dtype --host --keep --max-seconds --max-stored
    --max-upload --port --private-key --queue --rate --strategy --token --weights
"""


def test_commands() -> None:
    assert sorted(typer.main.get_command(app).commands) == COMMANDS.split()


@pytest.mark.parametrize(("name", "known"), [("animate", ANIMATE), ("batch", BATCH), ("serve", SERVE)])
def test_options(name: str, known: str) -> None:
    command = typer.main.get_command(app).commands[name]
    options = {name for parameter in command.params for name in parameter.opts if name.startswith("--")}
    assert sorted(options) == known.split()
