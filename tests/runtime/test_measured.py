"""Measured choices: remembered by what they depend on, measured again where nothing can be kept, and real."""

import json
from pathlib import Path

import pytest
import torch

from hallo3.animation import load
from hallo3.runtime.branches import choose_branches_at_once, measure_branches
from hallo3.runtime.measured import FILE, remembered, seconds_of

ABOUT = {"what": "test", "device": "cpu"}


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HALLO3_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_choice_is_remembered(home: Path) -> None:
    asked: list[str] = []

    def choose() -> str:
        asked.append("again")
        return "b"

    assert [remembered(ABOUT, ("a", "b"), choose) for _ in range(3)] == ["b"] * 3 and len(asked) == 1
    remembered({**ABOUT, "what": "else"}, ("a", "b"), choose)
    remembered(ABOUT, ("a", "b", "c"), choose)  # a new candidate may be better
    assert len(asked) == 3 and len(json.loads((home / FILE).read_text())) == 3


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}'])
def test_a_damaged_file_is_written_anew(home: Path, text: str) -> None:
    home.mkdir()
    (home / FILE).write_text(text)
    assert remembered(ABOUT, ("a",), lambda: "a") == "a"
    assert "a" in json.loads((home / FILE).read_text()).values()


def test_without_a_folder_it_is_measured_each_time(home: Path) -> None:
    home.write_text("a file in the way")
    assert [remembered(ABOUT, ("a",), lambda: "a") for _ in range(2)] == ["a", "a"]


def test_ways_take_turns() -> None:
    calls: list[str] = []
    found = seconds_of({name: lambda name=name: calls.append(name) for name in "ab"}, torch.device("cpu"), rounds=2)
    assert calls == list("ababab") and set(found) == {"a", "b"} and all(value >= 0 for value in found.values())


@pytest.mark.parametrize("strategy", ["resident", "streamed"])
def test_branches_are_measured_on_the_real_network(tiny_bundle: Path, home: Path, strategy: str) -> None:
    pipeline = load(str(tiny_bundle), strategy=strategy)
    batches: list[int] = []
    hook = pipeline.transformer.register_forward_hook(lambda _, inputs, __: batches.append(len(inputs[0])))
    seconds = measure_branches(pipeline, torch.device("cpu"), 3, rounds=1)
    hook.remove()
    assert batches == [1, 1, 1, 3] * 2 and all(value > 0 for value in seconds.values())
    assert pipeline.branches_at_once == 2 and not home.exists(), "a CPU does not measure"
    assert choose_branches_at_once(pipeline, torch.device("cpu"), False, {}) == 1
