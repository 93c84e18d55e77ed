"""Odd surroundings: no home folder, places that take no file, strange and long names, links, two runs on one output."""

import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from hallo3.media.credentials import read_credentials
from hallo3.media.video import probe
from waiting import held_while

VAE = Path(__file__).parents[1] / "data" / "golden" / "vae" / "vae" / "3d-vae.pt"


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


def test_a_closed_folder(place: Path) -> None:
    """For the superuser too, once the right to pass by a folder's mode is taken away."""
    closed = place / "closed"
    closed.mkdir(mode=0o500)
    fewer = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if os.geteuid() == 0 else []
    can = not fewer or (
        shutil.which("setpriv") and subprocess.run([*fewer, "true"], capture_output=True).returncode == 0
    )
    if not can:
        pytest.skip("the superuser may write anywhere, and setpriv (util-linux) can't take that away here")
    commands = {
        "animate": words("closed/out.mp4")[2:],
        "batch": ["hallo3", "batch", "rows.jsonl", "--out", "closed/out", "--bundle", "bundle", "--no-face"],
        "again": ["hallo3", "batch", "rows.jsonl", "--out", "closed", "--bundle", "bundle", "--no-face"],
        "convert": ["hallo3", "convert", "--vae", str(VAE), "--out", "closed/b"],
    }
    (place / "rows.jsonl").write_text('{"portrait": "portrait.png", "speech": "speech.wav"}')
    for name, given in commands.items():
        done = subprocess.run([*fewer, sys.executable, "-m", *given], cwd=place, capture_output=True, timeout=300)
        assert done.returncode == 2 and b"be written (permission denied)" in done.stderr, (name, done.stderr)
        assert len(done.stderr.splitlines()) == 1
    assert os.listdir(closed) == []


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


def hallo3(place: Path, *more: str | bytes, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Any command, in an environment with these variables."""
    given = os.environ | {"PYTHONIOENCODING": "utf-8:strict"} | environment
    return subprocess.run([sys.executable, "-m", "hallo3", *more], cwd=place, env=given, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("shown", ["lines", "--json"])
def test_every_command_prints_names_that_are_not_text(place: Path, tiny_bundle: Path, shown: str) -> None:
    """As in a locale of UTF-8, where Python's standard output refuses what stands for other bytes."""
    kinds = ("in.png", "bundle", "video.mp4", "rows.csv", "out")
    names = {kind: os.fsdecode(b"n\xe4me-" + kind.encode()) for kind in kinds}
    (place / names["in.png"]).write_bytes((place / "portrait.png").read_bytes())
    (place / names["rows.csv"]).write_text("portrait,speech\nportrait.png,speech.wav\nportrait.png,gone.wav\n")
    home = place / os.fsdecode(b"h\xf6me")
    (home / "bundles").mkdir(parents=True, exist_ok=True)
    for link in (place / names["bundle"], home / "bundles" / names["bundle"]):
        if not link.is_symlink():
            link.symlink_to(tiny_bundle)
    look = ["--no-face", "--steps", "1", "--overwrite", "--bundle", "bundle"]
    more = [shown] if shown == "--json" else []
    commands: dict[str, list[str]] = {
        "animate": [names["in.png"], "speech.wav", "-o", names["video.mp4"], *look, *more],
        "inspect": [names["video.mp4"], *more],
        "batch": [names["rows.csv"], "--out", names["out"], *look, *more],
        "plan": [names["bundle"], *more],
        "bundles": more,
        "verify": [names["bundle"], names["out"]],
        "convert": ["--out", names["out"], "--denoiser", names["in.png"]],
    }
    expected = {"batch": 1, "verify": 2, "convert": 2}
    for name, given in commands.items():
        done = hallo3(place, name, *given, HALLO3_HOME=str(home))
        assert done.returncode == expected.get(name, 0), (name, done.stderr)
        said = done.stdout + done.stderr
        assert b"a bug in hallo3" not in said and b"Traceback" not in said, said
        if more and name not in ("verify", "convert"):
            texts = [json.loads(line) for line in done.stdout.decode("ascii").splitlines()]
            assert texts, name
        elif name in ("animate", "batch", "bundles", "verify", "convert"):
            assert b"\\udce4me" in said, (name, said)


def nobody(place: Path, *commands: list[str], **environment: str) -> list[tuple[int, str]]:
    """Exit codes and words of commands for a user without any home: no HOME, and none in the system's list either."""
    script = """
import contextlib, io, json, pwd, sys
def unknown(uid): raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
from hallo3.cli import main
for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(words)
    print(json.dumps([code, said.getvalue()]), flush=True)
"""
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "HALLO3_", "HOME"))}
    command = [sys.executable, "-c", script, json.dumps(commands)]
    done = subprocess.run(command, cwd=place, env=bare | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, {"HALLO3_HOME": "~nobody-of-this-name/x"}], ids=["none", "of nobody"])
