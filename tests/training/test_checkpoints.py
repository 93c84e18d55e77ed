"""Checkpoints are whole or not there, whoever reads them."""

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from types import ModuleType

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import nn

from hallo3.errors import UserError
from hallo3.training.checkpoints import Checkpoint, checkpoints, write_checkpoint
from hallo3.training.journal import Journal, plot, read_metrics
from hallo3.training.loop import Loop, LoopSettings
from hallo3.training.parallel import rank, run_processes, spread
from waiting import lives, until


def state(**tensors):
    return {f"parameters/{name}": value for name, value in tensors.items()}


def test_what_is_written_is_read(tmp_path):
    weight = torch.randn(3, 4)
    path = write_checkpoint(tmp_path, 7, state(weight=weight, count=torch.tensor(5.0)), keep=2)
    saved = Checkpoint(path)
    assert saved.step == 7 and sorted(saved.below("parameters")) == ["count", "weight"]
    assert torch.equal(saved["parameters/weight"], weight) and float(saved["parameters/count"]) == 5


def test_a_part_that_is_missing_or_cut_off_is_said(tmp_path):
    path = write_checkpoint(tmp_path, 1, state(weight=torch.ones(2)), keep=2)
    part = path / "part-0-of-1.pt"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(UserError, match="remove the folder"):
        Checkpoint(path)
    part.rename(path / "part-0-of-2.pt")
    with pytest.raises(UserError, match="parts of the checkpoint are missing"):
        Checkpoint(path)


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    path = write_checkpoint(tmp_path, 1, state(weight=torch.ones(2)), keep=2)

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    torch.save({"step": 1, "tensors": Trap()}, path / "part-0-of-1.pt")
    with pytest.raises(UserError, match="remove the folder"):
        Checkpoint(path)
    assert not (tmp_path / "trapped").exists()


def test_a_full_disk_ends_cleanly_and_keeps_the_checkpoint_before(tmp_path):
    """A limit on the size of files stands for the full disk."""
    write_checkpoint(tmp_path, 1, state(weight=torch.ones(10)), keep=2)
    script = f"""
        import torch
        from pathlib import Path
        from hallo3.training.checkpoints import write_checkpoint
        write_checkpoint(Path({str(tmp_path)!r}), 2, {{"parameters/weight": torch.ones(10**6)}}, keep=1)
    """

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))

    done = subprocess.run(
        [sys.executable, "-B", "-c", textwrap.dedent(script)], capture_output=True, text=True, preexec_fn=limit
    )
    assert "UserError" in done.stderr and "make room" in done.stderr
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-0000001"]
    assert not list(tmp_path.glob("*.part"))


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer_blocks = nn.ModuleList([nn.Linear(4, 5), nn.Linear(5, 3)])

    def forward(self, x):
        for layer in self.transformer_blocks:
            x = layer(x)
        return x


def _spread_and_write(folder):
    torch.manual_seed(0)
    network = Layers()
    full = {name: value.detach().clone() for name, value in network.named_parameters()}
    spread(network)
    write_checkpoint(folder, 3, {f"parameters/{name}": p for name, p in network.named_parameters()}, keep=1)
    if rank() == 0:
        torch.save(full, folder / "full.pt")


def test_any_number_of_processes_reads_what_two_have_written(tmp_path):
    run_processes(2, _spread_and_write, tmp_path)
    found = checkpoints(tmp_path)[-1]
    assert len(list(found.glob("part-*"))) == 2
    own = torch.load(found / "part-0-of-2.pt", weights_only=True)["tensors"]
    full, saved = torch.load(tmp_path / "full.pt", weights_only=True), Checkpoint(found)
    for name, value in full.items():
        assert own[f"parameters/{name}"].shape[0] < value.shape[0], "every process keeps only its share"
        assert torch.equal(saved[f"parameters/{name}"], value)


def _loop(folder, steps=4):
    layer = nn.Linear(2, 1)

    def step_loss(step, random):
        return layer(torch.randn(4, 2, generator=random.torch)).square().mean(), {}

    settings = LoopSettings(steps=steps, log_every=1, save_every=2, optimizer="adamw", warmup=0)
    return Loop(layer, step_loss, folder, settings, log=lambda line: None)


def test_two_trainings_do_not_write_to_one_folder(tmp_path):
    loop = _loop(tmp_path)
    with FileLock(tmp_path / "training.lock"), pytest.raises(UserError, match="another training writes there"):
        loop.run()
    loop.run()


def _mistake(text):
    if rank() == 1:
        raise UserError(text)


def test_a_mistake_that_one_process_finds_is_one_line_of_all():
    with pytest.raises(UserError, match=r"^data: too short; make more$"):
        run_processes(2, _mistake, "data: too short; make more")


def _wait(folder):
    (folder / f"child-{os.getpid()}").touch()
    time.sleep(600)


def test_processes_end_with_the_one_that_started_them(tmp_path):
    script = f"""
        import pathlib
        import sys
        sys.path[:0] = {sys.path!r}
        import test_checkpoints as here
        if __name__ == "__main__":
            here.run_processes(2, here._wait, pathlib.Path({str(tmp_path)!r}))
    """
    file = tmp_path / "start.py"
    file.write_text(textwrap.dedent(script))
    parent = subprocess.Popen([sys.executable, str(file)])
    until(lambda: len(list(tmp_path.glob("child-*"))) == 2 or parent.poll() is not None)
    children = [int(path.name.split("-")[1]) for path in tmp_path.glob("child-*")]
    assert len(children) == 2
    parent.kill()
    parent.wait()
    until(lambda: not any(map(lives, children)))


