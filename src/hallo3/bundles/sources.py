"""Reading other people's checkpoints: memory-mapped, never executed, with errors that name the file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import UserError
from .parts import read_header, read_json, weight_files
from .shards import FORMAT_NAMES, Stored

Tensors = dict[str, Stored]
TORCH_DTYPES = {name: dtype for dtype, name in FORMAT_NAMES.items()}


def open_pickle(path: Path, wrapper: str | None = None) -> Tensors:
    """The tensors of a `torch.save` file, left on disk until they are read.

    wrapper: key under which the state dictionary may lie, as `module` or `state_dict`. Raises UserError for anything
    that is not a plain dictionary of tensors: such a file is not unpickled.
    """
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path}: not a checkpoint that can be read safely ({reason}); download it again, or save its tensors anew"
        ) from None
    if isinstance(loaded, Mapping) and wrapper in loaded:
        loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path}: holds a {type(loaded).__name__}, not named tensors; check that it is the right file")
    tensors = {str(name): Stored.of(value) for name, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path}: holds no tensors; check that it is the right file")
    return tensors


def open_safetensors(path: Path) -> Tensors:
    """The tensors of a safetensors file, left on disk until they are read."""
    header = read_header(path)
    file = safe_open(path, framework="pt", device="cpu")
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in TORCH_DTYPES:
            raise UserError(f"{path}: {name} is stored as {entry['dtype']}; give a checkpoint that is not quantised")
        tensors[name] = _stored(file, name, tuple(entry["shape"]), TORCH_DTYPES[entry["dtype"]])
    return tensors


def _stored(file: Any, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Stored:
    if not shape:
        return Stored(shape, dtype, lambda start, stop: file.get_tensor(name))
    return Stored(shape, dtype, lambda start, stop: file.get_slice(name)[start:stop])


def open_model_folder(folder: Path) -> tuple[dict[str, Any], Tensors]:
    """`config.json` and tensors of a model folder as diffusers or transformers write it: safetensors, else `.bin`."""
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; give the model's folder with its config.json")
    config = read_json(folder / "config.json")
    for stem in ("diffusion_pytorch_model", "model"):
        if any((folder / f"{stem}.safetensors{end}").exists() for end in ("", ".index.json")):
            files = weight_files(folder, stem)
            return config, {name: tensor for file in files for name, tensor in open_safetensors(file).items()}
    return config, {name: tensor for file in _pickles(folder) for name, tensor in open_pickle(file).items()}


def _pickles(folder: Path) -> list[Path]:
    index = folder / "pytorch_model.bin.index.json"
    if index.exists():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or any(Path(str(name)).name != name for name in names.values()):
            raise UserError(f"{index}: holds no valid weight_map; download it again")
        return [folder / name for name in dict.fromkeys(names.values())]
    single = folder / "pytorch_model.bin"
    if not single.exists():
        raise UserError(f"{folder}: holds no weights (model.safetensors or pytorch_model.bin); download it again")
    return [single]


def inside(path: Path, name: str, marker: str = "config.json") -> Path:
    """`path/name` when the folder lies there (a whole diffusers model was given), else `path` itself."""
    return path / name if not (path / marker).exists() and (path / name / marker).exists() else path


def with_prefix(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors whose names start with `prefix`, under their names without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