def test_without_any_home(place: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    """What needs no home works; what does says in a line what to set."""
    made = ["--no-face", "--steps", "1", "-q", "--i-have-the-rights", "--overwrite"]
    bundle, rows = str(place / "bundle"), tmp_path / "rows.csv"
    rows.write_text(f"portrait,speech\n{place / 'portrait.png'},{place / 'speech.wav'}\n")
    inputs = ["animate", "portrait.png", "speech.wav", "-o", "homeless.mp4", *made]
    works = [
        ["bundles"],
        ["plan", "embedded"],
        ["plan", bundle],
        [*inputs, "--no-credentials", "--bundle", bundle],
        ["batch", str(rows), "--out", str(tmp_path / "out"), *made, "--no-credentials", "--bundle", bundle],
        ["inspect", "homeless.mp4"],
        ["bench", bundle, "--repeats", "1", "--steps", "1"],
    ]
    refused = [
        [*inputs, "--bundle", bundle],
        ["plan", "some-name"],
        ["animate", "portrait.png", "speech.wav", "-o", "homeless.mp4", *made, "--no-credentials", "--bundle", "~no/x"],
        ["serve", "--port", "0", "--bundle", bundle],
        ["web", "--port", "0", "--bundle", bundle],
        ["download", "hallo3"],
        ["verify", "some-name", "gone"],
        ["convert", "--published", "nosuch", "--out", "b"],
        ["train", "gone.yaml"],
        ["ablate", "gone.yaml"],
        ["studio", "render", "-o", "/proc/x.mp4"],
    ]
    answers = nobody(place, *works, *refused, ["doctor"], **environment)
    assert len(answers) == len(works) + len(refused) + 1
    for words, (code, said) in zip([*works, *refused], answers, strict=False):
        assert "a bug in hallo3" not in said and "Traceback" not in said, (words, said)
        assert code == (0 if words in works else 2), (words, said)
    for place_of in (0, 3, 4):
        assert "HALLO3_HOME" in answers[len(works) + place_of][1]
    _, found = answers[-1]
    assert "room for models" in found and "no home folder" in found and "a bug" not in found


def limited(size: int | None) -> Callable[[], None]:
    """For a process: no file can grow beyond so many bytes, as on a full disk."""
    return lambda: size is not None and resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_in_a_batch(place: Path) -> None:
    """Each row says so in a line without --resume, which a batch has not; with room, the same command makes them."""
    (place / "full.jsonl").write_text(
        "".join(f'{{"portrait": "portrait.png", "speech": "speech.wav", "name": "{name}"}}\n' for name in "ab")
    )
    command = ["batch", "full.jsonl", "--out", "full", "--bundle", "bundle", "--no-face", "--steps", "1", "-q"]
    whole = [sys.executable, "-m", "hallo3", *command]

    def given(size: int | None) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(whole, cwd=place, capture_output=True, timeout=300, preexec_fn=limited(size))

    one_line(given(50), "results.jsonl: cannot be written", "make room, then give the same command again")
    assert not (place / "full" / "results.jsonl").exists()
    failed = given(3000)
    assert failed.returncode == 1 and b"Traceback" not in failed.stderr
    outcomes = [json.loads(line) for line in (place / "full" / "results.jsonl").read_text().splitlines()]
    assert [one["status"] for one in outcomes] == ["failed", "failed"]
    assert all("make room" in one["error"] and "--resume" not in one["error"] for one in outcomes), outcomes
    assert not list((place / "full").glob("*.mp4"))
    assert given(None).returncode == 0
    assert sorted(path.name for path in (place / "full").iterdir()) == ["a.mp4", "b.mp4", "results.jsonl"]


@pytest.mark.parametrize("size", [200, 100_000])
def test_a_full_disk_in_a_conversion(tmp_path: Path, size: int) -> None:
    """Nothing is left under the bundle's name or beside it; with room, the same command makes it."""
    command = [sys.executable, "-m", "hallo3", "convert", "--vae", str(VAE), "--out", "bundle", "-q"]
    full = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=300, preexec_fn=limited(size))
    one_line(full, "bundle: can't be written", "make room, then give the same command again")
    assert os.listdir(tmp_path) == []
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=300)
    assert again.returncode == 0 and os.listdir(tmp_path) == ["bundle"], again.stderr