def test_the_journal_takes_out_rows_that_come_again_and_draws(tmp_path):
    journal = Journal(tmp_path)
    for step in range(1, 6):
        journal.write({"step": step, "loss": 1 / step, "rate": 0.5})
    journal.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    again = Journal(tmp_path, step=3)
    again.write({"step": 4, "loss": 9.0, "rate": 0.5})
    again.close()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert (tmp_path / "loss.png").stat().st_size > 1000
    assert list((tmp_path / "tensorboard").glob("events.*"))
    assert plot(tmp_path / "nothing.jsonl") is None


def test_weights_and_biases_is_only_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    with pytest.raises(UserError, match="pip install wandb"):
        Journal(tmp_path, wandb="project")
    Journal(tmp_path)


def test_weights_and_biases_is_told_what_the_file_is(tmp_path, monkeypatch):
    """Of its public interface, what is called: init, log, Image, finish. A stopped run is the same run."""
    told = []

    class Run:
        def log(self, numbers, step):
            told.append((step, numbers))

        def finish(self):
            told.append("finished")

    wandb = ModuleType("wandb")
    wandb.init = lambda **given: (told.append(given), Run())[1]
    wandb.Image = lambda pixels: ("picture", pixels.shape)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for place in ("a/run", "b/run"):
        (tmp_path / place).mkdir(parents=True)
        journal = Journal(tmp_path / place, wandb="faces")
        journal.write({"step": 2, "loss": 0.5, "rate": 1.0})
        journal.picture("validation", np.zeros((4, 6, 3), np.uint8), 2)
        journal.close()
    Journal(tmp_path / "a/run", 2, wandb="faces").close()
    started = [entry for entry in told if isinstance(entry, dict)]
    assert [entry["project"] for entry in started] == ["faces"] * 3 and started[0]["resume"] == "allow"
    assert started[0]["id"] == started[2]["id"] != started[1]["id"], "a folder is a run, whatever others are called"
    assert told[1:4] == [(2, {"loss": 0.5, "rate": 1.0}), (2, {"validation": ("picture", (4, 6, 3))}), "finished"]


def test_a_full_disk_is_said_in_the_words_of_a_training(tmp_path):
    """/dev/full stands for it: what is written there finds no room."""
    loop = _loop(tmp_path)
    loop.run(until=2)
    again = _loop(tmp_path)

    def fill(loop):
        if loop.step == 3:
            os.replace(tmp_path / "metrics.jsonl", tmp_path / "kept.jsonl")
            (tmp_path / "metrics.jsonl").symlink_to("/dev/full")

    again.after = fill
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written \(.*the last checkpoint stays: make room"):
        again.run()
    os.replace(tmp_path / "kept.jsonl", tmp_path / "metrics.jsonl")
    _loop(tmp_path).run()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]


def _power_cut(loop):
    """After the second step and its checkpoint, whatever writes a file of 40 MB kills the process when it is half done.

    Checkpoints have 80 MB.
    """
    if loop.step == 2:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000_000,) * 2)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it


def _large(folder, steps=6, after=None):
    """A training whose checkpoints have 80 MB."""
    layer = nn.Linear(5000, 1000)

    def step_loss(step, random):
        return layer(torch.randn(1, 5000, generator=random.torch)).square().mean(), {}

    torch.manual_seed(0)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    Loop(layer, step_loss, folder, LoopSettings(steps=steps, log_every=2, save_every=1, warmup=0), after=after).run()


@pytest.mark.slow
def test_killed_while_it_saves_it_goes_on_bit_for_bit(tmp_path):
    """Killed when a part of a checkpoint is there and the checkpoint is not, as by a power cut."""
    script = f"import sys, pathlib; sys.path[:0] = {sys.path!r}; import test_checkpoints as here; "
    script += "here._large(pathlib.Path(sys.argv[1]), after=here._power_cut if sys.argv[2:] else None)"
    command = [sys.executable, "-c", script]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True, timeout=300)
    broken = tmp_path / "broken"
    ended = subprocess.run([*command, str(broken), "power cut"], stdout=subprocess.DEVNULL, timeout=300).returncode
    assert ended == -signal.SIGXFSZ
    (half,), before = broken.glob("*.part/part-*"), checkpoints(broken)[-1]
    assert before.name == "checkpoint-0000002"
    assert 0 < half.stat().st_size < next(before.iterdir()).stat().st_size
    done = subprocess.run([*command, str(broken)], capture_output=True, text=True, check=True, timeout=300)
    assert f"goes on from {before.name}" in done.stdout
    first, second = (Checkpoint(checkpoints(tmp_path / name)[-1]) for name in ("whole", "broken"))
    assert first.step == second.step == 6 and first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    curves = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "broken")]
    for row in (*curves[0], *curves[1]):
        row.pop("seconds")
    assert curves[0] == curves[1] and [row["step"] for row in curves[0]] == [2, 4, 6]
    assert not list(broken.glob("*.part"))


def test_a_resumed_loop_writes_every_step_once(tmp_path):
    _loop(tmp_path).run(until=2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "loss": 1.0}) + "\n")
    _loop(tmp_path).run()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
