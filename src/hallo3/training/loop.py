"""The training loop: one for the VAE and for both phases.

A step's random numbers depend on the seed and the step alone, and a checkpoint holds everything else, so a run that was
killed goes on bit for bit (on one device). Inside an initialised `torch.distributed` group every process takes its own
batch and gradients are averaged (`parallel.py`).
"""

import math
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from hallo3.durations import clock
from hallo3.errors import UserError
from hallo3.training.checkpoints import (
    Checkpoint,
    State,
    checkpoints,
    load_optimizers,
    optimizer_state,
    put,
    write_checkpoint,
)
from hallo3.training.journal import Journal
from hallo3.training.muon import Muon
from hallo3.training.parallel import alone, average_gradients, gather, mean, rank, whole

Log = Callable[[str], None]
Beta = Annotated[float, Field(ge=0, lt=1)]


class LoopSettings(BaseModel):
    """How a training runs.

    Attributes:
        steps: Optimiser steps of the whole training.
        optimizer: `adamw`, or `muon`: momentum made orthogonal for the matrices of attention and MLPs and the VAE's
            convolutions, AdamW for the rest.
        learning_rate: Highest rate, reached after `warmup` steps. muon_rate: the same for the matrices under `muon`.
        schedule: What follows the warm-up: `constant`, or `cosine` down to `final_rate` of the highest.
        clip: Largest norm of the gradient.
        accumulate: Batches of each process whose gradients make one step, one after the other.
        ema: Decay of the averaged weights; shorter at the start, so that the first weights are forgotten.
        seed: Of the batches, their noise and what is dropped; that of the training unless given.
        save_every, log_every: Steps between checkpoints and between printed lines. keep: checkpoints that stay.
        wandb: Project of Weights & Biases that the numbers go to as well; none unless named.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(ge=1)
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0)
    muon_rate: float = Field(default=1e-2, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: int = Field(default=100, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    final_rate: float = Field(default=0.02, ge=0, le=1)
    clip: float = Field(default=1.0, gt=0)
    accumulate: int = Field(default=1, ge=1)
    ema: float = Field(default=0.995, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)
    save_every: int = Field(default=200, ge=1)
    log_every: int = Field(default=20, ge=1)
    keep: int = Field(default=2, ge=1)
    wandb: str | None = None

    def seeded(self, seed: int) -> "LoopSettings":
        """These, with the training's seed where none is given."""
        return self if "seed" in self.model_fields_set else self.model_copy(update={"seed": seed})

    def rate(self, step: int) -> float:
        """Share of the highest learning rate at `step`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.final_rate + (1 - self.final_rate) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, done)))


@dataclass(frozen=True)
class StepRandom:
    """Random numbers of one step, the same whether training ran through or was resumed."""

    numpy: np.random.Generator
    torch: torch.Generator

    @classmethod
    def at(cls, seed: int, step: int, rank: int = 0) -> "StepRandom":
        """Those of a step, in the process `rank` of several."""
        numbers = np.random.default_rng([seed, step, rank])
        return cls(numbers, torch.Generator().manual_seed(int(numbers.integers(1 << 62))))


StepLoss = Callable[[int, StepRandom], tuple[Tensor, dict[str, float]]]


class Average:
    """Exponential moving average of trained parameters."""

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float):
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: dict[str, nn.Parameter], step: int) -> None:
        """Takes in the parameters after step `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.values.values()), [parameters[name] for name in self.values], 1 - decay)

    @torch.no_grad()
    def swap(self, parameters: dict[str, nn.Parameter]) -> None:
        """Exchanges the parameters with their averages; again to go back."""
        for name, value in self.values.items():
            kept = parameters[name].detach().clone()
            parameters[name].copy_(value)
            value.copy_(kept)


class Loop:
    """Trains the parameters of `module` that require gradients.

    Args:
        module: Everything with weights in this training; frozen parameters have `requires_grad` False.
        step_loss: `(step, random) → (loss, numbers worth logging)`.
        folder: Checkpoints, `metrics.jsonl`, `loss.png`, `tensorboard/`; goes on from what is there.
        names: What a batch is made of, asked for when its loss is no number.
        after: Called with the loop after each step and its checkpoint.
    """

    def __init__(
        self,
        module: nn.Module,
        step_loss: StepLoss,
        folder: Path,
        settings: LoopSettings,
        log: Log = print,
        names: Callable[[StepRandom], list[str]] | None = None,
        after: "Callable[[Loop], None] | None" = None,
    ):
        self.module, self.step_loss, self.folder, self.settings, self.log = module, step_loss, folder, settings, log
        self.names, self.after = names, after
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise UserError("nothing to train: every parameter is frozen; name some in the configuration")
        self.optimizers = make_optimizers(self.parameters, settings)
        self.average = Average(self.parameters, settings.ema)
        self.step = 0
        self.recent: list[dict[str, float]] = []  # numbers of the steps since the last line; a checkpoint holds them
        self.journal: Journal  # opened when it runs: what is there may be another training's until then
        self._load()

    def run(self, until: int | None = None) -> None:
        """Trains up to step `until` (all of them by default), then leaves a checkpoint.

        Raises UserError while another training writes to the folder, and when a loss is no number.
        """
        with alone(self.folder):
            self.journal = Journal(self.folder, self.step, self.settings.wandb)
            self._run(until)

    def _run(self, until: int | None) -> None:
        end = self.settings.steps if until is None else min(until, self.settings.steps)
        while self.step < end:
            began = time.monotonic()
            loss, numbers, norm = self._take_step()
            self.step += 1
            self.recent.append({"loss": loss, **numbers, "seconds": time.monotonic() - began})
            if self.step % self.settings.log_every == 0 or self.step == self.settings.steps:
                self._report(norm)
                self.recent = []
            if self.step % self.settings.save_every == 0 or self.step == end:
                self.save()
            if self.after is not None:
                self.after(self)
        self.journal.close()

    def _take_step(self) -> tuple[float, dict[str, float], float]:
        rate = self.settings.rate(self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["highest"] * rate
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        own, numbers = self._accumulate()
        value = mean(own)
        average_gradients(self.parameters.values())
        norm = float(whole(nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip)))
        if not (math.isfinite(value) and math.isfinite(norm)):
            self._give_up(own, norm)
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update(self.parameters, self.step)
        return value, numbers, norm

    def _randoms(self) -> list[StepRandom]:
        """Random numbers of this process's batches of the step.

        They go by batch and not by process, so two processes learn what one with two batches does.
        """
        count = self.settings.accumulate
        return [StepRandom.at(self.settings.seed, self.step, rank() * count + batch) for batch in range(count)]

    def _accumulate(self) -> tuple[float, dict[str, float]]:
        """Gradients of the step's batches; returns the mean loss and the last batch's numbers."""
        count, total = self.settings.accumulate, 0.0
        numbers: dict[str, float] = {}
        for random in self._randoms():
            loss, numbers = self.step_loss(self.step, random)
            (loss / count).backward()
            total += float(loss.detach()) / count
        return total, numbers

    def _give_up(self, loss: float, norm: float) -> None:
        """Raises UserError naming what the step's batches were made of, where the loss was no number if it was."""
        names: list[str] = []
        if self.names is not None:
            names = [name for random in self._randoms() for name in self.names(random)]
        found = gather((loss, names))
        bad = [entry for entry in found if not math.isfinite(entry[0])] or found
        clips = ", ".join(dict.fromkeys(name for entry in bad for name in entry[1]))
        raise UserError(
            f"step {self.step}: loss {bad[0][0]}, gradient norm {norm}" + (f", clips {clips}" if clips else "")
            + "; look at the clips, lower the learning rate, and start again: it goes on from the last checkpoint"
        )  # fmt: skip

    def _report(self, norm: float) -> None:
        """Means over the steps since the last line, written down and told."""
        names = dict.fromkeys(name for entry in self.recent for name in entry)
        means = {name: float(np.mean([entry[name] for entry in self.recent if name in entry])) for name in names}
        seconds = means.pop("seconds")
        row: dict[str, Any] = {"step": self.step, **means}
        row |= {"gradient": norm, "rate": self.settings.rate(self.step - 1), "seconds": seconds}
        self.journal.write(row)
        left = clock((self.settings.steps - self.step) * seconds)
        shown = " ".join(f"{name} {value:.4f}" for name, value in row.items() if name not in ("step", "seconds"))
        if rank() == 0:
            self.log(f"{self.step}/{self.settings.steps} {shown} {seconds:.2f} s/step, {left} left")

    def _state(self) -> State:
        state: State = {f"parameters/{name}": value for name, value in self.parameters.items()}
        state |= {f"average/{name}": value for name, value in self.average.values.items()}
        for number, entry in enumerate(self.recent):
            state |= {f"recent/{number}/{name}": torch.tensor(x, dtype=torch.float64) for name, x in entry.items()}
        return state | optimizer_state(self.optimizers)

    def save(self) -> None:
        """Writes a checkpoint and removes those before the last ones."""
        write_checkpoint(self.folder, self.step, self._state(), self.settings.keep)

    @torch.no_grad()
    def _load(self) -> None:
        found = checkpoints(self.folder)
        if not found:
            return
        saved = Checkpoint(found[-1])
        if set(saved.below("parameters")) != self.parameters.keys():
            raise UserError(f"{saved.path}: trains other parameters than this configuration; use another folder")
        for name, parameter in self.parameters.items():
            put(parameter, saved[f"parameters/{name}"])
            put(self.average.values[name], saved[f"average/{name}"])
        load_optimizers(self.optimizers, saved)
        for name in saved.below("recent"):
            number, key = name.split("/")
            if int(number) == len(self.recent):
                self.recent.append({})
            self.recent[int(number)][key] = float(saved[f"recent/{name}"])
        self.step = saved.step
        if rank() == 0:
            self.log(f"goes on from {saved.path.name}")


def make_optimizers(parameters: dict[str, nn.Parameter], settings: LoopSettings) -> list[torch.optim.Optimizer]:
    """AdamW, decaying matrices only; with `muon` the matrices inside the layers go to Muon."""
    matrices = {
        name: p for name, p in parameters.items() if settings.optimizer == "muon" and p.ndim >= 2 and is_hidden(name)
    }
    rest = [p for name, p in parameters.items() if name not in matrices]
    found: list[torch.optim.Optimizer] = []
    if rest:
        groups: Iterable[dict[str, Any]] = (
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
        )
        kept = [group | {"highest": settings.learning_rate} for group in groups if group["params"]]
        found.append(torch.optim.AdamW(kept, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps))
    if matrices:
        group = {"params": list(matrices.values()), "highest": settings.muon_rate}
        found.append(Muon([group], lr=settings.muon_rate, weight_decay=settings.weight_decay))
    return found


def is_hidden(name: str) -> bool:
    """Whether a parameter is a matrix of an attention or MLP inside a layer, or a convolution inside the VAE."""
    if name.startswith(("encoder.", "decoder.")):
        return name.endswith("weight") and not re.search(r"conv_(in|out|y|b)\.|norm", name)
    return "transformer_blocks." in name and "modulation" not in name
