"""Odd surroundings: no home folder, places that take no file, strange and long names, links, two runs on one output."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from hallo3.media.credentials import read_credentials
from hallo3.media.video import probe


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_bundle: Path) -> Path:
    folder = tmp_path_factory.mktemp("weather")
    tiny.portrait().save(folder / "portrait.png")
    tiny.write_wav(folder / "speech.wav", tiny.speech(0.4))
    (folder / "bundle").symlink_to(tiny_bundle)
    return folder


def words(output: str | bytes, *more: str, portrait: str | bytes = "portrait.png") -> list[str | bytes]:
    given = ["--bundle", "bundle", "--no-face", "--steps", "1", "-q", "--i-have-the-rights", *more]
    return [sys.executable, "-m", "hallo3", "animate", portrait, "speech.wav", "-o", output, *given]


def animate(place: Path, output: str | bytes, *more: str, **options) -> subprocess.CompletedProcess[bytes]:
    environment = options.pop("environment", os.environ)
    return subprocess.run(words(output, *more, **options), cwd=place, env=environment, capture_output=True, timeout=300)


def one_line(done: subprocess.CompletedProcess[bytes], *parts: str) -> None:
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    assert all(part in lines[0] for part in parts), lines[0]


def test_names_that_are_not_text_and_relative_paths(place: Path) -> None:
    portrait = b"portr\xe4t.png"
    (place / os.fsdecode(portrait)).write_bytes((place / "portrait.png").read_bytes())
    (place / "in").mkdir()
    done = animate(place, b"in/../in/\xff\xfe.mp4", portrait=portrait)
    assert done.returncode == 0, done.stderr
    made = place / "in" / os.fsdecode(b"\xff\xfe.mp4")
    assert probe(made).frames == 10
    signed = read_credentials(made)
    assert signed is not None and signed.state == "valid"
    one_line(animate(place, "x.mp4", portrait=b"gone\xff.png"), "no such file")


@pytest.mark.parametrize("length", [251, 300, 5000])
def test_names_longer_than_the_system_takes(place: Path, length: int) -> None:
    one_line(animate(place, "a" * length + ".mp4"), "name too long", "choose another")
    one_line(animate(place, "x.mp4", portrait="a" * length + ".png"), "no such file" if length == 251 else "too long")


def test_a_link_as_output_is_followed(place: Path) -> None:
    (place / "disk").mkdir()
    (place / "link.mp4").symlink_to("disk/there.mp4")
    assert animate(place, "link.mp4").returncode == 0
    assert (place / "link.mp4").is_symlink() and probe(place / "disk" / "there.mp4").frames == 10
    assert os.listdir(place / "disk") == ["there.mp4"]
    one_line(animate(place, "link.mp4"), "exists already", "--overwrite")
    (place / "round.mp4").symlink_to("round.mp4")
    one_line(animate(place, "round.mp4"), "leads to itself")
    (place / "nowhere.mp4").symlink_to("gone/there.mp4")
    one_line(animate(place, "nowhere.mp4"), "there is no folder")


def test_places_that_take_no_file(place: Path) -> None:
    one_line(animate(place, "/proc/out.mp4"), "cannot be written")
    os.mkfifo(place / "pipe.mp4")
    one_line(animate(place, "pipe.mp4", "--overwrite"), "a device or a pipe")
    assert stat.S_ISFIFO((place / "pipe.mp4").stat().st_mode)
    closed = place / "closed"
    closed.mkdir(mode=0o500)
    if not os.access(closed, os.W_OK):  # the superuser may write anywhere
        one_line(animate(place, "closed/out.mp4"), "cannot be written")


def test_an_input_is_never_replaced_by_the_result(place: Path) -> None:
    speech = (place / "speech.wav").read_bytes()
    (place / "speech.mp4").hardlink_to(place / "speech.wav")
    one_line(animate(place, "speech.mp4", "--overwrite"), "is the speech, too")
    assert (place / "speech.wav").read_bytes() == speech


def test_without_a_home_folder(place: Path) -> None:
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "HALLO3_"))}
    lost = animate(place, "lost.mp4", environment=bare | {"HOME": "/proc/nobody"})
    *notes, error = lost.stderr.decode().strip().splitlines()
    assert lost.returncode == 2 and "HALLO3_HOME" in error and all(line.startswith("note:") for line in notes)
    unsigned = animate(place, "lost.mp4", "--no-credentials", environment=bare | {"HOME": "/proc/nobody"})
    assert unsigned.returncode == 0 and probe(place / "lost.mp4").frames == 10


def test_two_runs_on_one_output(place: Path) -> None:
    """One makes it, and the other is told; whichever is first."""
    runs = [subprocess.Popen(words("two.mp4", "--steps", "60"), cwd=place, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [run.communicate(timeout=300)[1].decode() for run in runs]
    codes = sorted(run.returncode for run in runs)
    assert codes == [0, 2], errors
    told = max(errors, key=len)
    assert "two.mp4" in told and "Traceback" not in told and len(told.strip().splitlines()) == 1
    assert probe(place / "two.mp4").frames == 10
