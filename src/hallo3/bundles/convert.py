"""Published files → a bundle: plan everything, complain about everything at once, then write by streams."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from .index import PUBLISHED_CONFIG, extend_index, missing_parts, read_index
from .parts import INDEX, PARTS, VOCALS_FILE, VOCALS_FOLDER, part_class
from .published import Plan, plan_denoiser, plan_speech_encoder, plan_text_encoder, plan_vae
from .shards import write_shards
from .sources import inside
from .staging import staged_folder

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "keep": None}
FACE_FILES = ("scrfd_10g_bnkps.onnx", "glintr100.onnx", "face_landmarker_v2_with_blendshapes.task")


class ConversionError(UserError):
    """Tensors don't fit. problems: one line for each; the message counts them and shows the first."""

    def __init__(self, problems: list[str]):
        first = "; ".join(problems[:3]) + ("; …" if len(problems) > 3 else "")
        noun = "tensor does" if len(problems) == 1 else "tensors do"
        super().__init__(
            f"{len(problems)} {noun} not fit ({first}); nothing was written; check that the files belong together"
        )
        self.problems = problems


@dataclass(frozen=True)
class Sources:
    """Where each part comes from; None leaves it out.

    denoiser: folder with `latest`, a `.pt` file, or diffusers' CogVideoX-5B-I2V. vae: `3d-vae.pt` or diffusers' folder.
    text_encoder, tokenizer, speech_encoder: transformers folders. face_encoder: folder of InsightFace's `.onnx` and
    MediaPipe's `.task` files. vocal_separator: `Kim_Vocal_2.onnx`.
    """

    denoiser: Path | None = None
    vae: Path | None = None
    text_encoder: Path | None = None
    tokenizer: Path | None = None
    speech_encoder: Path | None = None
    face_encoder: Path | None = None
    vocal_separator: Path | None = None

    def given(self) -> dict[str, Path]:
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


@dataclass(frozen=True)
class Report:
    """What was written: part names, bytes of tensors, parts the bundle still lacks, and what the user should know."""

    parts: tuple[str, ...]
    size: int
    missing: tuple[str, ...]
    notices: tuple[str, ...]


def published_sources(folder: Path) -> Sources:
    """The parts in a folder laid out as the hub repository of Hallo3 (spec section 10), those that are there."""
    places = {
        "denoiser": "hallo3/latest",
        "vae": "cogvideox-5b-i2v-sat/vae/3d-vae.pt",
        "text_encoder": "t5-v1_1-xxl/config.json",
        "tokenizer": "t5-v1_1-xxl/spiece.model",
        "speech_encoder": "wav2vec/wav2vec2-base-960h/config.json",
        "face_encoder": "face_analysis/models/glintr100.onnx",
        "vocal_separator": f"audio_separator/{VOCALS_FILE}",
    }
    found = {name: folder / place for name, place in places.items() if (folder / place).is_file()}
    return Sources(
        **{name: file if name in ("vae", "vocal_separator") else file.parent for name, file in found.items()}
    )


def convert(
    sources: Sources,
    out: str | Path,
    *,
    dtype: torch.dtype | None = torch.bfloat16,
    max_shard_size: str | int = "5GB",
    config: Mapping[str, int | float] | None = None,
    sizes: Mapping[str, int] | None = None,
    notes: Mapping[str, Any] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Converts any choice of published parts into a bundle folder, or adds them to a bundle that lacks them.

    Tensors go from the memory-mapped source to the files in blocks, so memory does not grow with the model. The folder
    appears, and an index that is there changes, only when everything is written.

    Args:
        sources: Which parts, from where.
        out: The bundle's folder.
        dtype: Number format to write; None keeps the source's.
        max_shard_size: Most bytes of one file.
        config: Pipeline settings that are not the checkpoint's or the published ones.
        sizes: Speech and face sizes for a CogVideoX denoiser, which has none; see `plan_denoiser`. Where the speech
            encoder is converted too, its sizes are the default, then the published ones.
        notes: Further keys for the index, with a leading underscore.
        on_progress: Called with bytes of tensors written and to be written.

    Raises:
        ConversionError: tensors are missing, unexpected or have other shapes; nothing was written.
        UserError: a file can't be read, `out` can't be written or has these parts already.
    """
    out = Path(out)
    if not sources.given():
        raise UserError("nothing to convert; give at least one part, for example --denoiser DIR")
    if unknown := set(config or {}) - set(PUBLISHED_CONFIG):
        raise ValueError(f"not settings of a bundle: {sorted(unknown)}")
    plans, settings = _plan(sources, dtype, dict(sizes or {}), _existing(out), dict(config or {}))
    _check_absent(out, [plan.name for plan in plans], sources)
    if problems := [problem for plan in plans for problem in plan.problems]:
        raise ConversionError(problems)
    total = sum(_size(plan, dtype) for plan in plans) + sum(file.stat().st_size for file in _copied(sources))
    _check_space(out, total)
    with staged_folder(out) as stage:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if on_progress is not None:
                on_progress(done, total)

        for plan in plans:
            _write_part(stage / plan.name, plan, dtype, max_shard_size, advance)
        if sources.vocal_separator is not None:
            (stage / VOCALS_FOLDER).mkdir()
            _copy(_vocals_file(sources.vocal_separator), stage / VOCALS_FOLDER, advance)
        extend_index(out, stage, {plan.name: plan.pair for plan in plans}, settings, notes)
    names = tuple(plan.name for plan in plans)
    return Report(names, total, missing_parts(out), tuple(_notices(plans, settings)))


def _existing(out: Path) -> dict[str, Any]:
    """Settings of a bundle that parts are added to, empty for a new one."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose another --out")
    if not out.is_dir() or not any(out.iterdir()):
        return {}
    if not (out / INDEX).exists():
        raise UserError(f"{out}: is a folder that holds other things than a bundle; choose another --out")
    return dict(read_index(out).config)


