"""Data parallel training on the cores of one machine.

Two single-threaded processes that meet once a step do more than one process of two threads, which meet at every
operation: on a busy machine twice as much.
"""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    """Number of this process, 0 alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(items: list[Any]) -> list[Any]:
    """The items that are this process's to work on; all of them alone."""
    return items[rank() :: processes()]


@torch.no_grad()
def add_up(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors' sums over all processes, in one exchange; alone the tensors themselves."""
    if not dist.is_initialized():
        return tensors
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Averages gradients over all processes. A parameter without a gradient counts as zero; alone nothing happens."""
    if not dist.is_initialized():
        return
    owners = list(parameters)
    totals = add_up([torch.zeros_like(p) if p.grad is None else p.grad for p in owners])
    for parameter, total in zip(owners, totals, strict=True):
        parameter.grad = total.div_(processes())


def run_processes(count: int, function: Callable[..., None], *arguments: Any) -> None:
    """Runs `function(*arguments)` in `count` single-threaded processes of one group; in this process if it is one."""
    if count == 1:
        function(*arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        torch.multiprocessing.spawn(_start, (count, str(meeting), function, arguments), nprocs=count, daemon=True)


def _start(number: int, count: int, meeting: str, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=count)
    try:
        function(*arguments)
    finally:
        dist.destroy_process_group()
