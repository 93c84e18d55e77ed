"""Plans: how the tensors of a published checkpoint become a part of a bundle (spec section 10).

A plan is made from names and shapes alone; nothing is read or written. It lists everything that does not fit, so that a
conversion either writes all parts or none.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any
from zlib import crc32

import torch

from ..errors import UserError
from . import names
from .parts import PARTS, part_class, read_json, write_transformers_config
from .shards import Fresh, Joined, Rows, Stored, Stream
from .sources import Tensors, inside, open_model_folder, open_pickle, with_prefix

DENOISER_PREFIX = "model.diffusion_model."
REFERENCE_PREFIX = "ref_model.diffusion_model."
RANK_FILE = "mp_rank_00_model_states.pt"
CONDITION_NAMES = re.compile(r"(speech|face)_projection\.|\.norm_(speech|face)\.|\.(speech|face)_attention\.")
GROUP_NORM_GROUPS = 32  # of the published VAE, at any width; not in its tensors


@dataclass
class Plan:
    """One part to be written.

    name: of the part. pair: its class in the index. tensors: name in our class → stream. write_files: writes whatever
    is no tensor (configuration, vocabulary) into the part's folder. problems: a line for each tensor that does not fit.
    """

    name: str
    pair: tuple[str, str]
    tensors: Mapping[str, Stream]
    write_files: Callable[[Path], None]
    problems: list[str] = field(default_factory=list)


def compare(part: str, model: torch.nn.Module, tensors: Mapping[str, Stream], skip: Iterable[str] = ()) -> list[str]:
    """One line for each tensor of `model` (on any device, also meta) that is missing or has another shape."""
    problems = []
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in set(skip)}
    for name, shape in expected.items():
        if name not in tensors:
            problems.append(f"{part}: missing {name} {list(shape)}")
        elif tuple(tensors[name].shape) != shape:
            problems.append(f"{part}: {name} is {list(tensors[name].shape)}, not {list(shape)}")
    return problems + [f"{part}: unexpected {name}" for name in tensors if name not in expected]


# ---------------------------------------------------------------------------------------------------------- networks


def plan_denoiser(path: Path, sizes: Mapping[str, int] | None = None) -> tuple[list[Plan], dict[str, int]]:
    """Plans of `transformer` and `reference_network` from a published Hallo3 or a CogVideoX-5B-I2V checkpoint.

    Args:
        path: Folder with `latest`, the `.pt` file itself, a diffusers model or its `transformer` folder.
        sizes: For CogVideoX, which has neither: sizes of speech and face conditioning, as keys of the network's
            configuration. Published sizes by default.

    Returns:
        The plans, and pipeline settings that the checkpoint states.
    """
    kind, place = find_denoiser(path)
    if kind == "diffusers":
        return _plan_diffusers(place, dict(sizes or {}))
    everything = open_pickle(place, "module")
    own, reference = with_prefix(everything, DENOISER_PREFIX), with_prefix(everything, REFERENCE_PREFIX)
    if not own:
        raise UserError(f"{place}: has no tensors named {DENOISER_PREFIX}…; check that it is a Hallo3 or CogVideoX one")
    config = _published_config(place, own)
    layers = config["num_layers"]
    keys = names.denoiser_key_map(layers)
    used = {keys[name]: tensor for name, tensor in own.items() if name in keys}
    strays = [f"transformer: unexpected {n}" for n in own if n not in keys and n not in names.UNUSED_NAMES]
    if any(CONDITION_NAMES.search(name) for name in used):
        plans = [_plan_network("transformer", config, used, strays)]
        if reference:
            plans.append(_plan_reference(place, reference))
        return plans, {}
    return _plan_base(config | dict(sizes or {}), used, strays), {}


def find_denoiser(path: Path) -> tuple[str, Path]:
    """("published", the `.pt` file) or ("diffusers", the model's folder) behind what a user may point at."""
    if path.is_file():
        return "published", path
    for folder in (path, path / "hallo3", path / "transformer"):
        if (folder / "latest").is_file():
            number = (folder / "latest").read_text(encoding="utf-8", errors="replace").strip()
            if not re.fullmatch(r"[\w.-]{1,64}", number) or set(number) == {"."}:
                raise UserError(f"{folder / 'latest'}: does not name a sub-folder; download the checkpoint again")
            if not (folder / number / RANK_FILE).is_file():
                raise UserError(f"{folder / number / RANK_FILE}: no such file; download the checkpoint again")
            return "published", folder / number / RANK_FILE
        if (folder / RANK_FILE).is_file():
            return "published", folder / RANK_FILE
    folder = inside(path, "transformer")
    if (folder / "config.json").is_file():
        return "diffusers", folder
    raise UserError(f"{path}: no denoiser here; give a folder with `latest` (published layout) or `config.json`")


def _published_config(place: Path, tensors: Tensors) -> dict[str, int]:
    try:
        return names.denoiser_config_from_state({name: tensor.shape for name, tensor in tensors.items()})
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{place}: its sizes can't be read, {error} is missing or odd; check the file") from None


def _meta_model(name: str, config: Mapping[str, Any]) -> Any:
    """The part's model without memory behind its parameters."""
    with torch.device("meta"):
        return part_class(PARTS[name].classes[0])(**config)


def _plan_network(name: str, config: Mapping[str, Any], tensors: Mapping[str, Stream], strays: list[str]) -> Plan:
    model = _meta_model(name, config)
    ordered = {key: tensors[key] for key in model.state_dict() if key in tensors}
    ordered |= {key: tensor for key, tensor in tensors.items() if key not in ordered}
    problems = compare(name, model, ordered) + strays
    if name == "transformer" and config["in_channels"] != 2 * config["out_channels"]:
        problems.append(
            f"{name}: {config['in_channels']} input channels; the image-to-video model has twice its outputs"
        )
    return Plan(name, PARTS[name].classes[0], ordered, model.save_config, problems)


def _plan_reference(place: Path, tensors: Tensors) -> Plan:
    config = _published_config(place, tensors)
    config.pop("out_channels", None)
    layers = config["num_layers"]
    keys, unused = names.reference_key_map(layers), names.reference_unused_names(layers)
    strays = [f"reference_network: unexpected {name}" for name in tensors if name not in keys and name not in unused]
    used = {keys[name]: tensor for name, tensor in tensors.items() if name in keys}
    return _plan_network("reference_network", config, used, strays)


def _plan_base(config: dict[str, int], tensors: Mapping[str, Stream], strays: list[str]) -> list[Plan]:
    """CogVideoX as Hallo3's starting point (spec section 8): new attention at zero output, its copy as reference."""
    model = _meta_model("transformer", config)
    new = {
        name: _fresh(name, tuple(tensor.shape))
        for name, tensor in model.state_dict().items()
        if CONDITION_NAMES.search(name)
    }
    shared = {key: value for key, value in config.items() if not key.startswith(("speech_", "face_", "out_"))}
    wanted = names.reference_key_map(config["num_layers"]).values()
    copied = {name: tensors[name] for name in wanted if name in tensors}
    return [
        _plan_network("transformer", config, {**tensors, **new}, strays),
        _plan_network("reference_network", shared, copied, []),
    ]


def _fresh(name: str, shape: tuple[int, ...]) -> Fresh:
    if "_attention.to_out." in name or name.endswith(".bias"):
        return Fresh(shape)
    if "norm" in name:
        return Fresh(shape, value=1.0)
    return Fresh(shape, std=(3 * prod(shape[1:])) ** -0.5, seed=crc32(name.encode()))


def _plan_diffusers(folder: Path, sizes: dict[str, int]) -> tuple[list[Plan], dict[str, int]]:
    values, tensors = open_model_folder(folder)
    config = _diffusers_config(folder, values, tensors)
    recipe = names.cogvideox_sources(config["num_layers"])
    used, known = {}, set()
    for ours, pieces in recipe.items():
        known |= {name for name, _ in pieces}
        if all(name in tensors for name, _ in pieces):
            used[ours] = _join([_piece(tensors[name], half) for name, half in pieces])
    problems = [f"transformer: missing {name}" for name in sorted(known - set(tensors))]
    problems += [f"transformer: unexpected {name}" for name in tensors if name not in known]
    plans = _plan_base(config | sizes, used, [])
    if problems:  # in the checkpoint's own names, which say more than ours
        plans[0].problems = problems
    rows, columns = values.get("sample_height"), values.get("sample_width")
    settings = {
        "sample_height": 8 * rows if rows else None,
        "sample_width": 8 * columns if columns else None,
        "num_frames": values.get("sample_frames"),
        "text_length": values.get("max_text_seq_length"),
    }
    return plans, {name: value for name, value in settings.items() if value is not None}


_SIZES = (
    *("num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "patch_size"),
    *("time_embed_dim", "text_embed_dim"),
)


def _diffusers_config(folder: Path, values: Mapping[str, Any], tensors: Tensors) -> dict[str, int]:
    table = "patch_embed.pos_embedding"
    needed = {
        "_class_name": "CogVideoXTransformer3DModel",
        "use_rotary_positional_embeddings": True,
        "use_learned_positional_embeddings": True,
    }
    wrong = [name for name, value in needed.items() if values.get(name) != value]
    wrong += [name for name in ("patch_size_t", "ofs_embed_dim") if values.get(name) is not None]
    wrong += [name for name in _SIZES if not isinstance(values.get(name), int)]
    if wrong or table not in tensors or len(tensors[table].shape) != 3:
        raise UserError(
            f"{folder}: is not CogVideoX-5B-I2V ({', '.join(wrong) or table} differs); only that version is converted"
        )
    return {name: values[name] for name in _SIZES} | {"position_rows": tensors[table].shape[1]}


def _piece(tensor: Stored, half: int | None) -> Stream:
    if half is None:
        return tensor
    middle = tensor.shape[0] // 2
    return Rows(tensor, 0, middle) if half == 0 else Rows(tensor, middle, tensor.shape[0])


def _join(pieces: list[Stream]) -> Stream:
    return pieces[0] if len(pieces) == 1 else Joined(tuple(pieces))


# --------------------------------------------------------------------------------------------------------------- VAE

_VAE_NAMES: tuple[tuple[str, Callable[[re.Match[str], int], str]], ...] = (
    (r"^encoder\.down\.(\d+)\.", lambda m, levels: f"encoder.down_blocks.{m[1]}."),
    (r"^decoder\.up\.(\d+)\.", lambda m, levels: f"decoder.up_blocks.{levels - 1 - int(m[1])}."),  # counts from the end
    (r"\.mid\.block_(\d+)\.", lambda m, levels: f".mid_block.resnets.{int(m[1]) - 1}."),
    (r"\.block\.(\d+)\.", lambda m, levels: f".resnets.{m[1]}."),
    (r"\.(down|up)sample\.conv\.", lambda m, levels: f".{m[1]}samplers.0.conv."),
    (r"\.nin_shortcut\.", lambda m, levels: ".conv_shortcut."),
)


def vae_name(published: str, levels: int) -> str:
    """Name in `AutoencoderKLCogVideoX` of a published VAE tensor; `levels` resolutions."""
    name = published
    for pattern, replace in _VAE_NAMES:
        if match := re.search(pattern, name):
            name = name[: match.start()] + replace(match, levels) + name[match.end() :]
    return name


def plan_vae(path: Path, settings: Mapping[str, int | float]) -> Plan:
    """Plan of `vae` from the published `3d-vae.pt`, or from a diffusers folder. settings: the pipeline's."""
    path = inside(path, "vae")
    if path.is_dir() and not (path / "config.json").exists() and (path / "3d-vae.pt").exists():
        path = path / "3d-vae.pt"
    if path.is_dir():
        values, tensors = open_model_folder(path)
        if values.get("_class_name") != "AutoencoderKLCogVideoX":
            raise UserError(f"{path}: holds a {values.get('_class_name')}; give an AutoencoderKLCogVideoX or 3d-vae.pt")
        from diffusers import AutoencoderKLCogVideoX

        with torch.device("meta"):
            model: Any = AutoencoderKLCogVideoX.from_config(values)
        return Plan("vae", PARTS["vae"].classes[0], tensors, model.save_config, compare("vae", model, tensors))
    everything = open_pickle(path, "state_dict")
    published = {name: x for name, x in everything.items() if name.startswith(("encoder.", "decoder."))}
    config = _vae_config(path, published, settings)
    tensors = {vae_name(name, len(config["block_out_channels"])): tensor for name, tensor in published.items()}
    model = _meta_model("vae", config)
    return Plan("vae", PARTS["vae"].classes[0], tensors, model.save_config, compare("vae", model, tensors))


def _vae_config(path: Path, tensors: Tensors, settings: Mapping[str, int | float]) -> dict[str, Any]:
    def count(pattern: str) -> int:
        return len({match[1] for name in tensors if (match := re.match(pattern, name))})

    levels = count(r"encoder\.down\.(\d+)\.")
    try:
        channels = tuple(tensors[f"encoder.down.{i}.block.0.conv1.conv.weight"].shape[0] for i in range(levels))
        config = {
            "in_channels": tensors["encoder.conv_in.conv.weight"].shape[1],
            "out_channels": tensors["decoder.conv_out.conv.weight"].shape[0],
            "latent_channels": tensors["decoder.conv_in.conv.weight"].shape[1],
        }
    except (KeyError, IndexError) as error:
        raise UserError(f"{path}: its sizes can't be read, {error} is missing or odd; check the file") from None
    if not channels or any(width % GROUP_NORM_GROUPS for width in channels):
        raise UserError(
            f"{path}: widths {channels} are not multiples of {GROUP_NORM_GROUPS}; it is not a CogVideoX VAE"
        )
    return config | {
        "block_out_channels": channels,
        "down_block_types": ("CogVideoXDownBlock3D",) * levels,
        "up_block_types": ("CogVideoXUpBlock3D",) * levels,
        "layers_per_block": count(r"encoder\.down\.0\.block\.(\d+)\."),
        "norm_num_groups": GROUP_NORM_GROUPS,
        "scaling_factor": 0.7,
        "sample_height": settings["sample_height"],
        "sample_width": settings["sample_width"],
    }


# ---------------------------------------------------------------------------------------------------------- encoders


def plan_text_encoder(path: Path, dtype: torch.dtype | None) -> Plan:
    """Plan of `text_encoder` from a T5 folder; of an encoder-decoder only the encoder is kept."""
    from transformers import T5Config, T5EncoderModel

    folder = inside(path, "text_encoder")
    values, tensors = open_model_folder(folder)
    if values.get("model_type") != "t5":
        raise UserError(f"{folder}: is a {values.get('model_type')} model, not T5; give the T5 v1.1 XXL folder")
    tied = "encoder.embed_tokens.weight"
    if "shared.weight" not in tensors and tied in tensors:
        tensors["shared.weight"] = tensors[tied]
    kept = {n: x for n, x in tensors.items() if n != tied and not n.startswith(("decoder.", "lm_head."))}
    with torch.device("meta"):
        model = T5EncoderModel(T5Config.from_dict(values))
    problems = compare("text_encoder", model, kept, skip=[tied])
    written = dtype or _common_dtype(kept)
    return Plan(
        "text_encoder",
        PARTS["text_encoder"].classes[0],
        kept,
        lambda target: write_transformers_config(target, model, written),
        problems,
    )


def plan_speech_encoder(path: Path, dtype: torch.dtype | None) -> tuple[list[Plan], dict[str, int]]:
    """Plans of `speech_encoder` and `feature_extractor` from a wav2vec2 folder, with or without a head for words.

    Returns the plans and the sizes that a denoiser for this encoder has (`speech_blocks`, `speech_channels`).
    """
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    folder = inside(path, "speech_encoder")
    values, found = open_model_folder(folder)
    tensors: dict[str, Stream] = dict(found)
    if values.get("model_type") != "wav2vec2":
        raise UserError(f"{folder}: is a {values.get('model_type')} model, not wav2vec2; give wav2vec2-base-960h")
    if any(name.startswith("wav2vec2.") for name in tensors):
        tensors = dict(with_prefix(found, "wav2vec2."))
    positions = "encoder.pos_conv_embed.conv."
    renamed = {f"{positions}weight_{x}": f"{positions}parametrizations.weight.original{i}" for i, x in enumerate("gv")}
    tensors = {renamed.get(name, name): tensor for name, tensor in tensors.items()}
    with torch.device("meta"):
        model = Wav2Vec2Model(Wav2Vec2Config.from_dict(values))
    mask = model.state_dict().get("masked_spec_embed")
    if mask is not None and "masked_spec_embed" not in tensors:
        tensors["masked_spec_embed"] = Fresh(tuple(mask.shape))  # hides input in pre-training; never read here
    written = dtype or _common_dtype(tensors)
    extractor: Any = Wav2Vec2FeatureExtractor()
    if (folder / "preprocessor_config.json").exists():
        extractor = Wav2Vec2FeatureExtractor.from_dict(read_json(folder / "preprocessor_config.json"))
    plans = [
        Plan(
            "speech_encoder",
            PARTS["speech_encoder"].classes[0],
            tensors,
            lambda target: write_transformers_config(target, model, written),
            compare("speech_encoder", model, tensors),
        ),
        Plan("feature_extractor", PARTS["feature_extractor"].classes[0], {}, extractor.save_pretrained),
    ]
    return plans, {"speech_blocks": model.config.num_hidden_layers, "speech_channels": model.config.hidden_size}


def _common_dtype(tensors: Mapping[str, Stream]) -> torch.dtype:
    kinds = [tensor.dtype for tensor in tensors.values() if tensor.dtype.is_floating_point]
    return max(set(kinds), key=kinds.count) if kinds else torch.float32
