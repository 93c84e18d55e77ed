"""Which device and which number format a run uses, and whether its memory suffices."""

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from ..errors import UserError

KINDS, USUAL = ("cpu", "cuda", "mps"), "cpu, cuda, cuda:1 or mps"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(name: str = "auto") -> torch.device:
    """`auto` is a GPU where there is one, else the CPU. Raises UserError for one that can't be computed on."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: no such kind of device; use auto, {USUAL}") from None
    if device.type not in KINDS:  # torch knows names that this build of it can't compute on, and some that none can
        raise UserError(f"--device {name}: hallo3 does not compute on this kind; use auto, {USUAL}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this torch sees {torch.cuda.device_count()} CUDA GPUs; use auto or cpu")
    if device.type == "mps" and (device.index or not torch.backends.mps.is_available()):
        raise UserError(f"--device {name}: this torch sees no such Apple GPU; use auto or cpu")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 on the CPU, where few processors multiply bfloat16 fast."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise UserError(f"--dtype {name}: unknown number format; use auto, {', '.join(DTYPES)}")
    if name == "float16" and device.type == "cpu":
        raise UserError(
            "--dtype float16: processors compute it a hundred times slower than float32; use float32 or auto"
        )
    return DTYPES[name]


def device_name(device: torch.device) -> str:
    """What a person calls it: the GPU's name, or the processor's with how many there are."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} processors"
    return platform.processor() or platform.machine()


def free_memory(device: torch.device) -> int:
    """Bytes that a new allocation can take on `device`."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_host_memory()


def free_host_memory() -> int:
    """Bytes the system can still give this process: what the machine has left, cut by what limits the process.

    That is its own limit on addresses, and those of the control groups that containers and batch systems put it into.
    """
    limits = [_machine_memory(), *_left_by_groups()]
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            limits.append(max(0, soft - _mapped_by_this_process()))
    except (ImportError, OSError):  # not on Windows
        pass
    return min(limits)


def _machine_memory() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 62  # unknown: let the allocation itself decide


CONTROL_GROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_GROUP_FILES = {  # limit, usage, and what of that the system takes back when it is needed, in each version
    "": ("memory.max", "memory.current", ("inactive_file", "active_file")),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
}


def _left_by_groups(root: Path = CONTROL_GROUPS, membership: Path = MEMBERSHIP) -> Iterator[int]:
    """Bytes that each control group of this process which has a limit leaves it; its parents' limits hold as well."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not on Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        kind = "" if not controllers else "memory" if "memory" in controllers.split(",") else None
        if kind is None:
            continue
        # A container may be told its path on the host, of which it sees the end, or nothing.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            with suppress(OSError, ValueError):  # no such group here, or `max`
                yield _left_in(root / kind / Path(*parts[:depth]), *_GROUP_FILES[kind])


def _left_in(group: Path, limit: str, usage: str, spare: tuple[str, ...]) -> int:
    allowed, used = int((group / limit).read_text()), int((group / usage).read_text())
    stated = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return max(0, allowed - used + sum(int(stated.get(name, 0)) for name in spare))


def _mapped_by_this_process() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
