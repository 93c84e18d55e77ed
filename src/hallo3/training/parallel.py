"""Training in several processes of one group: whole copies whose gradients are averaged, or numbers spread over all.

On one machine's cores two single-threaded processes that meet once a step do more than one process of two threads,
which meet at every operation: on a busy machine twice as much. On GPUs the networks are spread (FSDP2), so that
weights, gradients, averages and the optimiser's state take each device only its share.
"""

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from hallo3.errors import UserError, hush_libraries


def rank() -> int:
    """Number of this process, 0 alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def say(line: str) -> None:
    """Prints a line of the first process at once, beside a command's result, so that a log file can be followed."""
    if rank() == 0:
        print(line, file=sys.stderr, flush=True)


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(items: list[Any]) -> list[Any]:
    """The items that are this process's to work on; all of them alone."""
    return items[rank() :: processes()]


def barrier() -> None:
    """Waits for the other processes."""
    if dist.is_initialized():
        dist.barrier()


def mean(value: float) -> float:
    """Mean of a number over all processes."""
    if not dist.is_initialized():
        return value
    device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    total = torch.tensor(value, device=device, dtype=torch.float64)
    dist.all_reduce(total)
    return float(total) / processes()


def any_failed(failed: bool) -> bool:
    """Whether something failed in any process."""
    return any(gather(failed))


def gather(value: Any) -> list[Any]:
    """A small value of every process."""
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * processes()
    dist.all_gather_object(found, value)
    return found


def together(action: Callable[[], None]) -> None:
    """Does something in every process. A UserError of one is raised in all, so that none waits for it in vain."""
    problem = None
    try:
        action()
    except UserError as error:
        problem = str(error)
    told = [entry for entry in gather(problem) if entry is not None]
    if told:
        raise UserError(told[0])


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps other trainings out of a folder, which is made: they would write files of the same names.

    Every process must call it; inside itself it changes nothing. Raises UserError in all of them while another training
    is there, or when the folder can't be made.
    """
    # One object for one place, so that who holds it may take it again.
    lock = FileLock(folder.resolve() / "training.lock", is_singleton=True)

    def take() -> None:
        if rank():
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(f"{folder}: another training writes there; wait for it, or use another folder") from error
        except OSError as error:
            raise UserError(f"{folder}: can't be written to ({error.strerror}); give another folder") from error

    together(take)
    try:
        yield
    finally:
        if rank() == 0:
            lock.release()


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
    """Averages gradients over all processes. A parameter without a gradient counts as zero; alone nothing happens.

    Networks that are spread have done so themselves, in their backward pass.
    """
    owners = [p for p in parameters if not is_spread(p)]
    if not dist.is_initialized() or not owners:
        return
    totals = add_up([torch.zeros_like(p) if p.grad is None else p.grad for p in owners])
    for parameter, total in zip(owners, totals, strict=True):
        parameter.grad = total.div_(processes())


def spread(network: nn.Module) -> None:
    """Spreads a network's numbers over all processes, layer by layer (FSDP2): each keeps a part of every tensor's rows.

    Gradients of a step are averaged over the processes as they come.
    """
    from torch.distributed.fsdp import fully_shard

    for layer in network.get_submodule("transformer_blocks").children():
        fully_shard(layer)
    fully_shard(network)


def is_spread(tensor: Tensor) -> bool:
    """Whether this process holds only a part of the tensor."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; every process must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(full: Tensor, like: Tensor) -> Tensor:
    """The rows of a whole tensor that this process holds of `like`."""
    if not isinstance(like, DTensor):
        return full
    chunks = full.chunk(processes())
    return chunks[rank()] if rank() < len(chunks) else full[:0]


def spread_like(full: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, spread as `like` is, whose shape it has."""
    if not isinstance(like, DTensor):
        return full.clone()
    part = own_part(full, like).to(local(like).device).clone()
    return DTensor.from_local(part, like.device_mesh, like.placements, shape=full.shape, stride=full.stride())


@contextmanager
def launched() -> Iterator[None]:
    """Joins the group of processes that `torchrun` started, if it did, and leaves it at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(number)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def run_processes(count: int, function: Callable[..., None], *arguments: Any) -> None:
    """Runs `function(*arguments)` in `count` single-threaded processes of one group; in this process if it is one.

    A UserError of one of them is raised here.
    """
    if count == 1:
        function(*arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        given = (count, str(meeting), os.getpid(), function, arguments)
        try:
            torch.multiprocessing.spawn(_start, given, nprocs=count, daemon=True)
        except (ProcessRaisedException, ProcessExitedException):
            told = sorted(Path(folder).glob("mistake*"))
            if told:
                raise UserError(told[0].read_text(encoding="utf-8")) from None
            raise


def _start(
    number: int, count: int, meeting: str, parent: int, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    hush_libraries()
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=count)
    try:
        function(*arguments)
    except UserError as error:
        Path(meeting).with_name(f"mistake{number}").write_text(str(error), encoding="utf-8")
        raise
    finally:
        dist.destroy_process_group()


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone: a killed one can't, and its children would go on and on."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
