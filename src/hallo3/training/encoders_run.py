"""What the trainings of the small encoders share: the loop's settings, averaged weights, metrics beside the weights."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from hallo3.training.checkpoints import load_average
from hallo3.training.loop import Log, Loop, LoopSettings, StepLoss


def encoder_settings(steps: int, rate: float = 2e-3, seed: int = 0) -> LoopSettings:
    """AdamW with a short memory, warm-up and cosine."""
    return LoopSettings(
        steps=steps, learning_rate=rate, betas=(0.9, 0.98), weight_decay=0.01, seed=seed, save_every=250, log_every=50
    )


def train_encoder(module: nn.Module, step_loss: StepLoss, folder: Path, settings: LoopSettings, log: Log) -> None:
    """Trains `module`, from the checkpoint in `folder` if there is one, and leaves the averaged weights in it."""
    Loop(module, step_loss, folder, settings, log).run()
    load_average(module, folder)


def write_metrics(folder: Path, metrics: dict[str, Any], log: Log) -> None:
    """Says what was measured and keeps it beside the weights as `metrics.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(metrics, indent=2, sort_keys=True)
    (folder / "metrics.json").write_text(text + "\n")
    log(text)
