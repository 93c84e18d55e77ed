"""What a training writes down: metrics.jsonl always, TensorBoard where it is installed, Weights & Biases when asked."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hallo3.errors import UserError
from hallo3.media.files import writing
from hallo3.training.parallel import rank

HIDDEN = ("step", "seconds")
KEPT = "the last checkpoint stays: make room, then start again, and the training goes on from there"


class Journal:
    """Numbers and pictures of a training, by step. Only the first process writes.

    Args:
        folder: Of the training. step: where it goes on; rows of later steps, which will come again, are taken out.
        wandb: Project of Weights & Biases to send everything to; None sends nothing anywhere.

    Raises:
        UserError: for a project where wandb is not installed.
    """

    def __init__(self, folder: Path, step: int = 0, wandb: str | None = None):
        self.file = folder / "metrics.jsonl"
        self._board: Any = None
        self._run: Any = None
        if rank():
            return
        with writing(self.file, KEPT):
            if self.file.exists():
                _cut(self.file, step)
            self._board = _tensorboard(folder / "tensorboard", step)
        if wandb is not None:
            self._run = _wandb(wandb, folder)

    def write(self, row: dict[str, float]) -> None:
        """Adds a row; it has a `step`."""
        if rank():
            return
        numbers = {name: value for name, value in row.items() if name != "step"}
        brief = {name: float(f"{value:.6g}") for name, value in numbers.items()}
        with writing(self.file, KEPT), self.file.open("a") as file:
            file.write(json.dumps({"step": int(row["step"]), **brief}) + "\n")
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, int(row["step"]))
        if self._run is not None:
            self._run.log(numbers, step=int(row["step"]))

    def picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """Shows a picture `(H, W, 3)`."""
        if self._board is not None:
            self._board.add_image(name, picture, step, dataformats="HWC")
        if self._run is not None:
            import wandb

            self._run.log({name: wandb.Image(picture)}, step=step)

    def close(self) -> None:
        """Draws the curves and closes what is open."""
        if rank():
            return
        with writing(self.file, KEPT):
            plot(self.file)
            if self._board is not None:
                self._board.close()
        if self._run is not None:
            self._run.finish()


def read_metrics(file: Path) -> list[dict[str, float]]:
    """Rows of a metrics.jsonl; a last line that was cut off is left out."""
    rows = []
    for line in file.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def plot(file: Path) -> Path | None:
    """Draws every number of a metrics.jsonl over the steps, as loss.png beside it.

    Returns the picture; None when there are no rows or matplotlib is not installed.
    """
    rows = read_metrics(file) if file.exists() else []
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in HIDDEN]
    if not names:
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * lines), layout="constrained")
    for number, name in enumerate(names):
        axes = figure.add_subplot(lines, columns, number + 1, title=name)
        points = [(row["step"], row[name]) for row in rows if name in row]
        axes.plot(*zip(*points, strict=True), linewidth=1, marker="." if len(points) < 30 else None)
        axes.grid(alpha=0.3)
        axes.set_xlabel("step")
    picture = file.with_name("loss.png")
    figure.savefig(picture, dpi=100)
    return picture


def _cut(file: Path, step: int) -> None:
    """Takes rows after `step` out, aside first."""
    rows = [row for row in read_metrics(file) if row["step"] <= step]
    aside = file.with_suffix(".part")
    aside.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(aside, file)


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)


def check_wandb(project: str | None) -> None:
    """Raises UserError for a project of Weights & Biases where that is not installed."""
    if project is not None:
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise UserError("wandb: not installed; pip install wandb, or leave the setting out") from error


def _wandb(project: str, folder: Path) -> Any:
    check_wandb(project)
    import wandb

    # The same folder is the same run, also after it was stopped; many folders are called alike.
    place = folder.resolve()
    number = hashlib.blake2b(str(place).encode(), digest_size=4).hexdigest()
    return wandb.init(project=project, dir=str(folder), name=place.name, id=f"{place.name}-{number}", resume="allow")
