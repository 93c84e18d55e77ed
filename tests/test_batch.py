"""Many videos from one file: every format, bad rows, what is kept, and a batch that is killed and given again."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from hallo3 import consent
from hallo3.animation import load
from hallo3.batch import Outcome, read_rows, run_batch
from hallo3.cli import main
from hallo3.errors import UserError
from hallo3.media.files import safe_name
from hallo3.media.provenance import read_provenance
from hallo3.media.video import VideoWriter, probe, read_video
from waiting import killed_at

NO_FACE = {"no_face": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a portrait and two recordings beside the batch, which is given from elsewhere."""
    beside = tmp_path / "beside"
    beside.mkdir()
    tiny.portrait().save(beside / "anna.png")
    for name, seconds in (("hello", 0.4), ("bye", 0.5)):
        tiny.write_wav(beside / f"{name}.wav", tiny.speech(seconds))
    return beside


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_three_formats_say_the_same(folder: Path) -> None:
    rows = [
        read_rows(file)[0]
        for file in (
            write(folder, "a.csv", '\ufeffportrait, speech,prompt,seed\nanna.png,hello.wav,"a woman, talks",\n'),
            write(folder, "b.jsonl", '\n{"portrait": "anna.png", "speech": "hello.wav", "prompt": "a woman, talks"}\n'),
            write(folder, "c.txt", "a woman, talks@@anna.png@@hello.wav\r\n\r\n"),
        )
    ]
    assert [len(found) for found in rows] == [1, 1, 1]
    for (row,) in rows:
        assert (row.portrait, row.speech) == (folder / "anna.png", folder / "hello.wav")
        assert row.settings.prompt == "a woman, talks" and row.settings.seed == 0 and row.name == "anna_hello"
    assert [found[0].line for found in rows] == [2, 2, 1]


def test_rows_have_settings_and_defaults_stand_back(folder: Path) -> None:
    text = "portrait,speech,seed,face_box,steps\nanna.png,hello.wav,3,8 8 30.5 30,\nanna.png,hello.wav,,,7\n"
    (first, second), failed = read_rows(write(folder, "a.csv", text), {"seed": 9, "steps": 2})
    assert not failed
    assert first.settings.model_dump(include={"seed", "steps", "face_box"}) == {
        **{"seed": 3, "steps": 2, "face_box": (8.0, 8.0, 30.5, 30.0)}
    }
    assert (second.settings.seed, second.settings.steps, second.settings.face_box) == (9, 7, None)
    assert (first.name, second.name) == ("anna_hello", "anna_hello_2")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", ["no JSON"]),
        ("[" * 100_000, ["no JSON"]),
        ("7", ["no JSON object"]),
        ('{"portrait": "a.png"}', ["speech", "path of a file"]),
        ('{"portrait": "a.png", "speech": 5}', ["speech"]),
        ('{"portrait": "a.png", "speech": "s.wav", "sed": 1}', ["sed", "no such setting", "seed"]),
        ('{"portrait": "a.png", "speech": "s.wav", "seed": -1}', ["seed", "-1"]),
        ('{"portrait": "a.png", "speech": "s.wav", "steps": "many"}', ["steps", "many"]),
        ('{"portrait": "a.png", "speech": "s.wav", "speech_scale": NaN}', ["--speech-scale", "nan"]),
        ('{"portrait": "a.png", "speech": "s.wav", "framing": "round"}', ["framing", "round"]),
        ('{"portrait": "a.png", "speech": "s.wav", "face_box": [1, 2]}', ["--face-box"]),
        ('{"portrait": "a.png", "speech": "s.wav", "prompt": "\\ud800"}', ["prompt"]),
        ('{"portrait": "a.png", "speech": "s.wav", "name": "ONE"}', ["name", "taken by line 1"]),
        ('{"portrait": "a.png", "speech": "s.wav", "\\ud800": 1}', ["\\ud800", "no such setting"]),
    ],
)
def test_a_bad_row_is_one_line_and_the_rest_is_read(row: str, words: list[str], folder: Path) -> None:
    good = '{"portrait": "anna.png", "speech": "hello.wav", "name": "%s"}'
    rows, failed = read_rows(write(folder, "a.jsonl", "\n".join([good % "one", row, good % "two"])))
    assert [found.name for found in rows] == ["one", "two"]
    (bad,) = failed
    assert (bad.line, bad.status) == (2, "failed") and bad.error is not None and "\n" not in bad.error
    for word in words:
        assert word in bad.error, bad.error


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("a.csv", "portrait,words\n", "lacks speech"),
        ("a.csv", "portrait,speech,sed\n", "'sed'"),
        ("a.csv", "portrait,speech,portrait\n", "twice"),
        ("a.csv", "portrait;speech\na;b\n", "commas"),
        ("a.csv", 'portrait,speech\n"a,b\n', "quotes"),
        ("a.csv", "portrait,speech\n", "no rows"),
        ("a.jsonl", "\n \n", "no rows"),
        ("a.txt", "", "empty"),
        ("a.xlsx", "x", ".csv"),
    ],
)
def test_a_mistake_in_the_file_itself(
    name: str, text: str, word: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["batch", str(write(folder, name, text)), "--out", str(folder / "out")]) == 2
    said = capsys.readouterr().err
    assert word in said and said.count("\n") == 1 and not (folder / "out").exists()


