"""Choosing device and number format, and refusing what the machine can't do before anything is loaded."""

from pathlib import Path

import pytest
import torch

from hallo3.errors import UserError
from hallo3.runtime.devices import _left_by_groups, choose_device, choose_dtype, free_host_memory

CPU = torch.device("cpu")


def test_auto_is_a_device_that_computes() -> None:
    device = choose_device("auto")
    assert torch.ones(2, device=device).sum().item() == 2


@pytest.mark.parametrize("name", ["abacus", "cuda:99", "cuda:x", "", "meta", "xpu", "vulkan", "mps:3"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="--device"):
        choose_device(name)


def test_number_formats() -> None:
    assert choose_dtype("auto", CPU) == torch.float32
    assert choose_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert choose_dtype("bfloat16", CPU) == torch.bfloat16
    for name in ("float12", "float16"):
        with pytest.raises(UserError, match="--dtype"):
            choose_dtype(name, CPU)


def test_free_memory_is_known() -> None:
    assert 1e8 < free_host_memory() < 1e15


def write_group(group: Path, **values: object) -> None:
    """Files of a control group; `memory__max` is memory.max."""
    group.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (group / name.replace("__", ".")).write_text(f"{value}\n")


def left(root: Path, *lines: str) -> list[int]:
    (root / "membership").write_text("".join(f"{line}\n" for line in lines))
    return list(_left_by_groups(root, root / "membership"))


def test_what_a_container_may_take(tmp_path: Path) -> None:
    """Control groups, version 2: the group's own limit and its parents'; what only caches files is free."""
    stat = "anon 10\ninactive_file 300\nactive_file 100"
    write_group(tmp_path / "a" / "b", memory__max=4000, memory__current=1500, memory__stat=stat)
    write_group(tmp_path / "a", memory__max=2500, memory__current=2000, memory__stat=stat)
    assert sorted(left(tmp_path, "0::/a/b")) == [900, 2900]
    write_group(tmp_path / "a" / "b", memory__max="max")
    assert left(tmp_path, "0::/a/b") == [900]
    assert left(tmp_path, "0::/somewhere/on/the/host") == []
    write_group(tmp_path, memory__max=1000, memory__current=2000, memory__stat=stat)
    assert left(tmp_path, "0::/../somewhere") == [0]


def test_what_an_older_container_may_take(tmp_path: Path) -> None:
    """Version 1 has a tree for each kind of limit, and a very large number for none."""
    stat = "cache 900\ntotal_inactive_file 50\ntotal_active_file 0"
    names = {"memory__usage_in_bytes": 200, "memory__stat": stat}
    write_group(tmp_path / "memory" / "job", memory__limit_in_bytes=1000, **names)
    write_group(tmp_path / "memory", memory__limit_in_bytes=(1 << 63) - 4096, **names)
    write_group(tmp_path / "pids" / "job", memory__limit_in_bytes=1, **names)
    assert min(left(tmp_path, "9:pids:/job", "4:cpu,memory:/job", "0::/")) == 850


def test_free_memory_is_what_the_tightest_limit_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hallo3.runtime.devices._left_by_groups", lambda: [123456, 1 << 60])
    assert free_host_memory() == 123456
