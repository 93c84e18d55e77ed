"""A bundle as a folder: its index, loading its parts, and writing parts that are in memory as a bundle.

The layout is diffusers': `model_index.json` names the class of every part, a sub-folder each holds configuration and
safetensors. A bundle may be partial (only some parts were converted); its index then lists what is missing.
"""

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from .index import PUBLISHED_CONFIG, Index, extend_index, missing_parts, read_index, write_index
from .parts import (
    PARTS,
    Part,
    check_part,
    class_pair,
    part_class,
    read_header,
    read_json,
    weight_files,
    write_transformers_config,
)
from .places import resolve
from .shards import FORMAT_NAMES, Stored, write_shards
from .staging import staged_folder

__all__ = [
    "PUBLISHED_CONFIG",
    "Index",
    "check_bundle",
    "empty_component",
    "load_components",
    "load_pipeline",
    "missing_parts",
    "read_index",
    "save_components",
    "save_part",
    "save_pipeline",
    "write_index",
]


def check_bundle(
    folder: Path, wanted: Iterable[str], optional: Iterable[str] = (), *, weights: bool = True
) -> list[str]:
    """Which of the wanted parts are there and whole, reading headers only. Needless ones (`Index`) may be missing.

    weights: False looks at the parts' configurations alone.
    Raises UserError when one is missing that is not optional, or when a file is missing, cut short or broken.
    """
    index = read_index(folder)
    absent = [name for name in wanted if name not in index.parts]
    lacking = [name for name in absent if name not in {*optional, *index.needless}]
    if lacking:
        options = " ".join(dict.fromkeys(PARTS[name].option for name in lacking))
        raise UserError(
            f"{folder}: a partial bundle, without {', '.join(lacking)}; "
            f"add what is missing with `hallo3 convert {options} … --out {folder}`"
        )
    present = [name for name in wanted if name in index.parts]
    for name in present:
        check_part(folder / name, PARTS[name], weights=weights)
    return present


def load_components(
    path_or_name: str | Path,
    parts: Iterable[str] | None = None,
    *,
    torch_dtype: torch.dtype | str | None = None,
    optional: Iterable[str] = (),
    local_files_only: bool = False,
    revision: str | None = None,
) -> dict[str, Any]:
    """Loads parts of a bundle, each by its own class, in evaluation mode on the CPU.

    Args:
        path_or_name: A folder, a name on this machine (`embedded`) or a hub repository in this layout.
        parts: Which parts; all by default.
        torch_dtype: Number format of the weights; float32 by default, "auto" for that of the files.
        optional: Parts that may be missing; they come back as None, as those do that the denoiser takes nothing of.
        local_files_only: Never ask the hub.
        revision: Of a hub repository.

    Raises:
        UserError: unknown, partial, half-copied or damaged bundle; the message names the file or part and the remedy.
    """
    wanted = list(PARTS) if parts is None else list(parts)
    unknown = [name for name in wanted if name not in PARTS]
    if unknown:
        raise ValueError(f"not parts of a bundle: {unknown}; there are {list(PARTS)}")
    folder = resolve(path_or_name, parts=wanted, local_files_only=local_files_only, revision=revision)
    present = check_bundle(folder, wanted, optional)
    index = read_index(folder)
    dtype = None if torch_dtype == "auto" else _float_dtype(torch_dtype)
    loaded = {name: _load_part(folder / name, PARTS[name], index.parts[name], dtype) for name in present}
    return {name: loaded.get(name) for name in wanted}


def empty_component(path_or_name: str | Path, part: str, torch_dtype: torch.dtype) -> Any:
    """A part of a bundle without its numbers (on torch's meta device): it knows its configuration and takes no memory.

    Raises UserError as `load_components`.
    """
    folder = resolve(path_or_name, parts=[part])
    check_bundle(folder, [part])
    cls = part_class(read_index(folder).parts[part])
    with torch.device("meta"), quiet_loaders():
        if hasattr(cls, "from_config"):
            model = cls.from_config(cls.load_config(str(folder / part)))
        else:
            model = cls(cls.config_class.from_pretrained(str(folder / part)))
        return model.to(torch_dtype).eval()


def _float_dtype(wanted: torch.dtype | str | None) -> torch.dtype:
    dtype = getattr(torch, wanted, None) if isinstance(wanted, str) else wanted or torch.float32
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UserError(f"number format {wanted}: not one for weights; use float32, bfloat16, float16 or auto")
    return dtype


