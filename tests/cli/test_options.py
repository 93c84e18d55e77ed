"""The commands' options, frozen: one that appears or goes is noticed here, and in the changelog."""

import typer.main

from hallo3.cli.app import app

ANIMATE = """
    --bundle --certificate --crf --decoding --device --dtype --face --face-box --framing --i-have-the-rights --json
    --no-credentials --no-face --no-watermark --output --overwrite --private-key --prompt --quiet
    --reference-scale --resume --seed --separate-vocals --speech-scale --steps --strategy --text-scale
    --vocal-separator --weights
"""


def test_commands() -> None:
    assert sorted(typer.main.get_command(app).commands) == [
        *("ablate", "animate", "bundles", "convert", "download", "inspect", "plan", "studio", "train", "verify")
    ]


def test_animate_options() -> None:
    command = typer.main.get_command(app).commands["animate"]
    options = {name for parameter in command.params for name in parameter.opts if name.startswith("--")}
    assert sorted(options) == ANIMATE.split()
