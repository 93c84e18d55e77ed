"""The paper's comparisons: what is compared, that planted differences are told, and the command at a tiny size."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from hallo3.errors import UserError
from hallo3.evaluation.motion import part_change
from hallo3.evaluation.statistics import Estimate
from hallo3.training.ablation import (
    COMPARISONS,
    PUBLISHED,
    VARIANTS,
    Ablation,
    Run,
    Scales,
    Variant,
    check_ablation,
    check_work,
    folder,
    networks_of,
    phase_of,
    read_ablation,
    runs,
    train_all,
)
from hallo3.training.ablation_measures import FRONT, MOVING, RAW, Measured, Task, scenes_with_foreground, tasks
from hallo3.training.ablation_report import Answer, Results, answers, tables, write_report
from hallo3.training.loop import LoopSettings
from hallo3.training.phases import Phase, choose_parameters
from hallo3.training.score_cases import drawn_truth
from hallo3.training.score_drawn import COMPARED

SETTINGS = {
    "clips": 2,
    "frames": 9,
    "phase": {
        "trains": [r"^denoiser\."],
        "speech": True,
        "clip_frames": 9,
        "loop": {"steps": 1, "warmup": 0, "ema": 0.5, "log_every": 1},
    },
    "seeds": [0],
    "cases": 2,
    "views": 1,
    "scenes": 2,
    "seconds": 0.6,
    "guidance": {"speech": [1.0, 4.0]},
    "processes": 1,
}


def ablation(out: Path, **changes) -> Ablation:
    phase = Phase(
        trains=(r"^denoiser\.", r"^reference_network\."), speech=True, clip_frames=17, loop=LoopSettings(steps=3)
    )
    values = {"out": out, "phase": phase, "guidance": {"speech": (1.0, 4.0), "reference": (1.0, 2.0)}, "cases": 12}
    return Ablation(**(values | changes))


def test_nine_variants_and_each_is_what_it_says(tmp_path) -> None:
    assert len(VARIANTS) == len(set(VARIANTS)) == 9 and [len(rows) for rows in COMPARISONS.values()] == [3, 5, 3]
    assert all(PUBLISHED in rows.values() for rows in COMPARISONS.values())
    small = ablation(tmp_path, sizes={"num_layers": 1})
    assert (
        len(runs(small)) == 18 and runs(small)[8] != runs(small)[9] and runs(small)[9].variant == runs(small)[0].variant
    )
    for variant in VARIANTS:
        run = Run(variant, 1)
        networks = networks_of(small, run)
        assert networks["denoiser"].config.speech_conditioning == variant.speech
        assert networks["denoiser"].config.identity_conditioning == variant.identity
        assert networks["denoiser"].config.num_layers == 1
        assert ("reference_network" in networks) == (variant.identity in ("reference", "both"))
        phase = phase_of(small, run, networks)
        assert phase.motion_frames == variant.motion_frames and phase.loop.seed == 1
        assert choose_parameters(networks, phase) == sum(p.numel() for p in networks.parameters())


def test_what_no_variant_has_is_a_mistake(tmp_path) -> None:
    small = ablation(tmp_path)
    wrong = small.model_copy(update={"phase": small.phase.model_copy(update={"trains": ("denoser",)})})
    with pytest.raises(UserError, match="'denoser' names no parameter"):
        train_all(wrong)
    assert not any(tmp_path.iterdir())


def measured(level: dict[str, float], seed: int, faces: float = 0.0) -> Measured:
    """Numbers around a level, and faces around a place."""
    random = np.random.default_rng(seed)
    meters = {name: level.get(name, 1.0) + 0.02 * random.standard_normal(12) for name in (*COMPARED, *RAW)}
    meters["foreground dynamics"][:] = np.nan
    stills = random.integers(0, 255, (3, 8, 32, 48, 3)).astype(np.uint8)
    return Measured(meters, random.standard_normal((12, 10, 6)) + faces, stills, {"seconds": 2.0})


def plant(planted: Ablation) -> None:
    """Cross-attention is better than an adaptive norm and no better than self-attention; no identity is the best."""
    for number, task in enumerate(tasks(planted)):
        level, far = {"sync": 0.8, "identity": 0.3}, 0.0
        if task.run and task.run.variant == Variant(speech="norm"):
            level["sync"] = 0.5
        if task.run and task.run.variant == Variant(identity="none"):
            level["identity"], far = 0.1, 3.0
        if task.run and task.run.variant.motion_frames == 4:
            level["seams"] = 0.6
        if task.scales.speech == 4:
            level["sync"] = 0.9
        if task.people == MOVING:
            level["background speed"] = 1.5
        measured(level, number, far).write(task.path(planted))
    for run in runs(planted):
        folder(planted, run).mkdir(parents=True)
        lines = '{"step": 2, "loss": 1.0, "seconds": 60.0}\n{"step": 3, "loss": 1.0, "seconds": 30.0}\n'
        (folder(planted, run) / "metrics.jsonl").write_text(lines)


def test_planted_differences_are_told(tmp_path) -> None:
    planted = ablation(tmp_path)
    plant(planted)
    results = Results(planted)
    found = {one.claim: one.verdict for one in answers(results)}
    assert found["speech: cross-attention is better than adaptive norm"] == "holds"
    assert found["speech: cross-attention is better than self-attention"] == "not told apart"
    both = "identity: face attention + reference network is better than"
    assert found[f"{both} none"] == "the opposite" and found[f"{both} face attention"] == "not told apart"
    assert found["guidance: speech scale 4 has more lip sync than 1"] == "holds"
    assert found["guidance: reference scale 2 has less distance from the person than 1"] == "not told apart"
    assert found["motion frames: 4 jump less at seams than 1"] == "holds"
    assert found["motion frames: 2 stay nearer to the person than 1"] == "not told apart"
    moves = "that should move moves more than one that should stand still"
    assert found[f"scenes: a background {moves}"] == "holds" and found[f"scenes: a foreground {moves}"] != "holds"
    for view in ("profile", "high view", "low view"):
        assert found[f"{view}: lips follow the speech"] == "holds"
        assert found[f"{view}: faces are nearer to the person than to somebody else"] == "holds"
    assert len(found) == 2 + 4 + (2 + 4) + 2 + (2 + 6)
    rows = {row.name: row for row in tables(planted)["identity"]}
    far, near = (results.cell(rows[name], "kernel") for name in ("none", "face attention"))
    assert near.low <= near.value <= near.high < far.low < far.value
    assert results.cell(rows["truth"], "kernel").value == pytest.approx(0, abs=1e-6)
    assert results.cell(rows["none"], "foreground dynamics") is None
    assert results.minutes[Run(PUBLISHED, 0)] == 2.5


def test_the_report_has_every_number_and_picture(tmp_path) -> None:
    planted = ablation(tmp_path)
    plant(planted)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text('{"drawings": 1}')
    path = write_report(planted, Path("configs/mine.yaml"), ["clips=300", "out=/home/me/work"])
    text = path.read_text()
    assert "hallo3 ablate configs/mine.yaml clips=300 out=…" in text and "/home/me" not in text
    for told in (
        "Seeds of the trainings: 0, 1",
        "hallo3 0.1.0",
        "learned from: 1)",
        "Sampling steps: 1;",
        "Recordings: none",
        "wall time",
    ):
        assert told in text, told
    assert "--adopt" not in text
    settings = yaml.safe_load((path.parent / "ablation.yaml").read_text())
    # Those that are defaults too.
    assert settings["clips"] == 300 and settings["phase"]["batch"] == 1 and settings["sampling_steps"] is None
    assert "18 trainings" in text and "2.5 minutes" in text and "**the opposite**" in text
    for name in ("cross-attention", "face adaptive norm", "speech 4, text 1, reference 1", "profile, truth"):
        assert f"| {name} |" in text, name
    pictures = [line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert len(pictures) == 2 * len(tables(planted))
    for picture in pictures:
        assert Image.open(path.parent / picture).width > 300
    again = read_ablation(path.parent / "ablation.yaml", [f"out={tmp_path}"])
    assert again == planted


def test_what_chance_could_do_is_no_answer() -> None:
    verdicts = [
        Answer("", "sync", Estimate(value, value - 1, value + 1, 0.001), chance=chance).verdict
        for value, chance in [(0.2, 0.01), (0.2, 0.3), (-0.2, 0.01)]
    ]
    assert verdicts == ["holds", "not told apart", "the opposite"]
    nan = float("nan")
    assert Answer("", "sync", Estimate(1.0, nan, nan, nan), chance=nan).verdict == "not told apart"


def test_a_meter_that_read_nothing_ends_in_an_answer(tmp_path) -> None:
    planted = ablation(tmp_path)
    plant(planted)
    for task in tasks(planted):
        known = Measured.read(task.path(planted))
        known.meters["sync"][:] = np.nan
        known.write(task.path(planted))
    text = write_report(planted).read_text()
    (line,) = (line for line in text.splitlines() if "speech: cross-attention is better than adaptive norm" in line)
    assert "nothing to measure" in line


def test_measurements_come_back_as_they_were(tmp_path) -> None:
    one = measured({}, 0)
    one.write(tmp_path / "one.npz")
    back = Measured.read(tmp_path / "one.npz")
    assert back.meters.keys() == one.meters.keys() and np.array_equal(back.faces, one.faces)
    assert np.array_equal(back.meters["sync"], one.meters["sync"]) and np.array_equal(back.stills, one.stills)


def test_every_task_has_its_own_file(tmp_path) -> None:
    found = tasks(ablation(tmp_path))
    assert len({task.path(ablation(tmp_path)) for task in found}) == len(found)
    assert Task(None, FRONT, Scales()) in found and sum(task.people == FRONT for task in found) == 1 + 18 + 2 * 3
    assert sum(task.people == MOVING for task in found) == 3 and not tasks(ablation(tmp_path, scenes=0, views=0))[25:]


def test_both_scenes_are_the_same_people_with_something_before_them(tmp_path) -> None:
    config = {"sample_height": 128, "sample_width": 192}
    ((seed, place),) = scenes_with_foreground(config, 1)
    moving, still = (
        drawn_truth(config, seed, 0.2, place=place, dynamic=dynamic) for dynamic in (True, False)
    )  # fmt: skip
    assert moving.meta["identity"] == still.meta["identity"] and moving.meta["scene"]["foreground"] != "none"
    before = (moving.foreground_mask[0] > 0) & (still.foreground_mask[0] > 0)
    assert before.mean() >= 0.008
    # A camera that is held by hand moves a little, whatever stands still.
    assert part_change(moving.frames, before) > 3 * part_change(still.frames, before)


def test_measurements_of_other_settings_are_made_again(tmp_path) -> None:
    small = ablation(tmp_path, seconds=2.0)
    task = Task(None, FRONT, Scales())
    assert task.why_not_measured(small) == "is not measured yet"
    one = measured({}, 0)
    Measured(one.meters, one.faces, one.stills).write(task.path(small))
    assert task.why_not_measured(small) == "was measured with settings that nobody noted"
    Measured(one.meters, one.faces, one.stills, task.settings(small)).write(task.path(small))
    assert task.why_not_measured(small) is None
    assert task.why_not_measured(ablation(tmp_path, cases=5)) == "was measured with people=12, not 5"
    assert task.why_not_measured(ablation(tmp_path, seconds=9.0)) == "was measured with seconds=2.0, not 9.0"
    trained = Task(Run(PUBLISHED, 0), FRONT, Scales())
    weights = folder(small, trained.run) / "bundle" / "transformer" / "weights.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"one")
    Measured(one.meters, one.faces, one.stills, trained.settings(small)).write(trained.path(small))
    assert trained.why_not_measured(small) is None
    assert "sampling_steps=None, not 7" in trained.why_not_measured(ablation(tmp_path, sampling_steps=7))
    weights.write_bytes(b"two")
    assert "weights=" in trained.why_not_measured(small)


def test_trainings_of_other_settings_are_refused(tmp_path) -> None:
    small = ablation(tmp_path / "out")
    check_work(small)
    check_work(small)
    longer = small.model_copy(update={"phase": small.phase.model_copy(update={"loop": LoopSettings(steps=9)})})
    for wrong, word in ((ablation(tmp_path / "out", clips=9), "clips=300, not 9"), (longer, "steps=3, not 9")):
        with pytest.raises(UserError, match=word):
            check_work(wrong)
    check_work(ablation(tmp_path / "out", cases=5, seeds=(0,)))  # is of the measuring, or more of the same
    (tmp_path / "out" / "ablation.json").unlink()
    (tmp_path / "out" / "runs").mkdir()
    with pytest.raises(UserError, match=r"nobody knows.*--adopt"):
        check_work(small)
    check_work(small, adopt=True)
    plant(small)
    assert "stated after they had begun" in write_report(small).read_text()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        check_work(ablation(tmp_path / "file"))


@pytest.mark.parametrize(
    "sizes", [{"bogus": 3}, {"num_layers": -1}, {"num_layers": 0}, {"num_attention_heads": -2}, {"num_layers": "a"}]
)
def test_sizes_that_make_no_networks(tmp_path, sizes) -> None:
    with pytest.raises(UserError, match="sizes"):
        check_ablation(ablation(tmp_path, sizes=sizes))


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"guidance": {"speech": [1.0]}}, "two values"),
        ({"phase": SETTINGS["phase"] | {"clip_frames": 13}}, "no more than frames"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [-1]}, "seeds"),
        ({"seeds": [1, 1]}, "different"),
        ({"cases": 1}, "cases"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, wrong, word) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump(SETTINGS | wrong))
    with pytest.raises(UserError, match=word):
        read_ablation(file, ["out=work"])


@pytest.mark.slow
def test_command(tiny_bundle: Path, recordings: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "a.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(SETTINGS))
    command = [sys.executable, "-m", "hallo3", "ablate", str(file), f"out={out}", f"bundle={tiny_bundle}"]
    command.append(f"recordings={recordings}")
    first = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert first.returncode == 0, first.stderr
    (line,) = first.stdout.splitlines()  # what goes on is told beside it
    report = Path(line)
    assert report == out / "report" / "README.md" and "9 trainings" in report.read_text()
    # What was finished stays; what is missing is made again, and comes out the same.
    kept = {path: path.stat().st_mtime_ns for path in (out / "measured").iterdir()}
    task = Task(Run(PUBLISHED, 0), FRONT, Scales())
    lost = next(path for path in kept if path.name.startswith(f"{task.run}_{task.scales}_{FRONT}"))
    before, text = Measured.read(lost), report.read_text()
    lost.unlink()
    again = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert again.returncode == 0, again.stderr
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items() if path != lost)
    assert all(np.array_equal(values, Measured.read(lost).meters[name], True) for name, values in before.meters.items())
    assert report.read_text() == text
    refused = subprocess.run([*command, "sizes={bogus: 3}", "--plan"], capture_output=True, text=True, timeout=300)
    assert refused.returncode == 2 and "bogus" in refused.stderr and "Traceback" not in refused.stderr
    shown = subprocess.run([*command, "--plan"], capture_output=True, text=True, timeout=300)
    assert shown.stdout.count("trained") == 9 and "to do" not in shown.stdout
