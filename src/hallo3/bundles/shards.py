"""Tensors as streams of blocks, and safetensors files written from them without ever holding a whole one in memory.

A converted model can be larger than the machine's memory: a tensor is read from its memory-mapped source some rows at a
time, cast, and written. The file format: 8 bytes of header length (little endian), a JSON header with every tensor's
dtype, shape and place, then the data (https://huggingface.co/docs/safetensors).
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, Protocol

import torch
from torch import Tensor

from ..errors import UserError

BLOCK_BYTES = 4 << 20
FORMAT_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Stream(Protocol):
    """A tensor that is read block by block along its first axis."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def blocks(self) -> Iterator[Tensor]:
        """The rows in order, in pieces of about `BLOCK_BYTES`."""
        ...


def _ranges(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[int, int]]:
    rows = max(1, BLOCK_BYTES // max(1, prod(shape[1:]) * itemsize))
    for start in range(0, shape[0], rows):
        yield start, min(start + rows, shape[0])


@dataclass(frozen=True)
class Stored:
    """A tensor in a file or in memory. read(start, stop) gives rows of the first axis; the whole of a scalar."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[int, int], Tensor]

    @staticmethod
    def of(tensor: Tensor) -> "Stored":
        """A stream over a tensor at hand (a memory-mapped one stays on disk until it is read)."""
        if tensor.ndim == 0:
            return Stored((), tensor.dtype, lambda start, stop: tensor)
        return Stored(tuple(tensor.shape), tensor.dtype, lambda start, stop: tensor[start:stop])

    def blocks(self) -> Iterator[Tensor]:
        if not self.shape:
            yield self.read(0, 1)
            return
        for start, stop in _ranges(self.shape, self.dtype.itemsize):
            yield self.read(start, stop)


@dataclass(frozen=True)
class Rows:
    """Rows `start` to `stop` of a stored tensor."""

    source: Stored
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stop - self.start, *self.source.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.source.dtype

    def blocks(self) -> Iterator[Tensor]:
        for start, stop in _ranges(self.shape, self.dtype.itemsize):
            yield self.source.read(self.start + start, self.start + stop)


@dataclass(frozen=True)
class Joined:
    """Streams one after the other along the first axis, as fused projections keep theirs."""

    pieces: tuple[Stream, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(piece.shape[0] for piece in self.pieces), *self.pieces[0].shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.pieces[0].dtype

    def blocks(self) -> Iterator[Tensor]:
        for piece in self.pieces:
            yield from piece.blocks()


@dataclass(frozen=True)
class Fresh:
    """A new tensor: `value` plus normal noise of deviation `std`, the same for the same seed."""

    shape: tuple[int, ...]
    value: float = 0.0
    std: float = 0.0
    seed: int = 0
    dtype: torch.dtype = torch.float32

    def blocks(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        for start, stop in _ranges(self.shape, self.dtype.itemsize):
            block = torch.full((stop - start, *self.shape[1:]), self.value, dtype=self.dtype)
            if self.std:
                block += torch.randn(block.shape, generator=generator) * self.std
            yield block


def parse_size(text: str | int) -> int:
    """Bytes of a size such as `5GB`, `9MB` or `800 KB` (powers of ten), or of a plain number of bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", str(text), re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise UserError(f"shard size {text!r}: not a size; write for example 5GB or 500MB")
    return max(1, int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " ")))


def plan_shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in their order, grouped so that no group's bytes exceed `limit`; a larger tensor gets a file of its own."""
    groups: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not groups or size > room:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= size
    return groups


def write_shards(
    folder: Path,
    stem: str,
    tensors: Mapping[str, Stream],
    dtype: torch.dtype | None = None,
    max_shard_size: str | int = "5GB",
    on_bytes: Callable[[int], None] | None = None,
) -> int:
    """Writes tensors as `stem.safetensors`, or as `stem-00001-of-0000N.safetensors` with the index that loaders expect.

    Args:
        folder: Where to write; must exist.
        stem: `diffusion_pytorch_model` for diffusers' classes, `model` for transformers'.
        tensors: What to write, in this order.
        dtype: Number format of the floating-point tensors; None keeps each one's own.
        max_shard_size: Most bytes of one file, apart from the header, unless one tensor alone is larger.
        on_bytes: Called with the number of bytes after each block written.

    Returns:
        Bytes of tensor data.
    """
    kinds = {name: _written_dtype(tensor.dtype, dtype) for name, tensor in tensors.items()}
    sizes = {name: prod(tensor.shape) * kinds[name].itemsize for name, tensor in tensors.items()}
    groups = plan_shards(sizes, parse_size(max_shard_size))
    places: dict[str, str] = {}
    for number, names in enumerate(groups, 1):
        suffix = f"-{number:05d}-of-{len(groups):05d}" if len(groups) > 1 else ""
        path = folder / f"{stem}{suffix}.safetensors"
        _write_file(path, {name: tensors[name] for name in names}, kinds, on_bytes)
        places.update(dict.fromkeys(names, path.name))
    total = sum(sizes.values())
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return total


def _written_dtype(stored: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    if wanted is not None and stored.is_floating_point:
        return wanted
    return stored


def _write_file(
    path: Path,
    tensors: Mapping[str, Stream],
    kinds: Mapping[str, torch.dtype],
    on_bytes: Callable[[int], None] | None,
) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + prod(tensor.shape) * kinds[name].itemsize
        header[name] = {
            "dtype": FORMAT_NAMES[kinds[name]],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data starts aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            _write_tensor(file, name, tensor, kinds[name], on_bytes)
        file.flush()
        os.fsync(file.fileno())


def _write_tensor(
    file: BinaryIO, name: str, tensor: Stream, kind: torch.dtype, on_bytes: Callable[[int], None] | None
) -> None:
    written = 0
    for block in tensor.blocks():
        data = block.detach().to(device="cpu", dtype=kind).contiguous().reshape(-1).view(torch.uint8).numpy()
        written += file.write(data.data)
        if on_bytes is not None:
            on_bytes(data.nbytes)
    if written != prod(tensor.shape) * kind.itemsize:
        raise ValueError(f"{name}: the stream gave {written} bytes for shape {tensor.shape}")