def test_a_file_that_is_not_utf_8(folder: Path) -> None:
    (folder / "a.txt").write_bytes("ä@@a@@b".encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        read_rows(folder / "a.txt")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("../../etc/passwd", "_.._etc_passwd"),
        ("/abs", "_abs"),
        (".hidden", "hidden"),
        ("C:\\x:y", "C__x_y"),
        ("a\n\x00b", "a__b"),
        ("..", "video"),
        ("Zoë 1.take", "Zoë 1.take"),
        ("é" * 300, "é" * 50),
    ],
)
def test_names_stay_in_the_folder(given: str, name: str) -> None:
    assert safe_name(given) == name


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--steps", "0"], "--steps"),
        (["--seed", "-1"], "--seed"),
        (["--crf", "99"], "--crf"),
        (["--certificate", "no.pem"], "--private-key"),
        (["--vocal-separator", "x.onnx"], "--separate-vocals"),
        (["--quiet", "--json"], "--quiet"),
        (["--bundle", "no-such-bundle"], "no-such-bundle"),
    ],
)
def test_a_mistake_in_the_command(
    options: list[str], word: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(folder, "a.txt", "@@anna.png@@hello.wav")
    assert main(["batch", str(file), "--out", str(folder / "out"), *options]) == 2
    assert word in capsys.readouterr().err.splitlines()[-1]


def test_rights_are_asked_once_for_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(consent.VARIABLE, raising=False)
    monkeypatch.setenv("HALLO3_HOME", str(folder / "home"))
    file = write(folder, "a.txt", "@@anna.png@@hello.wav\n@@anna.png@@bye.wav")
    assert main(["batch", str(file), "--out", str(folder / "out")]) == 2
    said = capsys.readouterr().err
    assert consent.OPTION in said and said.count("\n") == 1 and not (folder / "out").exists()


def test_the_command(folder: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bad row, a missing file, a name that would lead elsewhere; given again, nothing is made anew."""
    (folder / "text.png").write_text("no picture" * 50)
    text = "name,portrait,speech,seed\n../up,anna.png,hello.wav,1\n,anna.png,nowhere.wav,2\n,text.png,bye.wav,3\n"
    file, out = write(folder, "a.csv", text + "fine.mp4,anna.png,bye.wav,4\nbad,anna.png,bye.wav,x\n"), folder / "out"
    words = ["batch", str(file), "--out", str(out), "--bundle", str(tiny_bundle), "--no-face"]
    assert main(words) == 1
    shown = capsys.readouterr()
    assert [(one["line"], one["status"], one["output"]) for one in lines_of(out)] == [
        (2, "done", "_up.mp4"),
        (3, "failed", None),
        (4, "failed", None),
        (5, "done", "fine.mp4"),
        (6, "failed", None),
    ]
    errors = {one["line"]: one["error"] for one in lines_of(out) if one["error"]}
    assert "nowhere.wav: no such file" in errors[3] and "not a picture" in errors[4] and "seed" in errors[6]
    for line, error in errors.items():
        assert f"line {line}: {error}" in shown.err and error in shown.out
    assert "2 done, 3 failed" in shown.out and "Traceback" not in shown.err
    assert sorted(path.name for path in out.iterdir()) == ["_up.mp4", "fine.mp4", "results.jsonl"]
    assert probe(out / "fine.mp4").frames == 13 and (read_provenance(out / "_up.mp4") or {})["seed"] == 1

    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.mp4")}
    write(
        folder,
        "a.csv",
        text.replace("up,anna.png,hello.wav,1", "up,anna.png,hello.wav,9") + "fine,anna.png,bye.wav,4\n",
    )
    assert main([*words, "--json"]) == 1
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {one["line"]: one["status"] for one in lines_of(out)} == {2: "failed", 3: "failed", 4: "failed", 5: "kept"}
    assert any(event["event"] == "failed" and "--overwrite" in event["message"] for event in events)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.mp4")} == before


def test_one_model_for_all_and_none_for_nothing(folder: Path, tiny_bundle: Path) -> None:
    loaded = []

    def loading() -> Any:
        loaded.append(load(str(tiny_bundle), device="cpu"))
        return loaded[-1]

    rows, _ = read_rows(write(folder, "a.txt", "@@anna.png@@hello.wav\n@@anna.png@@bye.wav"), NO_FACE)
    common = {"bundle": str(tiny_bundle)}
    first = run_batch(rows, folder / "out", load=loading, common=common)
    assert [outcome.status for outcome in first] == ["done", "done"] and len(loaded) == 1
    assert [outcome.frames for outcome in first] == [10, 13]
    again = run_batch(rows, folder / "out", load=loading, common=common, failed=[Outcome(9, "failed", error="x")])
    assert [outcome.status for outcome in again] == ["kept", "kept", "failed"] and len(loaded) == 1
    anew = run_batch(rows[:1], folder / "out", load=loading, common=common, overwrite=True)
    assert [outcome.status for outcome in anew] == ["done"] and len(loaded) == 2


@pytest.mark.slow
def test_killed_and_given_again(folder: Path, tiny_bundle: Path) -> None:
    """The second row is half made when the process dies: the first stays, the second goes on and equals a whole run."""
    file, out = write(folder, "a.txt", "@@anna.png@@hello.wav\n@@anna.png@@bye.wav\n"), folder / "out"
    words = ["-m", "hallo3", "batch", str(file), "--bundle", str(tiny_bundle)]
    words += ["--no-face", "--steps", "15", "--quiet", "--out"]
    command = [sys.executable, *words]
    # Its second clip is in the video, its state still tells of the first.
    killed = killed_at("os.rename", "*/anna_bye.mp4.part.state", 2, *words, str(out))
    assert subprocess.run(killed, timeout=300).returncode == -signal.SIGKILL
    assert (out / "anna_bye.mp4.part.state").exists() and not (out / "anna_bye.mp4").exists()
    assert [one["status"] for one in lines_of(out)] == ["done"]
    written = (out / "anna_hello.mp4").stat().st_mtime_ns
    whole = folder / "whole"
    whole.mkdir()
    shutil.copy(out / "anna_hello.mp4", whole)
    assert subprocess.run([*command, str(out)], timeout=300).returncode == 0
    assert [one["status"] for one in lines_of(out)] == ["kept", "done"]
    assert (out / "anna_hello.mp4").stat().st_mtime_ns == written
    assert subprocess.run([*command, str(whole)], timeout=300).returncode == 0
    assert (read_video(whole / "anna_bye.mp4").frames == read_video(out / "anna_bye.mp4").frames).all()
    assert not list(out.glob("*.part*"))


ODD = [
    "p\0.png",
    "\ud800.png",
    "\udcff.png",
    "",
    ".",
    "a" * 5000,
    "x/" * 3000,
    "/dev/zero",
    "~nobody/p.png",
    "\x1b[31m.png",
]


def test_odd_strings_in_rows_fail_alone(folder: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As paths and as names, through the command: every good row is made, every bad one is a line."""
    good = {"portrait": "anna.png", "speech": "hello.wav", "steps": 1}
    named = [{**good, "name": f"{number}{name}"} for number, name in enumerate(ODD) if len(name) > 4]
    bad = [{**good, key: path} for path in ODD for key in ("portrait", "speech")]
    rows = write(folder, "rows.jsonl", "\n".join(json.dumps(row) for row in [good, *bad, *named]))
    words = ["batch", str(rows), "--out", str(folder / "out"), "--bundle", str(tiny_bundle), "--no-face", "--json"]
    assert main(words) == 1
    said = capsys.readouterr()
    assert "a bug in hallo3" not in said.out + said.err and "Traceback" not in said.err
    outcomes = lines_of(folder / "out")
    assert [one["status"] for one in outcomes] == ["done"] + ["failed"] * len(bad) + ["done"] * len(named)
    assert all("\n" not in one["error"] for one in outcomes[1 : 1 + len(bad)])
    videos = {one["output"] for one in outcomes if one["output"]}
    assert {path.name for path in (folder / "out").iterdir()} == {"results.jsonl", *videos}


def test_a_forged_record_is_no_result_of_ours(folder: Path, tiny_bundle: Path) -> None:
    """What lies under a row's name may say anything of itself."""
    rows, _ = read_rows(write(folder, "a.jsonl", '{"portrait": "anna.png", "speech": "hello.wav", "no_face": true}'))
    (folder / "out").mkdir()
    for settings in (5, None, [], "x"):
        record = json.dumps({"software": "hallo3", "settings": settings})
        with VideoWriter(folder / "out" / "anna_hello.mp4", 64, 48, metadata={"description": record}) as writer:
            writer.write_clip(np.zeros((3, 48, 64, 3), np.uint8))
            writer.finish()
        (outcome,) = run_batch(rows, folder / "out", load=lambda: None, common={"bundle": str(tiny_bundle)})
        assert outcome.status == "failed" and "of other inputs or settings" in (outcome.error or "")
