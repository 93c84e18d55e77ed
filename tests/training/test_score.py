"""The score of a bundle: its table, its sheets, and the command on a tiny bundle."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hallo3.cli.studio import app
from hallo3.errors import UserError
from hallo3.training.score import Extent, contact_sheet, score_bundle
from hallo3.training.score_table import BARS, Score, over, passes, report, write_scores


def test_bars_hold_at_both_ends() -> None:
    assert [passes("amplitude", value) for value in (0.69, 0.7, 1.4, 1.41)] == [False, True, True, False]
    assert [passes("sync", value) for value in (0.84, 0.85)] == [False, True]
    assert [passes("lag", value) for value in (1, 2)] == [True, False]
    assert passes("mouth shape", -1), "what has no bar can't miss it"


def test_medians_leave_out_where_nothing_was_to_measure() -> None:
    (score,) = over("sync", [0.1, np.nan, 0.5, 0.9], [1.0, 0.8, np.nan, 0.9]).values()
    assert (score.value, score.truth) == (0.5, 0.9) and score.low == 0.1 and score.high == 0.9
    assert over("seams", [np.nan, np.nan]) == {}
    (share,) = over("text control", [1, 0, 1, 1], statistic=np.mean).values()
    assert share.value == 0.75 and share.truth is None


def test_the_table_shows_value_interval_truth_and_bar(capsys: pytest.CaptureFixture[str]) -> None:
    report({"sync": Score(0.5, 0.4, 0.6, 0.98), "light": Score(2.0), "lag": Score(0.0)})
    lines = capsys.readouterr().out.splitlines()
    (sync,) = (line for line in lines if "sync" in line)
    assert all(part in sync for part in ("0.500", "0.400 … 0.600", "0.980", "≥ 0.85", "NOT met"))
    (light,) = (line for line in lines if "light" in line)
    assert "2.000" in light and "met" not in light
    assert any("lag" in line and "≤ 1" in line and " met" in line for line in lines)


def test_the_table_as_json(tmp_path: Path) -> None:
    scores = {"sync": Score(0.5, 0.4, 0.6, 0.98), "light": Score(2.0), "seams": Score(1.1)}
    write_scores(tmp_path / "scores.json", scores, {"bundle": "mine"})
    found = json.loads((tmp_path / "scores.json").read_text())
    assert found["bundle"] == "mine"
    sync = {"value": 0.5, "low": 0.4, "high": 0.6, "truth": 0.98, "bar": [0.85, None], "met": False}
    assert found["scores"]["sync"] == sync
    assert found["scores"]["light"] == {
        "value": 2.0,
        "low": None,
        "high": None,
        "truth": None,
        "bar": None,
        "met": None,
    }
    assert found["scores"]["seams"]["met"] is True


def test_sheets_show_every_video() -> None:
    videos = [np.random.default_rng(seed).integers(0, 255, (20, 128, 192, 3)).astype(np.uint8) for seed in range(3)]
    sheet = np.asarray(contact_sheet(videos, columns=4))
    assert sheet.shape == (3 * 128, 4 * 192, 3)
    assert np.array_equal(sheet[:128, :192], videos[0][0]) and np.array_equal(sheet[-128:, -192:], videos[2][-1])


def test_the_command_has_an_option_for_every_extent() -> None:
    """None appears or goes unnoticed."""
    (command,) = (one for one in app.registered_commands if one.callback and one.callback.__name__ == "score")
    names = set(command.callback.__annotations__) - {"return"}
    extent = {"count", "seconds", "still", "poses", "pairs", "long", "long_count"}
    assert names == extent | {"bundle", "out", "json_file", "photographs", "recordings"}


@pytest.mark.parametrize("inside", ["", "sheets"])
def test_sheets_need_a_folder(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="this is a file"):
        score_bundle("embedded", tmp_path / "file" / inside, Extent())


@pytest.mark.slow
def test_command(tiny_bundle: Path, recordings: Path, tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    command = [sys.executable, "-m", "hallo3", "studio", "score", str(tiny_bundle), "--out", str(tmp_path)]
    few = ["--count", "2", "--seconds", "0.6", "--still", "0", "--poses", "1", "--pairs", "1", "--long", "4"]
    into = ["--json", str(tmp_path / "mine.json"), "--recordings", str(recordings)]
    done = subprocess.run([*command, *few, *into], capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stderr  # random weights meet no bar
    assert "NOT met" in done.stdout and "8 of 8 videos" in done.stderr
    found = json.loads((tmp_path / "mine.json").read_text())
    assert found["count"] == 2 and not (tmp_path / "scores.json").exists()
    views = {"profile sync", "high view sync", "low view sync"}
    assert set(BARS) - set(found["scores"]) == {name for name in BARS if "photograph" in name} | {"still areas"}
    poses = {name.replace("sync", "pose") for name in views}
    assert views | poses | {"identity", "identity slope", "light", "subject dynamics", "mouth shape"} <= set(
        found["scores"]
    )
    assert all(score["truth"] is not None for score in found["scores"].values())
    assert Image.open(tmp_path / "drawn.png").width > 0
    for wrong, word in (("--photographs", "holds no .jpg"), ("--json", "folder")):
        refused = subprocess.run(
            [*command, *few, wrong, str(tmp_path / "photographs")], capture_output=True, text=True, timeout=300
        )
        assert refused.returncode == 2 and word in refused.stderr and "Traceback" not in refused.stderr
