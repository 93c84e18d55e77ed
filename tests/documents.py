"""The commands in the documents, and a folder in which they run as they are written.

What a block of commands needs to be run with stands above it, in comments that no reader sees:

    <!-- not run: REASON -->               none of the block
    <!-- not run (WORDS): REASON -->       the lines that begin with WORDS
    <!-- run with: WORDS -> OTHERS -->     OTHERS in place of WORDS, to be done sooner or without a microphone
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hallo3
import tiny
from waiting import until

ROOT = Path(__file__).parents[1]
SAMPLE = Path(hallo3.__file__).parent / "embedded" / "sample"
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("**/*.md"), *(ROOT / "integrations").glob("*/README.md"))
)
LANGUAGES = {"sh", "python", "csv", "json", "yaml", ""}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_COMMENT = re.compile(r"<!-- (not run|run with)(?: \(([^)]*)\))?: ([^\n]*) -->\n\Z")


@dataclass(frozen=True)
class Block:
    """A fenced block. place: page and line. text: what is run of it. left_out: commands that are not run, and why."""

    place: str
    language: str
    text: str
    left_out: dict[str, str]


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page (its path from the repository's root), in order."""
    source = (ROOT / page).read_text(encoding="utf-8")
    return [_block(page, source, found) for found in _FENCE.finditer(source)]


def _block(page: str, source: str, found: re.Match[str]) -> Block:
    language, text = found.groups()
    place = f"{page}:{source.count(chr(10), 0, found.start()) + 1}"
    left_out: dict[str, str] = {}
    before = source[: found.start()]
    while comment := _COMMENT.search(before):
        kind, words, said = comment.groups()
        before = before[: comment.start()]
        if kind == "run with":
            old, new = said.split(" -> ")
            assert old in text, f"{place}: {old!r} is not in the block"
            text = text.replace(old, new)
            continue
        dropped = [line for line in commands(text) if line.startswith(words or "")]
        assert dropped, f"{place}: no line begins with {words!r}"
        left_out |= dict.fromkeys(dropped, said)
    kept = [line for line in _logical_lines(text) if _without_comment(line) not in left_out]
    return Block(place, language, "\n".join(kept) + "\n", left_out)


def commands(text: str) -> list[str]:
    """The commands of a block of shell, one a line, without comments."""
    return [line for line in map(_without_comment, _logical_lines(text)) if line]


def _logical_lines(text: str) -> list[str]:
    return text.replace("\\\n", " ").splitlines()


def _without_comment(line: str) -> str:
    return re.sub(r"(^|\s)#.*", "", line).strip()


def calls(page: str) -> list[tuple[str, list[str]]]:
    """Every call of hallo3 in a page's blocks, those that are not run too: where it stands, the words after hallo3."""
    found = []
    for block in blocks(page):
        if block.language == "sh":
            for line in (*commands(block.text), *block.left_out):
                call = re.search(r"(?:^|\s|-m )hallo3 ([^|>&;]*)", line)
                if call and not line.startswith(("pip ", "git ")):
                    found.append((block.place, shlex.split(call[1])))
    return found


@contextmanager
def preloaded() -> Iterator[list[str]]:
    """A process that has loaded hallo3's libraries (preloaded.py), and the words that have it run others."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # the path of a socket has 107 bytes at most
        place = Path(folder, "socket")
        words = [sys.executable, str(Path(__file__).with_name("preloaded.py")), str(place)]
        environment = {**os.environ, "PYTHONPATH": str(Path(hallo3.__file__).parents[1])}
        with subprocess.Popen(words, env=environment) as process:
            try:
                until(lambda: place.exists() or process.poll() is not None)
                assert process.poll() is None
                yield [words[0], "-S", "-E", *words[1:]]
            finally:
                process.terminate()


def checkout(folder: Path, seconds: float, python: list[str]) -> dict[str, str]:
    """Makes `folder` look like a clone with little speech in it; returns the environment to run commands in.

    The sample's portrait lies there as portrait.png, speech of `seconds` as speech.wav; under the name of the published
    bundle stands the embedded one, so that commands for the published weights run too. python: from `preloaded`.
    """
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "configs", "tests", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    sample = folder / "src" / "hallo3" / "embedded" / "sample"
    sample.mkdir(parents=True)
    (folder / "speech-folder").mkdir()
    for name in ("0.wav", "16.wav"):  # by its name the second is held out
        shutil.copy(SAMPLE / "speech.wav", folder / "speech-folder" / name)
    for place in (folder, sample):
        shutil.copy(SAMPLE / "portrait.png", place)
        tiny.write_wav(place / "speech.wav", tiny.speech(seconds))
    shutil.copy(SAMPLE / "prompt.txt", sample)
    known = folder / "home" / "bundles"
    known.mkdir(parents=True)
    (known / "hallo3").symlink_to(SAMPLE.parent)
    programs, installed = folder / "programs", folder / "installed"
    programs.mkdir()
    installed.touch()
    for name, words in {"python": [sys.executable], "hallo3": [*python, "-m", "hallo3"]}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        (programs / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(hallo3.__file__).parents[1]),
        "HALLO3_HOME": str(folder / "home"),
        "MAKEFLAGS": f"BIN={programs} STAMP={installed}",  # nothing is to be installed
    }


def run(page: str, folder: Path, python: list[str], seconds: float = 0.5) -> str:
    """Runs a page's commands from the first to the last in `folder`, an empty one; returns all that they printed."""
    environment, said = checkout(folder, seconds, python), ""
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block.place}: {block.language!r} is not run; write sh or python"
        words = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [*python, "-c"]}.get(block.language)
        if words is None or not block.text.strip():
            continue
        done = subprocess.run(
            [*words, block.text], cwd=folder, env=environment, capture_output=True, text=True, timeout=550
        )
        assert done.returncode == 0, f"{block.place}:\n{block.text}\n{done.stdout}\n{done.stderr}"
        said += done.stdout + done.stderr
    return said