def _plan(
    sources: Sources,
    dtype: torch.dtype | None,
    sizes: dict[str, int],
    before: dict[str, int | float],
    wanted: dict[str, int | float],
) -> tuple[list[Plan], dict[str, int | float]]:
    """Plans of every part, and the pipeline's settings: what the user wants, else the checkpoint, else those before."""
    plans: list[Plan] = []
    if sources.speech_encoder is not None:
        plans, found = plan_speech_encoder(sources.speech_encoder, dtype)
        sizes = found | sizes
    settings = before | wanted
    if sources.denoiser is not None:
        networks, stated = plan_denoiser(sources.denoiser, sizes)
        plans = [*networks, _plan_scheduler(), *plans]
        settings = before | stated | wanted
    if sources.vae is not None:
        plans.append(plan_vae(sources.vae, PUBLISHED_CONFIG | settings))
    if sources.text_encoder is not None:
        plans.append(plan_text_encoder(sources.text_encoder, dtype))
    if sources.tokenizer is not None:
        plans.append(_plan_tokenizer(sources.tokenizer))
    if sources.face_encoder is not None:
        plans.append(_plan_face_encoder(sources.face_encoder))
    return plans, settings


def _plan_scheduler() -> Plan:
    pair = PARTS["scheduler"].classes[0]
    return Plan("scheduler", pair, {}, lambda folder: part_class(pair)().save_pretrained(folder))


def _plan_tokenizer(path: Path) -> Plan:
    from transformers import T5Tokenizer

    folder = inside(path, "tokenizer", marker="spiece.model")
    if not any((folder / name).is_file() for name in ("spiece.model", "tokenizer.json")):
        raise UserError(f"{folder}: holds no tokenizer (spiece.model or tokenizer.json); give T5's folder")
    try:
        tokenizer = T5Tokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: the tokenizer can't be read ({reason}); download it again") from None
    return Plan("tokenizer", PARTS["tokenizer"].classes[0], {}, tokenizer.save_pretrained)


def _plan_face_encoder(path: Path) -> Plan:
    files = _face_files(path)

    def write(folder: Path) -> None:
        for file in files:
            shutil.copyfile(file, folder / file.name)

    return Plan("face_encoder", PARTS["face_encoder"].classes[0], {}, write)


def _face_files(path: Path) -> list[Path]:
    folder = next((f for f in (path, path / "models", path / "face_analysis" / "models") if _has_face_files(f)), None)
    if folder is None:
        raise UserError(
            f"{path}: lacks some of {', '.join(FACE_FILES)}; give the published folder face_analysis/models"
        )
    return sorted(file for file in folder.iterdir() if file.suffix in (".onnx", ".task"))


def _has_face_files(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FACE_FILES)


def _vocals_file(path: Path) -> Path:
    file = path / VOCALS_FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such file; give {VOCALS_FILE}")
    return file


def _copied(sources: Sources) -> Iterable[Path]:
    """Files that are copied as they are and count in the progress."""
    return [] if sources.vocal_separator is None else [_vocals_file(sources.vocal_separator)]


def _copy(file: Path, folder: Path, advance: Callable[[int], None]) -> None:
    shutil.copyfile(file, folder / VOCALS_FILE)
    advance(file.stat().st_size)


def _check_absent(out: Path, names: list[str], sources: Sources) -> None:
    if not (out / INDEX).exists():
        return
    taken = [name for name in names if name in read_index(out).parts]
    if sources.vocal_separator is not None and (out / VOCALS_FOLDER).exists():
        taken.append(VOCALS_FOLDER)
    if taken:
        raise UserError(f"{out}: has {', '.join(taken)} already, and nothing is overwritten; choose another --out")


def _check_space(out: Path, needed: int) -> None:
    place = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{out}: needs {needed / 1e9:.1f} GB and {place} has {free / 1e9:.1f} GB free; "
            "make room or choose another --out"
        )


def _size(plan: Plan, dtype: torch.dtype | None) -> int:
    return sum(
        prod(tensor.shape) * (dtype if dtype and tensor.dtype.is_floating_point else tensor.dtype).itemsize
        for tensor in plan.tensors.values()
    )


def _write_part(
    folder: Path, plan: Plan, dtype: torch.dtype | None, max_shard_size: str | int, advance: Callable[[int], None]
) -> None:
    folder.mkdir()
    plan.write_files(folder)
    stem = PARTS[plan.name].weights
    if stem is not None:
        write_shards(folder, stem, plan.tensors, dtype, max_shard_size, advance)


def _notices(plans: list[Plan], settings: Mapping[str, int | float]) -> list[str]:
    """What does not stop a conversion but will surprise: settings that the position table was not trained for."""
    values = PUBLISHED_CONFIG | dict(settings)
    network = next((plan for plan in plans if plan.name == "transformer"), None)
    if network is None:
        return []
    rows = network.tensors["token_embedding.position_table"].shape[1]
    patch = network.tensors["token_embedding.proj.weight"].shape[-1]
    tokens = (values["sample_height"] // (8 * patch)) * (values["sample_width"] // (8 * patch))
    needed = values["text_length"] + ((values["num_frames"] - 1) // 4 + 1) * tokens
    if rows == needed:
        return []
    return [
        f"the position table has {rows} rows, {values['sample_height']}×{values['sample_width']} pixels with text of "
        f"{values['text_length']} need {needed}: say what the weights were trained for with --height, --width and "
        "--text-length"
    ]
