"""Shell completion: the scripts for bash, zsh and fish, and the words that they get."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hallo3

SHELLS = ("bash", "zsh", "fish")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With `hallo3` as a command, and a bundle of the user's own."""
    program = tmp_path / "programs" / "hallo3"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m hallo3 "$@"\n')
    program.chmod(0o755)
    (tmp_path / "home" / "bundles" / "enlarged").mkdir(parents=True)
    return {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(hallo3.__file__).parents[1]),
        "HALLO3_HOME": str(tmp_path / "home"),
    }


def run(words: list[str], environment: dict[str, str], **more: str) -> str:
    done = subprocess.run(words, env=environment | more, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def script(shell: str, environment: dict[str, str]) -> str:
    """What `hallo3 --show-completion` prints, where the shell is not the one that started it."""
    return run(["hallo3", "--show-completion", shell], environment, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script_for_the_command(shell: str, environment: dict[str, str]) -> None:
    text = script(shell, environment)
    assert f"_HALLO3_COMPLETE=complete_{shell}" in text and "python" not in text


@pytest.mark.parametrize("shell", ["zsh", "fish"])
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("hallo3 an", {"animate"}),
        ("hallo3 plan e", {"embedded", "enlarged"}),
        ("hallo3 animate --spe", {"--speech-scale"}),
    ],
)
def test_words_for_zsh_and_fish(shell: str, typed: str, offered: set[str], environment: dict[str, str]) -> None:
    asked = {"_TYPER_COMPLETE_ARGS": typed, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    said = run(["hallo3"], environment, _HALLO3_COMPLETE=f"complete_{shell}", **asked)
    assert all(word in said for word in offered)
    assert "doctor" not in said and "--seed" not in said


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(environment: dict[str, str], tmp_path: Path) -> None:
    """In a real bash: commands, options, names of bundles."""
    asked = {
        "hallo3 an": "animate",
        "hallo3 studio im": "import",
        "hallo3 animate --bundle e": "embedded enlarged",
        "hallo3 animate --res": "--resume",
    }
    (tmp_path / "completion.sh").write_text(script("bash", environment))
    lines = [f"source {tmp_path / 'completion.sh'}"]
    for typed in asked:
        lines.append(f"COMP_WORDS=({typed}); COMP_CWORD={len(typed.split()) - 1}; _hallo3_completion hallo3")
        lines.append('echo "${COMPREPLY[*]}"')
    said = run(["bash", "-c", "\n".join(lines)], environment)
    assert said.splitlines() == list(asked.values())