def _load_part(folder: Path, part: Part, pair: tuple[str, str], dtype: torch.dtype | None) -> Any:
    options: dict[str, Any] = {"local_files_only": True} if pair[0] in ("diffusers", "transformers") else {}
    if part.weights is not None:
        key = "dtype" if pair[0] == "transformers" else "torch_dtype"
        options[key] = dtype or stored_dtype(folder, part)
        # safetensors only: a pickle may run code, and bundles come from strangers.
        options |= {"use_safetensors": True, "output_loading_info": True}
    try:
        with quiet_loaders():
            loaded = part_class(pair).from_pretrained(str(folder), **options)
    except (UserError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        if "out of memory" in reason.lower() or "can't allocate memory" in reason.lower():
            raise
        raise UserError(f"{folder}: can't be loaded ({reason[:300]}); copy or convert the bundle again") from error
    if part.weights is None:
        return loaded
    model, report = loaded
    # The loaders only warn of these, and go on with random numbers in place of what is missing.
    for fault in ("missing", "unexpected", "mismatched"):
        if report.get(f"{fault}_keys"):
            names = sorted(str(key) for key in report[f"{fault}_keys"])
            raise UserError(f"{folder}: {len(names)} {fault} tensors ({names[0]}, …); copy or convert the bundle again")
    return model.eval()


@contextmanager
def quiet_loaders() -> Iterator[None]:
    """Keeps diffusers' and transformers' progress bars and warnings to themselves: faults become UserErrors here."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    logs = (diffusers_log, transformers_log)
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, (verbosity, bar) in zip(logs, before, strict=True):
            log.set_verbosity(verbosity)
            if bar:
                log.enable_progress_bar()


def stored_dtype(folder: Path, part: Part) -> torch.dtype:
    """The floating-point number format that most tensors of a part are stored in; float32 if there is none."""
    known = {name: dtype for dtype, name in FORMAT_NAMES.items() if dtype.is_floating_point}
    files = weight_files(folder, part.weights) if part.weights else []
    kinds = [entry["dtype"] for file in files for entry in read_header(file).values() if entry["dtype"] in known]
    return known[max(set(kinds), key=kinds.count)] if kinds else torch.float32


def load_pipeline(cls: Any, path_or_name: str | Path, **options: Any) -> Any:
    """Loads a bundle as a pipeline of class `cls`; see `load_components`.

    options: `torch_dtype`, `local_files_only`, `revision`, and any component or setting to use instead of the bundle's.
    """
    given = {name: options.pop(name) for name in PARTS if name in options}
    settings = {name: options.pop(name) for name in PUBLISHED_CONFIG if name in options}
    accepted = inspect.signature(load_components).parameters
    unknown = sorted(set(options) - (set(accepted) - {"path_or_name", "parts", "optional"}))
    if unknown:
        raise TypeError(f"from_pretrained() got unexpected options {unknown}")
    wanted = [name for name in PARTS if name not in given]
    places = {name: options[name] for name in ("local_files_only", "revision") if name in options}
    folder = resolve(path_or_name, parts=wanted, **places)
    loaded = load_components(folder, wanted, torch_dtype=options.get("torch_dtype"))
    pipeline = cls(**loaded, **given, **(dict(read_index(folder).config) | settings))
    pipeline.register_to_config(_name_or_path=str(path_or_name))
    return pipeline


def save_components(
    folder: str | Path,
    components: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    *,
    max_shard_size: str | int = "5GB",
    dtype: torch.dtype | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Writes parts that are in memory as a bundle; the folder appears when it is complete.

    Args:
        folder: Made if needed. Parts already there are kept unless given again; the index then lists both.
        components: Part name → object. None is left out.
        config: Pipeline settings; those of the index already there, then the published defaults, fill the rest.
        max_shard_size: Most bytes of one safetensors file.
        dtype: Number format to write floating-point weights in; None keeps each tensor's own.
        notes: Further index keys with a leading underscore (what the weights are, under which licence).
    """
    folder = Path(folder)
    given = {name: component for name, component in components.items() if component is not None}
    parts = {name: class_pair(PARTS[name], component) for name, component in given.items()}
    with staged_folder(folder) as stage:
        for name, component in given.items():
            (stage / name).mkdir()
            save_part(stage / name, PARTS[name], component, max_shard_size, dtype)
        _forget_origins(stage)
        extend_index(folder, stage, parts, config, notes)


def save_part(folder: Path, part: Part, component: Any, max_shard_size: str | int, dtype: torch.dtype | None) -> None:
    """Writes one part into its own, existing folder: configuration, and weights as sharded safetensors."""
    if part.weights is None:
        component.save_pretrained(folder)
        return
    state = component.state_dict()
    tied = getattr(component, "all_tied_weights_keys", None) or {}
    tensors = {name: Stored.of(tensor) for name, tensor in state.items() if name not in tied}
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.dtype.is_floating_point}
    if hasattr(component, "save_config"):
        component.save_config(folder)
    else:
        write_transformers_config(folder, component, dtype or min(kinds, key=str))
    write_shards(folder, part.weights, tensors, dtype, max_shard_size)


def _forget_origins(folder: Path) -> None:
    """Takes out of configurations where a part was read from: a folder of the person who makes the bundle."""
    for path in folder.rglob("config.json"):
        config = read_json(path)
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_pipeline(pipeline: Any, folder: str | Path, *, max_shard_size: str | int = "5GB") -> None:
    """Writes a pipeline as a bundle folder, its weights in the number format they have in memory."""
    components = {name: getattr(pipeline, name) for name in PARTS}
    config = {name: pipeline.config[name] for name in PUBLISHED_CONFIG}
    save_components(folder, components, config, max_shard_size=max_shard_size)
