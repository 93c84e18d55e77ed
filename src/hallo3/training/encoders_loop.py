"""The training loop of the small encoders: AdamW with warm-up and cosine, resumable after any interruption."""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Log = Callable[[str], None]


@dataclass(frozen=True)
class LoopSettings:
    """How long and how fast an encoder learns.

    Attributes:
        steps: Steps of the whole training; the cosine ends there.
        learning_rate: Highest learning rate, after `warmup` steps.
        seed: Seed of initial weights and of every batch.
        save_every, log_every: Steps between checkpoints and between printed lines.
    """

    steps: int
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 100
    clip: float = 1.0
    seed: int = 0
    save_every: int = 250
    log_every: int = 50


def step_random(seed: int, step: int) -> np.random.Generator:
    """Random numbers of one step: the same ones whether training ran through or was resumed."""
    return np.random.default_rng([seed, step])


def run_loop(
    module: nn.Module,
    step_loss: Callable[[int], tuple[Tensor, dict[str, float]]],
    folder: Path,
    settings: LoopSettings,
    log: Log = print,
) -> list[float]:
    """Trains every parameter of `module` on `step_loss(step)`, which returns the loss and numbers worth printing.

    Goes on from `folder/checkpoint.pt` if it is there. Returns the losses of the steps taken by this call.
    """
    groups = [
        {"params": [p for p in module.parameters() if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in module.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    start = _load(checkpoint, module, optimizer)
    losses: list[float] = []
    began = time.monotonic()
    for step in range(start, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _warmup_cosine(step, settings)
        loss, numbers = step_loss(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), settings.clip)
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % settings.log_every == 0:
            pace = (time.monotonic() - began) / len(losses)
            mean = sum(losses[-settings.log_every :]) / len(losses[-settings.log_every :])
            shown = " ".join(f"{name} {value:.3f}" for name, value in numbers.items())
            log(f"step {step + 1}/{settings.steps} loss {mean:.4f} {shown} {pace:.2f} s/step")
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            _save(checkpoint, module, optimizer, step + 1)
    return losses


def write_metrics(folder: Path, metrics: dict[str, Any], log: Log = print) -> None:
    """Prints measured numbers and keeps them beside the weights as `metrics.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(metrics, indent=2, sort_keys=True)
    (folder / "metrics.json").write_text(text + "\n")
    log(text)


def _warmup_cosine(step: int, settings: LoopSettings) -> float:
    warm = min(1.0, (step + 1) / max(1, settings.warmup))
    return warm * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / settings.steps)))


def _load(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location="cpu")
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _save(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    # Written aside and renamed: an interruption leaves the last whole checkpoint.
    aside = path.with_suffix(".tmp")
    torch.save({"module": module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, aside)
    os.replace(aside, path)
