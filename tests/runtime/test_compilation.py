"""Compiled layers give the same, another process finds what one compiled, and a missing compiler is told."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tiny
from hallo3.animation import load
from hallo3.errors import UserError
from hallo3.runtime.compilation import check_compiler

COMPILED = """
import sys, torch, tiny
from torch._dynamo.utils import counters
from hallo3.animation import load

pipeline = load(sys.argv[1], strategy=sys.argv[3], compiled=True)
performance = pipeline.prepare(tiny.portrait(), tiny.speech(0.2), "a woman", no_face=True)
torch.save(next(pipeline.render(performance)).motion, sys.argv[2])
found = counters["inductor"]
print(sum(counters["graph_break"].values()), found["fxgraph_cache_miss"], found["fxgraph_cache_hit"])
"""


def run(bundle: Path, home: Path, result: Path, strategy: str) -> tuple[int, ...]:
    """Graph breaks, graphs that were compiled, and graphs that were found, in a process of its own."""
    known = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    paths = os.pathsep.join([str(Path(__file__).parents[1]), known.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, str(bundle), str(result), strategy],
        env={**known, "HALLO3_HOME": str(home), "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return tuple(map(int, done.stdout.split()))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_equals_plain_and_stays_for_the_next_process(tiny_bundle: Path, tmp_path: Path) -> None:
    pipeline = load(str(tiny_bundle))
    performance = pipeline.prepare(tiny.portrait(), tiny.speech(0.2), "a woman", no_face=True)
    expected = next(pipeline.render(performance)).motion
    home, result = tmp_path / "home", tmp_path / "motion.pt"
    assert run(tiny_bundle, home, result, "resident") == (0, 1, 0), "one graph for all layers"
    torch.testing.assert_close(torch.load(result, weights_only=True), expected, atol=2e-5, rtol=0)
    assert any((home / "compiled").iterdir())
    assert run(tiny_bundle, home, result, "streamed") == (0, 0, 1), "compiled again"
    torch.testing.assert_close(torch.load(result, weights_only=True), expected, atol=2e-5, rtol=0)


def test_no_compiler_is_one_line(tmp_path: Path) -> None:
    portrait, speech = tmp_path / "portrait.png", tiny.write_wav(tmp_path / "speech.wav", tiny.speech(0.3))
    tiny.portrait().save(portrait)
    words = ["animate", str(portrait), str(speech), "-o", str(tmp_path / "out.mp4"), "--compile", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "hallo3", *words],
        env={**os.environ, "CXX": str(tmp_path / "no-compiler")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "needs a C++ compiler" in done.stderr


def test_the_compiler_of_a_gpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with pytest.raises(UserError, match="needs triton"):
        check_compiler(torch.device("cuda"))