JUMP = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long jump(void) {
    FILE *file = fopen(getenv("CLOCK_JUMP"), "r");
    long seconds = 0;
    if (file) { if (fscanf(file, "%ld", &seconds) != 1) seconds = 0; fclose(file); }
    return seconds;
}

int clock_gettime(clockid_t which, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(which, now);
    if (!result && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) now->tv_sec += jump();
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec; now->tv_usec = found.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now) *now = found.tv_sec;
    return found.tv_sec;
}
"""


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that shifts the clock of a process by the seconds in the file that CLOCK_JUMP names."""
    if sys.platform != "linux" or shutil.which("cc") is None:
        pytest.skip("the clock of one process is moved by a library that cc makes, on Linux")
    folder = tmp_path_factory.mktemp("clock")
    (folder / "jump.c").write_text(JUMP)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "jump.so", folder / "jump.c", "-ldl"], check=True)
    return folder / "jump.so"


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [20 * 365 * 86_400, -20 * 365 * 86_400], ids=["forward", "back"])
@pytest.mark.parametrize("command", ["animate", "batch"])
def test_the_clock_jumps_meanwhile(place: Path, shifted: Path, tmp_path: Path, command: str, seconds: int) -> None:
    """Twenty years, when the first clip is done: the video is whole and signed, and no duration is of another clock."""
    jump, out = tmp_path / "jump", tmp_path / "out.mp4"
    (tmp_path / "rows.jsonl").write_text(json.dumps({"portrait": str(place / "portrait.png"), "speech": "s.wav"}))
    tiny.write_wav(tmp_path / "s.wav", tiny.speech(0.9))
    given = {
        "animate": [str(place / "portrait.png"), str(tmp_path / "s.wav"), "-o", str(out)],
        "batch": [str(tmp_path / "rows.jsonl"), "--out", str(tmp_path)],
    }[command]
    more, brake = ["--bundle", "bundle", "--no-face", "--json"], tmp_path / "brake"
    brake.touch()  # before the third of four clips, of two steps each, it waits for the jump
    where = {"LD_PRELOAD": str(shifted), "CLOCK_JUMP": str(jump), "XDG_CONFIG_HOME": str(tmp_path / "settings")}
    began = time.monotonic()
    run = subprocess.Popen(
        held_while(brake, "-m", "hallo3", command, *given, *more, calls=4),
        cwd=place, env=os.environ | where, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert run.stdout is not None and run.stderr is not None
    events = []
    for line in run.stdout:
        events.append(json.loads(line))
        if events[-1]["event"] == "clip" and not jump.exists():
            jump.write_text(str(seconds))
            brake.unlink()
    assert run.wait(300) == 0, run.stderr.read()
    elapsed = time.monotonic() - began
    assert [event["event"] for event in events].count("clip") == 4 and events[-1]["event"] == "done"
    assert 0 < events[-1]["took"] <= elapsed
    assert all(0 <= event["seconds_left"] < 100 * elapsed for event in events if "seconds_left" in event)
    if command == "batch":
        (outcome,) = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
        assert outcome["status"] == "done" and 0 < outcome["took"] <= elapsed
        out = tmp_path / outcome["output"]
    signed = read_credentials(out)
    assert probe(out).frames == 23 and signed is not None and signed.record is not None


def test_two_runs_on_one_output(place: Path) -> None:
    """One makes it, and the other is told; whichever is first."""
    runs = [subprocess.Popen(words("two.mp4", "--steps", "60"), cwd=place, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [run.communicate(timeout=300)[1].decode() for run in runs]
    codes = sorted(run.returncode for run in runs)
    assert codes == [0, 2], errors
    told = max(errors, key=len)
    assert "two.mp4" in told and "Traceback" not in told and len(told.strip().splitlines()) == 1
    assert probe(place / "two.mp4").frames == 10
