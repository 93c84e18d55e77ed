import json
import re

import pytest
import torch
from torch import nn

from hallo3.errors import UserError
from hallo3.training.checkpoints import checkpoints, load_average
from hallo3.training.loop import Loop, LoopSettings, StepRandom
from hallo3.training.muon import Muon, orthogonal


def make(folder, optimizer="muon", after=None, **settings):
    torch.manual_seed(0)
    layers = nn.ModuleDict(
        {"transformer_blocks": nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 4)]), "out": nn.Linear(4, 1)}
    )

    def step_loss(step: int, random: StepRandom):
        x = torch.randn(16, 4, generator=random.torch)
        hidden = layers["transformer_blocks"][1](layers["transformer_blocks"][0](x).tanh())
        loss = (layers["out"](hidden) - x.sum(1, keepdim=True)).square().mean()
        return loss, {"size": float(x.detach().std())}

    values = {"steps": 12, "warmup": 2, "save_every": 4, "log_every": 3, "optimizer": optimizer} | settings
    return layers, Loop(layers, step_loss, folder, LoopSettings(**values), lambda line: None, after=after)


def curve(folder):
    """All that stands in metrics.jsonl but the time."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize(("log_every", "save_every"), [(1, 3), (4, 3), (20, 5)])
def test_the_whole_curve_is_the_same_wherever_it_is_cut(tmp_path, log_every, save_every):
    """Stopped and saved, or killed after the last save: lines are means over steps of before and after the cut."""
    given = {"log_every": log_every, "save_every": save_every, "keep": 1}
    make(tmp_path / "whole", **given)[1].run()
    whole = curve(tmp_path / "whole")
    assert [row["step"] for row in whole] == sorted({*range(log_every, 13, log_every), 12})
    assert all({"loss", "size", "gradient", "rate"} < row.keys() for row in whole)
    for cut in (4, 7):
        folder = tmp_path / f"cut-{cut}"
        make(folder, **given)[1].run(until=cut)
        make(folder, **given)[1].run()
        assert curve(folder) == whole
        killed = tmp_path / f"killed-{cut}"

        def kill(loop, cut=cut):
            if loop.step == cut:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make(killed, after=kill, **given)[1].run()
        make(killed, **given)[1].run()
        assert curve(killed) == whole


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, optimizer):
    whole, loop = make(tmp_path / "whole", optimizer)
    loop.run()
    _, first = make(tmp_path / "cut", optimizer)
    first.run(until=7)
    second, loop = make(tmp_path / "cut", optimizer)
    assert loop.step == 7
    loop.run()
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    load_average(whole, tmp_path / "whole")
    load_average(second, tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_a_run_that_is_killed_while_it_saves_goes_on_from_the_checkpoint_before(tmp_path):
    _, loop = make(tmp_path)
    loop.run(until=4)
    (tmp_path / "checkpoint-0000008.part").mkdir()
    (tmp_path / "checkpoint-0000008.part" / "part-0-of-1.pt").write_bytes(b"half of a checkpo")
    _, again = make(tmp_path)
    assert again.step == 4


def test_only_the_last_checkpoints_stay(tmp_path):
    _, loop = make(tmp_path, keep=2)
    loop.run()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-0000008", "checkpoint-0000012"]


def test_training_lowers_the_loss_and_the_average_follows(tmp_path):
    layers, loop = make(tmp_path, steps=300, ema=0.9, learning_rate=1e-2)
    loop.run()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert rows[-1]["loss"] < 0.4 * rows[0]["loss"]
    before = [p.detach().clone() for p in layers.parameters()]
    load_average(layers, tmp_path)
    moved = [float((a - b).abs().max()) for a, b in zip(before, layers.parameters(), strict=True)]
    assert 0 < max(moved) < 0.1


def test_a_loss_that_is_no_number_stops_with_the_step(tmp_path):
    layers = nn.Linear(2, 1)

    def step_loss(step, random):
        loss = layers(torch.ones(1, 2)).sum()
        return loss * (float("nan") if step == 3 else 1.0), {}

    loop = Loop(layers, step_loss, tmp_path, LoopSettings(steps=5), log=lambda line: None)
    with pytest.raises(UserError, match="step 3: loss nan"):
        loop.run()


def test_a_line_says_how_fast_it_goes_and_how_long_it_takes(tmp_path, monkeypatch):
    times = iter(range(0, 10**6, 25))
    monkeypatch.setattr("hallo3.training.loop.time.monotonic", lambda: next(times))
    said = []
    _, loop = make(tmp_path, log_every=5)
    loop.log = said.append
    loop.run()
    number = r"\d+\.\d{4}"
    assert len(said) == 3
    for line, step, left in zip(said, (5, 10, 12), ("2:55", "0:50", "0:00"), strict=True):  # of 25 seconds a step
        numbers = f"loss {number} size {number} gradient {number} rate {number}"
        assert re.fullmatch(rf"{step}/12 {numbers} 25\.00 s/step, {left} left", line), line


def test_frozen_parameters_stay_and_nothing_to_train_is_said(tmp_path):
    layers, _ = make(tmp_path / "a")
    for parameter in layers.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(UserError, match="nothing to train"):
        Loop(layers, lambda step, random: (torch.zeros(()), {}), tmp_path / "b", LoopSettings(steps=1))


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    _, loop = make(tmp_path)
    loop.run(until=4)
    with pytest.raises(UserError, match="other parameters"):
        Loop(nn.Linear(2, 2), lambda step, random: (torch.zeros(()), {}), tmp_path, LoopSettings(steps=1))


def test_orthogonal_factors_have_singular_values_near_one():
    matrices = torch.randn(3, 6, 20, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrices))
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3
    assert torch.allclose(orthogonal(matrices.transpose(1, 2)), orthogonal(matrices).transpose(1, 2), atol=1e-5)


def test_muon_steps_have_the_size_of_adams():
    weight = nn.Parameter(torch.zeros(8, 32, 3, 3))
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    Muon([weight], lr=0.1).step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.02, rel=0.2)
