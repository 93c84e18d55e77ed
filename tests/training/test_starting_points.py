"""Where a training may start: published Hallo3 and CogVideoX in both layouts, through `convert`, to a new bundle."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from transformers import T5Config, T5EncoderModel, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

import tiny
from hallo3.bundles.convert import Sources, convert
from hallo3.bundles.layout import load_components, read_index, save_components
from hallo3.conditions.face import EmbeddedFaceAnalyzer
from hallo3.networks.faces import FaceEncoder, FaceLocator
from hallo3.pipeline import Hallo3Pipeline
from hallo3.studio.dataset import Material, write_dataset
from hallo3.training.config import Training, read_training
from hallo3.training.run import train

HEIGHT, WIDTH = 64, 96
PUBLISHED = Path(__file__).parents[1] / "data" / "golden" / "dit" / "hallo3"
CONFIGS = Path(__file__).parents[2] / "configs"
SIZES = {"speech_channels": 8, "speech_blocks": 2, "speech_intermediate_dim": 8, "speech_tokens": 2}
SIZES |= {"speech_token_dim": 8, "face_embed_dim": 8, "face_tokens": 2, "face_token_dim": 8}


def published(folder: Path) -> dict[str, Any]:
    shutil.copytree(PUBLISHED, folder)
    return {}


def cogvideox_of_sat(folder: Path) -> dict[str, Any]:
    """The recorded checkpoint without what Hallo3 added to CogVideoX."""
    file = next(PUBLISHED.rglob("*.pt")).relative_to(PUBLISHED)
    state = torch.load(PUBLISHED / file, weights_only=True)["module"]
    kept = {n: x for n, x in state.items() if n.startswith("model.") and "audio_" not in n and "face_" not in n}
    (folder / file).parent.mkdir(parents=True)
    shutil.copy(PUBLISHED / "latest", folder)
    torch.save({"module": kept}, folder / file)
    return SIZES


def cogvideox_of_diffusers(folder: Path) -> dict[str, Any]:
    torch.manual_seed(1)
    model = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=2, in_channels=32, out_channels=16, time_embed_dim=12,
        text_embed_dim=8, sample_width=WIDTH // 8, sample_height=HEIGHT // 8, max_text_seq_length=12,
        use_rotary_positional_embeddings=True, use_learned_positional_embeddings=True,
    )  # fmt: skip
    model.save_pretrained(folder)
    return SIZES


def complete(bundle: Path) -> None:
    """The other parts of a bundle, random, of the sizes that its networks take."""
    takes = load_components(bundle, ["transformer"])["transformer"].config
    text = T5Config(vocab_size=6, d_model=takes.text_embed_dim, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    speech = Wav2Vec2Config(
        hidden_size=takes.speech_channels, num_hidden_layers=takes.speech_blocks, num_attention_heads=2,
        intermediate_size=16, conv_dim=(8,) * 7, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2, latent_channels=16
    )
    parts = {
        "vae": vae,
        "text_encoder": T5EncoderModel(text),
        "tokenizer": tiny.tokenizer(),
        "speech_encoder": Wav2Vec2Model(speech),
        "feature_extractor": Wav2Vec2FeatureExtractor(do_normalize=True),
        "face_encoder": EmbeddedFaceAnalyzer(FaceLocator(), FaceEncoder(embed_dim=takes.face_embed_dim)),
    }
    # A checkpoint of the published layout does not say its canvas.
    save_components(bundle, parts, {"sample_height": HEIGHT, "sample_width": WIDTH, "text_length": 12})


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, recordings: Path) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    size = {"frames": 13, "height": HEIGHT, "width": WIDTH}
    write_dataset(folder, 2, 0, split="train", material=Material.find(recordings), **size)
    return folder


@pytest.mark.parametrize("source", [published, cogvideox_of_sat, cogvideox_of_diffusers])
def test_both_phases_from_what_others_have_published(
    source: Callable[[Path], dict[str, Any]], clips: Path, tmp_path: Path
) -> None:
    sizes = source(tmp_path / "source")
    convert(Sources(denoiser=tmp_path / "source"), tmp_path / "start", dtype=None, sizes=sizes or None)
    complete(tmp_path / "start")
    assert not read_index(tmp_path / "start").missing
    bundle, names = tmp_path / "start", ("face", "speech")
    for phase, name in zip(("phase1", "phase2"), names, strict=True):
        changes = [f"start={bundle}", f"data={clips}", f"out={tmp_path / phase}", "clip_frames=9", "loop.steps=2"]
        training = read_training(CONFIGS / f"{phase}.yaml", [*changes, "loop.learning_rate=1e-3", "loop.ema=0.5"])
        assert isinstance(training, Training)
        before, bundle = bundle, train(training, lambda line: None)
        old, new = (load_components(place, ["transformer"])["transformer"].state_dict() for place in (before, bundle))
        moved = [key for key in new if not torch.equal(new[key], old[key])]
        assert moved and any(f"{name}_attention.to_out" in key for key in moved)
        if phase == "phase2":
            assert all("speech" in key for key in moved)
    frames = Hallo3Pipeline.from_pretrained(bundle)(
        tiny.portrait(), tiny.speech(0.2), face_box=(8, 8, 30, 30), num_inference_steps=1
    ).frames
    assert frames.shape[0] == 5 and frames.std() > 0
