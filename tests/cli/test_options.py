"""The commands' options, frozen: one that appears or goes is noticed here, and in the changelog."""

from typing import Any

import pytest
import typer.main
from rich.text import Text

from hallo3.cli.app import app

COMMANDS = "ablate animate batch bench bundles convert doctor download inspect plan serve studio train verify web"
ANIMATE = """
    --attention --bundle --certificate --compile --crf --decoding --device --dtype --face --face-box --framing
    --i-have-the-rights --json --no-credentials --no-face --no-watermark --output --overwrite --private-key --prompt
    --quality --quiet --reference-scale --resume --seed --separate-vocals --speech-scale --steps --strategy --text-scale
    --vocal-separator --weights
"""


BATCH = """
    --attention --bundle --certificate --compile --crf --decoding --device --dtype --i-have-the-rights --json
    --no-credentials --no-face --no-watermark --out --overwrite --private-key --quality --quiet --seed --separate-vocals
    --steps --strategy --vocal-separator --weights
"""

PLAN = """
    --decoding --dtype --gpu-memory --gpus --host-memory --json --quality --reference-scale --seconds --speech-scale
    --steps --text-scale --weights
"""

SERVE = """
    --attention --bundle --certificate --compile --data --decoding --device --dtype --host --keep --max-seconds
    --max-stored --max-upload --port --private-key --queue --rate --strategy --token --weights
"""

WEB = """
    --attention --bundle --certificate --compile --decoding --device --dtype --host --keep --max-seconds --max-stored
    --max-upload --port --private-key --queue --rate --strategy --token --weights
"""


def test_commands() -> None:
    assert sorted(typer.main.get_command(app).commands) == COMMANDS.split()


@pytest.mark.parametrize(
    ("name", "known"),
    [("animate", ANIMATE), ("batch", BATCH), ("plan", PLAN), ("serve", SERVE), ("web", WEB)],
)
def test_options(name: str, known: str) -> None:
    command = typer.main.get_command(app).commands[name]
    options = {name for parameter in command.params for name in parameter.opts if name.startswith("--")}
    assert sorted(options) == known.split()


def test_nothing_in_a_help_text_is_taken_for_markup() -> None:
    """`[default: …]` in a text is swallowed when it is printed; `show_default` is shown."""
    for command in _commands(typer.main.get_command(app)):
        for parameter in command.params:
            text = getattr(parameter, "help", None) or ""
            assert Text.from_markup(text).plain == text, parameter.name


def _commands(command: Any) -> list[Any]:
    return [command, *(inner for one in getattr(command, "commands", {}).values() for inner in _commands(one))]
