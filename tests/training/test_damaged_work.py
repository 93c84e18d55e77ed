"""What people find on their disk after a full one, a wrong hand or a wrong folder: each is one line, none a bug."""

from pathlib import Path

import pytest
import yaml

from hallo3.cli import main
from hallo3.errors import UserError
from hallo3.studio.dataset import check_settings
from hallo3.training.ablation import NOTED, Ablation, check_work, read_ablation, was_adopted
from hallo3.training.ablation_report import _drawings
from hallo3.training.embedded import Recipe, training_notes
from hallo3.training.loop import LoopSettings
from hallo3.training.phases import Phase

PHASE = {"trains": [r"^denoiser\."], "speech": True, "clip_frames": 9, "loop": {"steps": 1}}
DAMAGED = ["", "[]", '{"made_with": {"clips"', '{"made_with": 3, "adopted": false}', "\udcff"]


def ablation(out: Path) -> Ablation:
    phase = Phase(trains=(r"^denoiser\.",), speech=True, clip_frames=9, loop=LoopSettings(steps=1))
    return Ablation(out=out, phase=phase, clips=2, frames=9)


def refused(said: str, *words: str) -> bool:
    return said.count("\n") == 1 and "a bug" not in said and all(word in said for word in words)


@pytest.mark.parametrize("lacks", ["transformer", "config.json"])
def test_a_bundle_without_a_transformer(
    tiny_bundle: Path, tmp_path: Path, lacks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, settings = tmp_path / "bundle", tmp_path / "a.yaml"
    for path in tiny_bundle.rglob("*"):
        if path.is_file() and "transformer" not in path.parts:
            (bundle / path.relative_to(tiny_bundle)).parent.mkdir(parents=True, exist_ok=True)
            (bundle / path.relative_to(tiny_bundle)).symlink_to(path)
    if lacks == "config.json":
        (bundle / "transformer").mkdir()
        (bundle / "transformer" / "config.json").write_text('{"num_layers"')
    settings.write_text(yaml.safe_dump({"clips": 2, "frames": 9, "phase": PHASE}))
    for plan in ([], ["--plan"]):
        assert main(["ablate", str(settings), f"out={tmp_path / 'out'}", f"bundle={bundle}", *plan]) == 2
        assert refused(capsys.readouterr().err, str(bundle), lacks)
    assert not (tmp_path / "out").exists()


def test_a_plan_of_what_would_be_refused(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It writes nothing itself, and counts no trainings of other settings as done."""
    settings, out = tmp_path / "a.yaml", tmp_path / "out"
    settings.write_text(yaml.safe_dump({"clips": 2, "frames": 9, "phase": PHASE}))
    plan = ["ablate", str(settings), f"out={out}", f"bundle={tiny_bundle}", "--plan"]
    assert main(plan) == 0 and not out.exists()
    check_work(read_ablation(settings, plan[2:4]))
    assert main(plan) == 0 and main([*plan, "clips=3"]) == 2
    assert refused(capsys.readouterr().err, "clips=2, not 3")
    (out / NOTED).unlink()
    (out / "runs").mkdir()
    assert main(plan) == 2 and refused(capsys.readouterr().err, "--adopt")
    assert main([*plan, "--adopt"]) == 0 and not (out / NOTED).exists()


@pytest.mark.parametrize("text", ["{}", *DAMAGED])
def test_notes_of_a_comparison(tmp_path: Path, text: str) -> None:
    (tmp_path / NOTED).write_bytes(text.encode(errors="surrogateescape"))
    for read in (check_work, was_adopted):
        with pytest.raises(UserError, match=rf"{NOTED}: is damaged.*--adopt"):
            read(ablation(tmp_path))


@pytest.mark.parametrize("text", DAMAGED)
def test_notes_of_a_dataset(tmp_path: Path, text: str) -> None:
    noted = tmp_path / "data" / "dataset.json"
    noted.parent.mkdir()
    noted.write_bytes(text.encode(errors="surrogateescape"))
    damaged = "is damaged" if text != DAMAGED[3] else "was made with"  # that one is whole, but another's
    with pytest.raises(UserError, match=rf"dataset.json: .*{damaged}"):
        check_settings(noted, {"seed": 0})
    if damaged == "is damaged":
        with pytest.raises(UserError, match="is damaged"):
            _drawings(ablation(tmp_path))


def test_a_folder_that_nobody_can_make(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["studio", "score", "--out", "/proc/sheets"]) == 2
    assert refused(capsys.readouterr().err, "/proc/sheets", "--out")


def test_the_command_of_a_training_names_what_it_was_given(tmp_path: Path) -> None:
    def told(**given: Path) -> str:
        return training_notes(Recipe(tmp_path, **given))["command"]

    assert told().endswith("--processes 2")
    both = told(portraits=tmp_path / "faces", recordings=tmp_path / "voices")
    assert both == f"{told()} --portraits FOLDER --recordings FOLDER"
