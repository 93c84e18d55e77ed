"""How large a bundle is, read from its configurations and the headers of its files: nothing is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .index import PUBLISHED_CONFIG, read_index
from .layout import check_bundle
from .parts import PARTS, count_parameters, read_json
from .places import HUB_NAME, registry, resolve

PROJECTION, LAYERS, TEXT_LAYERS = "speech_projection", "transformer_blocks", "encoder.block"
PINNED = "pinned transformer_blocks"
PUBLISHED_NAMES = ("hallo3", "fudan-generative-ai/hallo3")

# Numbers in the weights of the published model, as this package's classes hold them.
PUBLISHED_PARAMETERS = {
    "transformer": 8_921_057_344,
    PROJECTION: 1_244_449_280,
    LAYERS: 7_601_717_760,
    PINNED: 12_690_811_392,
    "reference_network": 5_508_446_464,
    "text_encoder": 4_762_310_656,
    TEXT_LAYERS: 4_630_710_272,
    "vae": 215_583_907,
    "speech_encoder": 94_371_712,
}
PUBLISHED_VAE = {
    "block_out_channels": [128, 256, 256, 512],
    "down_block_types": ["CogVideoXDownBlock3D"] * 4,
    "up_block_types": ["CogVideoXUpBlock3D"] * 4,
    "latent_channels": 16,
    "layers_per_block": 3,
}


@dataclass(frozen=True)
class BundleSizes:
    """What a plan needs to know of a bundle.

    parameters: numbers in the weights of each part; those of the denoiser's speech projection and of its layers once
    more by themselves (`speech_projection`, `transformer_blocks`), and of the text encoder's layers (`encoder.block`);
    and for how many there is room where the denoiser's layers are pinned (`pinned transformer_blocks`).
    denoiser, vae: their configurations, published where they say nothing. settings: the pipeline's. downloaded: whether
    the files are on this machine. text_layers: how many layers the text encoder has.
    """

    parameters: Mapping[str, int]
    denoiser: Mapping[str, Any]
    vae: Mapping[str, Any]
    settings: Mapping[str, Any]
    downloaded: bool = True
    text_layers: int = 24


def bundle_sizes(bundle: str | Path) -> BundleSizes:
    """Sizes of a bundle given by path or name; those of the published one also when it is not on this machine.

    Raises UserError for an unknown bundle, and for one that is damaged, half copied or lacks a network.
    """
    text = str(bundle)
    if text in PUBLISHED_NAMES and not Path(text).is_dir() and not (registry() / text).is_dir():
        return BundleSizes(PUBLISHED_PARAMETERS, {}, PUBLISHED_VAE, PUBLISHED_CONFIG, downloaded=False)
    folder = resolve(bundle, local_files_only=HUB_NAME.fullmatch(text) is not None)
    check_bundle(folder, PARTS)
    index = read_index(folder)
    stems = {name: PARTS[name].weights for name in index.parts}
    parameters = {name: count_parameters(folder / name, stem) for name, stem in stems.items() if stem is not None}
    for name, part in ((PROJECTION, "transformer"), (LAYERS, "transformer"), (TEXT_LAYERS, "text_encoder")):
        parameters[name] = count_parameters(folder / part, str(stems[part]), f"{name}.")
    layers = folder / "transformer", str(stems["transformer"]), f"{LAYERS}."
    parameters[PINNED] = count_parameters(*layers, pinned=True)
    return BundleSizes(
        parameters=parameters,
        denoiser=read_json(folder / "transformer" / "config.json"),
        vae=read_json(folder / "vae" / "config.json"),
        settings=index.config,
        text_layers=read_json(folder / "text_encoder" / "config.json").get("num_layers", 24),
    )
