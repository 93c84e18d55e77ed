"""What the documents tell people to do works as it is written."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import documents
from documents import PAGES, ROOT, blocks, calls
from hallo3.cli.app import app
from hallo3.media.video import probe

LIVE = ["README.md", *(f"docs/{name}.md" for name in ("tutorial", "long-videos", "converting", "own-data", "memory"))]
NOT_RUN = {
    "README.md": {"make test", "hallo3 download hallo3", "pip install"},
    "docs/tutorial.md": {". .venv/bin/activate", "hallo3 download hallo3", 'pip install "hallo3[faces]"'},
    "docs/converting.md": {"hallo3 download hallo3", "hallo3 convert --published"},
}


def test_what_is_not_run_is_known() -> None:
    """A command that is left out is named here too, so that none is left out unnoticed."""
    for page in LIVE:
        left_out = {line: why for block in blocks(page) for line, why in block.left_out.items()}
        for line, why in left_out.items():
            assert any(line.startswith(known) for known in NOT_RUN.get(page, ())), f"{page}: {line}"
            assert len(why) > 10
        for known in NOT_RUN.get(page, ()):
            assert any(line.startswith(known) for line in left_out), f"{page}: {known}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page: str) -> None:
    """Names, options and kinds of values of every call of hallo3, also of those that are not run."""
    for place, words in calls(page):
        try:
            _parse(typer.main.get_command(app), words)
        except Exception as error:
            usage = getattr(error, "format_message", None)
            pytest.fail(f"{place}: hallo3 {' '.join(words)}: {usage() if usage else error!r}")


def _parse(command: Any, words: list[str], parent: Any = None) -> None:
    if not hasattr(command, "commands"):
        command.make_context(command.name, list(words), parent=parent)
        return
    context = command.make_context(command.name, [], parent=parent, resilient_parsing=True)
    assert words and words[0] in command.commands, f"there is no command {words[:1]}"
    _parse(command.commands[words[0]], words[1:], context)


@pytest.mark.parametrize("page", PAGES)
def test_commands_named_in_the_text_exist(page: str) -> None:
    prose = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    for name, rest in re.findall(r"`hallo3 ([a-z]+)([^`]*)`", prose):
        command: Any = typer.main.get_command(app).commands[name]
        inner = re.match(r" ([a-z]+)", rest)
        if inner and hasattr(command, "commands"):
            command = command.commands[inner[1]]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert set(re.findall(r"--[a-z-]+", rest)) <= known, f"hallo3 {name}{rest}"


@pytest.mark.parametrize("page", PAGES)
def test_extras_and_make_targets_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"hallo3\[(\w+)\]", text)) <= extras.keys()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    said = " ".join([block.text for block in blocks(page)] + re.findall(r"`([^`]*)`", text))
    assert set(re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)\b", said)) <= targets


def test_every_page_is_in_the_menu_of_the_site() -> None:
    """Once. A new page goes under `nav` in mkdocs.yml."""
    menu = re.findall(r"^ +- .*: ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(menu) == sorted(page.removeprefix("docs/") for page in PAGES if page.startswith("docs/"))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Within the checkout, as a reader on a code host follows them; MkDocs checks those of the site."""
    place = (ROOT / page).parent
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8")):
        assert link.startswith("https://") or (place / link).exists(), link


@pytest.fixture(scope="module")
def python() -> Iterator[list[str]]:
    with documents.preloaded() as words:
        yield words


@pytest.mark.slow
def test_readme(tmp_path: Path, python: list[str]) -> None:
    said = documents.run("README.md", tmp_path, python)
    assert probe(tmp_path / "out" / "demo.mp4").frames == probe(tmp_path / "talk.mp4").frames == 13
    assert "trains" in said


@pytest.mark.slow
def test_tutorial(tmp_path: Path, python: list[str]) -> None:
    said = documents.run("docs/tutorial.md", tmp_path, python)
    for name in ("first", "second", "stream", "videos/calm", "videos/lively", "talk"):
        assert probe(tmp_path / f"{name}.mp4").frames == 13, name
    assert "(13, 128, 192, 3)" in said and "device memory" in said


@pytest.mark.slow
def test_long_videos(tmp_path: Path, python: list[str]) -> None:
    """The first command is stopped after its first clip; the last goes on there and gives what the streamed one did."""
    said = documents.run("docs/long-videos.md", tmp_path, python, seconds=1.4)
    assert probe(tmp_path / "long.mp4").frames == probe(tmp_path / "stream.mp4").frames == 35
    assert '"event": "clip"' in said and "1.4 seconds" in said


@pytest.mark.slow
def test_converting(tmp_path: Path, python: list[str]) -> None:
    said = documents.run("docs/converting.md", tmp_path, python)
    assert "0 not checked" in said and "embedded" in said and (tmp_path / "small" / "model_index.json").exists()


@pytest.mark.slow
def test_own_data(tmp_path: Path, python: list[str]) -> None:
    said = documents.run("docs/own-data.md", tmp_path, python)
    assert "clips of 1 videos, 0 skipped" in said and "GFLOP" in said


@pytest.mark.slow
def test_memory(tmp_path: Path, python: list[str]) -> None:
    assert "chosen" in documents.run("docs/memory.md", tmp_path, python)
