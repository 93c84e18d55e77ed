"""Checkpoints of a training: a folder with one part of every process that holds a part of the numbers.

A checkpoint is written aside and renamed when all parts are whole, so whatever has the right name is complete. Parts
are torch files without code in them (`weights_only`), read memory-mapped, one tensor at a time, and by any number of
processes, not only by as many as wrote them.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from hallo3.errors import UserError
from hallo3.training.parallel import any_failed, barrier, is_spread, local, own_part, processes, rank, spread_like

State = dict[str, Tensor]
"""Everything that a training holds, by name; a tensor may be spread over the processes."""


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a training, oldest first."""
    return sorted(path for path in folder.glob("checkpoint-*") if path.name[len("checkpoint-") :].isdigit())


def write_checkpoint(folder: Path, step: int, state: State, keep: int) -> Path:
    """Writes `folder/checkpoint-STEP` and removes those before the last `keep`. Every process must call it.

    Raises UserError in all processes when one of them can't write.
    """
    path = folder / f"checkpoint-{step:07d}"
    aside = path.with_name(path.name + ".part")
    parts = processes() if any(is_spread(value) for value in state.values()) else 1
    problem = None
    if rank() == 0:
        for left in (*folder.glob("checkpoint-*.part"), *([path] if path.exists() else [])):
            shutil.rmtree(left)
        aside.mkdir(parents=True)
    barrier()
    if rank() < parts:
        try:
            numbers = {name: local(value).detach() for name, value in state.items()}
            torch.save({"step": step, "tensors": numbers}, aside / f"part-{rank()}-of-{parts}.pt")
        except (OSError, RuntimeError) as error:
            problem = str(error)
    if any_failed(problem is not None):
        barrier()
        if rank() == 0:
            shutil.rmtree(aside, ignore_errors=True)
        raise UserError(
            f"{path}: can't write the checkpoint ({problem or 'another process'}); make room and start again"
        )
    if rank() == 0:
        os.rename(aside, path)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    barrier()
    return path


class Checkpoint(Mapping[str, Tensor]):
    """The whole tensors of a checkpoint by name; only those that are asked for are read.

    Attributes:
        step: Optimiser steps that it has behind it.
    """

    def __init__(self, path: Path):
        """Raises UserError for a checkpoint with parts missing or unreadable."""
        self.path = path
        found = sorted(path.glob("part-*-of-*.pt"), key=lambda part: int(part.name.split("-")[1]))
        if not found or len(found) != int(found[0].stem.split("-")[3]):
            raise UserError(
                f"{path}: parts of the checkpoint are missing; remove the folder to go on from the one before"
            )
        try:
            self._parts = [torch.load(p, weights_only=True, map_location="cpu", mmap=True) for p in found]
        except UnpicklingError as error:
            raise UserError(
                f"{path}: holds more than numbers; remove the folder to go on from the one before"
            ) from error
        except (OSError, RuntimeError, EOFError) as error:
            problem = str(error).splitlines()[0]
            raise UserError(
                f"{path}: can't be read ({problem}); remove the folder to go on from the one before"
            ) from error
        self.step = int(self._parts[0]["step"])

    def __getitem__(self, name: str) -> Tensor:
        first: Tensor = self._parts[0]["tensors"][name]
        if len(self._parts) == 1 or first.ndim == 0:  # a number is everyone's, or the first process's own
            return first
        return torch.cat([part["tensors"][name] for part in self._parts])

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts[0]["tensors"])

    def __len__(self) -> int:
        return len(self._parts[0]["tensors"])

    def below(self, prefix: str) -> list[str]:
        """Names that begin with `prefix/`, without it."""
        return [name[len(prefix) + 1 :] for name in self if name.startswith(f"{prefix}/")]


def last_checkpoint(folder: Path) -> Checkpoint:
    """Raises UserError when there is none."""
    found = checkpoints(folder)
    if not found:
        raise UserError(f"{folder}: no checkpoint there; run this training first")
    return Checkpoint(found[-1])


@torch.no_grad()
def load_average(module: nn.Module, folder: Path) -> int:
    """Puts the averaged weights of the last checkpoint into `module`; returns its step.

    Raises UserError when there is none or when it does not fit.
    """
    saved = last_checkpoint(folder)
    parameters = dict(module.named_parameters())
    for name in saved.below("average"):
        if name not in parameters:
            raise UserError(f"{saved.path}: has {name}, which this model has not; use the configuration it began with")
        put(parameters[name], saved[f"average/{name}"])
    return saved.step


@torch.no_grad()
def put(target: Tensor, whole: Tensor) -> None:
    """Copies a whole tensor into one that may be spread over the processes."""
    local(target).copy_(own_part(whole, target))


def optimizer_state(optimizers: list[torch.optim.Optimizer]) -> State:
    """State of the optimisers as `optimizer/NUMBER/PARAMETER/NAME`."""
    return {
        f"optimizer/{number}/{parameter}/{name}": value
        for number, optimizer in enumerate(optimizers)
        for parameter, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def load_optimizers(optimizers: list[torch.optim.Optimizer], saved: Checkpoint) -> None:
    """Puts a checkpoint's state into the optimisers, spread as their parameters are."""
    for number, optimizer in enumerate(optimizers):
        owners = [p for group in optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for name in saved.below(f"optimizer/{number}"):
            parameter, key = name.split("/")
            value = saved[f"optimizer/{number}/{name}"]
            owner = owners[int(parameter)]
            # A counter is a tensor without dimensions, and everyone's.
            state.setdefault(int(parameter), {})[key] = spread_like(value, owner) if value.ndim else value.clone()
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
