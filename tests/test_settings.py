"""What a job may ask for: one range and one line for a mistake, wherever it is made."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from hallo3.animation import AnimationRequest, check_settings
from hallo3.batch import read_rows
from hallo3.errors import UserError
from hallo3.settings import EXPECTED, Settings, read_settings

FAR = [math.nan, math.inf, 1e308, -1e308, 100.5]
WRONG: list[tuple[str, Any, str]] = [
    ("prompt", "a" * 4001, "at most 4000 characters"),
    ("prompt", "a woman \ud800", "text"),
    ("seed", -1, "--seed -1: must be between 0 and 9223372036854775807"),
    ("seed", 1 << 63, "must be between"),
    ("quality", "best", "--quality best: must be exact, high or draft"),
    ("steps", 0, "--steps 0: must be between 1 and 1000; 20 to 50 are usual"),
    ("steps", 1001, "must be between"),
    *((f"{name}_scale", value, "between -100 and 100") for name in ("speech", "text", "reference") for value in FAR),
    ("framing", "round", "--framing round: must be auto, pad or crop"),
    ("crf", 0, "--crf 0: must be between 1 (nearly lossless) and 51; 18 is the default"),
    ("crf", 52, "must be between"),
    ("face", -1, "--face -1: must be the number of a face"),
    ("face_box", (1.0, 2.0, math.nan, 4.0), "--face-box: needs X Y W H"),
]


@pytest.mark.parametrize(
    ("name", "value", "words"), WRONG, ids=lambda value: str(value)[:20].encode("ascii", "replace")
)
def test_one_line_wherever_it_is_asked(tmp_path: Path, name: str, value: Any, words: str) -> None:
    with pytest.raises(UserError) as form:
        read_settings({name: value})
    line = str(form.value)
    assert words in line and line.startswith(f"--{name.replace('_', '-')}") and "\n" not in line and len(line) < 200
    of_request = {"face_index" if name == "face" else name: value}
    with pytest.raises(UserError) as command:
        check_settings(AnimationRequest(Path("p.png"), Path("s.wav"), Path("o.mp4"), **of_request))
    assert str(command.value) == line
    line.encode()  # whatever was given
    row = json.dumps({"portrait": "p.png", "speech": "s.wav", name: value})
    (tmp_path / "rows.jsonl").write_text(row)
    _, (failed,) = read_rows(tmp_path / "rows.jsonl")
    assert failed.error == line


def test_text_where_a_number_belongs() -> None:
    with pytest.raises(UserError, match=r"^--steps many: must be between 1 and 1000"):
        read_settings({"steps": "many"})
    with pytest.raises(UserError, match=r"^--crf \(empty\): must be"):
        read_settings({"crf": " "})
    with pytest.raises(UserError, match=r"^--face-box: needs X Y W H"):
        read_settings({"face_box": "1 2 3"})


def test_the_ends_of_the_ranges() -> None:
    for values in ({"steps": 1, "crf": 1, "seed": 0}, {"steps": 1000, "crf": 51, "seed": (1 << 63) - 1}):
        assert read_settings(values).model_dump(include=set(values)) == values
    assert read_settings({"speech_scale": "-100", "text_scale": 100, "reference_scale": 0}).speech_scale == -100


def test_a_face_and_none() -> None:
    for face in ({"face": 0}, {"face_box": "1 2 30 40"}):
        with pytest.raises(UserError, match="--no-face goes without --face-box and --face"):
            read_settings({"no_face": True, **face})


def test_every_setting_says_what_it_expects() -> None:
    assert list(EXPECTED) == list(Settings.model_fields)
