"""`hallo3 bench`: every stage is measured, by the command, and measuring changes nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tiny
from hallo3 import bench
from hallo3.pipeline import Hallo3Pipeline
from hallo3.sampling.shortcuts import Sampling


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hallo3", "bench", *words], capture_output=True, text=True, check=False
    )


def test_every_stage_by_the_command(tiny_bundle: Path, tmp_path: Path) -> None:
    done = run(tiny_bundle, "--repeats", "1", "--steps", "2", "--json", "--plot", tmp_path / "times.png")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    stages = {stage["name"]: stage for stage in found["stages"]}
    assert {"loading", "text", "reference network", "denoising", "decoding", "watermark", "writing"} <= stages.keys()
    assert all(stage["seconds"] >= 0 for stage in stages.values()) and stages["denoising"]["seconds"] > 0
    each_clip = sum(stage["seconds"] for stage in stages.values() if stage["each_clip"])
    assert found["clip_seconds"] == pytest.approx(each_clip)
    assert found["frames_per_second"] == pytest.approx(found["frames_a_clip"] / each_clip)
    once = sum(stage["seconds"] for stage in stages.values() if not stage["each_clip"])
    whole = once - stages["loading"]["seconds"] + 18 * each_clip  # 5 s are 125 frames: 18 clips of 9 that share 2
    assert found["frames_a_clip"] == tiny.FRAMES - 2 and found["seconds_for_speech"]["5"] == pytest.approx(whole)
    assert found["steps"] == 2 and found["branches"] == 2 and found["step_operations"] > 0
    assert (found["quality"], found["evaluations"]) == ("exact", 4)
    sampled = stages["denoising"]["seconds"] + stages["decoding"]["seconds"]
    assert found["first_clip_share"] == pytest.approx(found["first_clip"] / sampled) and found["first_clip"] > 0
    with Image.open(tmp_path / "times.png") as picture:
        assert min(picture.size) > 100


def test_measuring_changes_nothing(tiny_bundle: Path) -> None:
    pipeline = Hallo3Pipeline.from_pretrained(tiny_bundle)
    options: dict[str, Any] = {"no_face": True, "num_inference_steps": 1}
    before = pipeline(tiny.portrait(), tiny.speech(0.4), **options).frames
    times, first_clip = bench._run(pipeline, Sampling.by("exact", 1, 2), 0, no_face=True)
    assert 0 < first_clip < sum(map(sum, times.values()))
    assert [len(times[name]) for name in bench.EACH_CLIP.values()] == [bench.CLIPS] * len(bench.EACH_CLIP)
    assert np.array_equal(pipeline(tiny.portrait(), tiny.speech(0.4), **options).frames, before)
    assert "_decode" not in vars(pipeline)


def test_mistakes(tmp_path: Path) -> None:
    for words in (["nobody"], ["--plot", tmp_path / "times.txt"], ["--repeats", "0"]):
        done = run(*words)
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
