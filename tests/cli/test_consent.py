"""Before the first video: the statement of rights, once, by whom it must be made and where it is kept."""

import json
import os
import pty
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from hallo3 import consent
from hallo3.bundles.places import embedded_bundle
from hallo3.cli import main
from hallo3.cli.animate import require_rights
from hallo3.errors import UserError


@pytest.fixture(autouse=True)
def nobody_has_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(consent.VARIABLE, raising=False)
    monkeypatch.setenv("HALLO3_HOME", str(tmp_path / "home"))


@pytest.fixture
def portrait(tmp_path: Path) -> Path:
    tiny.portrait().save(tmp_path / "portrait.png")
    return tmp_path / "portrait.png"


def test_nothing_is_made_without_it(portrait: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speech = tiny.write_wav(tmp_path / "speech.wav", tiny.speech(0.5))
    assert main(["animate", str(portrait), str(speech), "-o", str(tmp_path / "out.mp4")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and consent.OPTION in said and consent.VARIABLE in said
    assert not (tmp_path / "out.mp4").exists() and not consent.stated()


def test_said_once_it_is_remembered(portrait: Path, tmp_path: Path) -> None:
    require_rights(portrait, True)
    require_rights(portrait, False)
    kept = tmp_path / "home" / "consent.json"
    assert json.loads(kept.read_text())["statement"] == consent.STATEMENT
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    kept.write_text("{}")
    with pytest.raises(UserError):
        require_rights(portrait, False)


def test_the_environment_states_it_for_one_process(
    portrait: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(consent.VARIABLE, "1")
    require_rights(portrait, False)
    monkeypatch.setenv(consent.VARIABLE, "0")
    with pytest.raises(UserError):
        require_rights(portrait, False)
    assert not (tmp_path / "home").exists()


def test_the_drawn_sample_needs_none() -> None:
    require_rights(embedded_bundle() / "sample" / "portrait.png", False)


def test_where_it_cannot_be_kept_it_holds_for_the_run(
    portrait: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").write_text("a file")
    require_rights(portrait, True)
    assert "this run only" in capsys.readouterr().err


@pytest.mark.parametrize("answer", ["y", "n"])
def test_on_a_terminal_it_is_asked(answer: str, portrait: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    code = "from pathlib import Path; from hallo3.cli.animate import require_rights; require_rights(Path({!r}), False)"
    process = subprocess.Popen(
        [sys.executable, "-c", code.format(str(portrait))], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    while b"[y/N]" not in shown:
        shown += os.read(ours, 1000)
    os.write(ours, f"{answer}\n".encode())
    assert (process.wait(120) == 0) == (answer == "y") == consent.stated()
    os.close(ours)
    assert "right to animate" in " ".join(shown.decode().split())
