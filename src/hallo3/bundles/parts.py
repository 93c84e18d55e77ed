"""The parts of a bundle: their names, the classes that may load them, and whether their files are whole."""

import importlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    import torch

INDEX = "model_index.json"
VOCALS_FOLDER, VOCALS_FILE = "vocal_separator", "Kim_Vocal_2.onnx"  # beside the parts; the pipeline does without it
MAX_HEADER = 100_000_000  # bytes; the safetensors format's own limit
MAX_JSON = 64_000_000  # bytes; the largest honest one, a tokenizer's, has a few million


@dataclass(frozen=True)
class Part:
    """One sub-folder of a bundle.

    name: the folder and the pipeline's component. classes: (module, class) pairs that may load it, the usual one first;
    an index that names another class is refused, because it comes from strangers. config: the file that must be there.
    weights: stem of its safetensors files, None for a part without weights of its own. option: the option of
    `hallo3 convert` that brings it.
    """

    name: str
    classes: tuple[tuple[str, str], ...]
    config: str | None
    weights: str | None
    option: str


DIFFUSERS_STEM = "diffusion_pytorch_model"
PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        Part(
            "transformer",
            (("hallo3.networks.denoiser", "Hallo3Transformer3DModel"),),
            "config.json",
            DIFFUSERS_STEM,
            "--denoiser",
        ),
        Part(
            "reference_network",
            (("hallo3.networks.reference", "ReferenceNetwork"),),
            "config.json",
            DIFFUSERS_STEM,
            "--denoiser",
        ),
        Part("vae", (("diffusers", "AutoencoderKLCogVideoX"),), "config.json", DIFFUSERS_STEM, "--vae"),
        Part("text_encoder", (("transformers", "T5EncoderModel"),), "config.json", "model", "--text-encoder"),
        Part(
            "tokenizer",
            (
                ("transformers", "T5TokenizerFast"),
                ("transformers", "T5Tokenizer"),
                ("transformers", "PreTrainedTokenizerFast"),
                ("transformers", "TokenizersBackend"),
            ),
            "tokenizer_config.json",
            None,
            "--tokenizer",
        ),
        Part("speech_encoder", (("transformers", "Wav2Vec2Model"),), "config.json", "model", "--speech-encoder"),
        Part(
            "feature_extractor",
            (("transformers", "Wav2Vec2FeatureExtractor"),),
            "preprocessor_config.json",
            None,
            "--speech-encoder",
        ),
        Part(
            "scheduler",
            (("hallo3.sampling.scheduler", "Hallo3DPMScheduler"),),
            "scheduler_config.json",
            None,
            "--denoiser",
        ),
        Part(
            "face_encoder",
            (("hallo3.conditions.face", "InsightFaceAnalyzer"), ("hallo3.conditions.face", "EmbeddedFaceAnalyzer")),
            None,
            None,
            "--face-encoder",
        ),
    )
}


def part_class(pair: tuple[str, str]) -> type[Any]:
    """The class behind a (module, class) pair that `PARTS` allows."""
    return getattr(importlib.import_module(pair[0]), pair[1])


def class_pair(part: Part, component: Any) -> tuple[str, str]:
    """The pair under which the index names `component`, an object of one of the part's classes."""
    for pair in part.classes:
        if any(base.__name__ == pair[1] for base in type(component).__mro__):
            return pair
    wanted = " or ".join(name for _, name in part.classes)
    raise TypeError(f"{part.name} must be a {wanted}, not a {type(component).__name__}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file that may be missing, cut short or not JSON at all: then a UserError that names it."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise UserError(f"{path}: too large for a JSON file of a bundle; copy or convert the bundle again")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; copy or convert the bundle again") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: is not valid JSON, perhaps cut short; copy or convert the bundle again") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); check the path and its permissions") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object; copy or convert the bundle again")
    return value


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, name → {dtype, shape, data_offsets}, after checking that the file is whole.

    Only the header is read. Raises UserError for a missing, cut or foreign file.
    """
    again = "copy, download or convert it again"
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise UserError(f"{path}: is not a whole safetensors file ({size} bytes); {again}")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; {again}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: is not a safetensors file; {again}") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); check the path and its permissions") from None
    try:
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (AttributeError, KeyError, TypeError, IndexError):
        raise UserError(f"{path}: is not a safetensors file; {again}") from None
    if end != size - 8 - length:
        raise UserError(f"{path}: has {size} bytes, its header says {end + 8 + length}: cut short; {again}")
    return tensors


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors files `stem…` of a model folder, in its index's order. Raises UserError when there is none."""
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if not index.exists():
        if not single.exists():
            raise UserError(f"{single}: is missing; copy or convert the bundle again")
        return [single]
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{index}: holds no weight_map; copy or convert the bundle again")
    files = list(dict.fromkeys(names.values()))
    if any(Path(name).name != name for name in files):
        raise UserError(f"{index}: names files outside its folder; don't use this bundle")
    return [folder / name for name in files]


def count_parameters(folder: Path, stem: str, prefix: str = "", *, pinned: bool = False) -> int:
    """Numbers in the tensors of a model folder whose names begin with `prefix`; reads headers only.

    pinned: numbers for which there is room in pinned memory, where torch gives each tensor a power of two.
    """
    tensors = (item for file in weight_files(folder, stem) for item in read_header(file).items())
    counts = (math.prod(tensor["shape"]) for name, tensor in tensors if name.startswith(prefix))
    return sum(1 << max(0, count - 1).bit_length() for count in counts) if pinned else sum(counts)


def check_part(folder: Path, part: Part, *, weights: bool = True) -> None:
    """Raises UserError, naming the file, when a part is missing, broken or only half copied. Reads headers only.

    weights: False looks at its configuration alone.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: this part of the bundle is missing; copy or convert the bundle again")
    if part.config is not None:
        read_json(folder / part.config)
    if not weights:
        return
    if part.weights is not None:
        for file in weight_files(folder, part.weights):
            read_header(file)
    if part.name == "tokenizer" and not any((folder / name).is_file() for name in ("tokenizer.json", "spiece.model")):
        raise UserError(f"{folder / 'tokenizer.json'}: is missing; copy or convert the bundle again")
    if part.config is None:
        if not any(folder.iterdir()):
            raise UserError(f"{folder}: is empty; copy or convert the bundle again")
        for file in folder.rglob("*.safetensors"):
            read_header(file)


def write_transformers_config(folder: Path, model: Any, dtype: "torch.dtype") -> None:
    """`config.json` of a transformers model, saying which number format its weights are written in."""
    values = json.loads(model.config.to_json_string(use_diff=True))
    values |= {"architectures": [type(model).__name__], "dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
