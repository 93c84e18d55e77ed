"""A tiny bundle of the real classes with random weights: 48×64 pixels, clips of 9 frames."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from hallo3.bundles.layout import save_components
from hallo3.conditions.face import EmbeddedFaceAnalyzer
from hallo3.networks.denoiser import Hallo3Transformer3DModel
from hallo3.networks.faces import FaceEncoder, FaceLocator
from hallo3.networks.reference import ReferenceNetwork
from hallo3.sampling.scheduler import Hallo3DPMScheduler

HEIGHT, WIDTH, FRAMES, WORDS = 48, 64, 9, 6
SHARED = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "time_embed_dim": 16}
ROWS = WORDS + 3 * (HEIGHT // 16) * (WIDTH // 16)


def randomise(network: torch.nn.Module) -> torch.nn.Module:
    """Every parameter random, those that start at zero too, so that every condition shows in the output."""
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", "a", "woman", "talks"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def speech_encoder() -> Wav2Vec2Model:
    config = Wav2Vec2Config(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        layerdrop=0.0,
    )
    return Wav2Vec2Model(config).eval()


def components() -> dict[str, Any]:
    torch.manual_seed(0)
    sizes = {**SHARED, "text_embed_dim": 8, "position_rows": ROWS}
    denoiser = Hallo3Transformer3DModel(
        **sizes,
        speech_blocks=2,
        speech_channels=8,
        speech_intermediate_dim=8,
        speech_tokens=2,
        speech_token_dim=8,
        face_embed_dim=8,
        face_tokens=2,
        face_token_dim=8,
    )
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=16,
        sample_height=HEIGHT,
        sample_width=WIDTH,
        scaling_factor=0.7,
    )
    return {
        "transformer": randomise(denoiser),
        "reference_network": randomise(ReferenceNetwork(**sizes)),
        "vae": vae.eval(),
        "text_encoder": T5EncoderModel(
            T5Config(vocab_size=6, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        ).eval(),
        "tokenizer": tokenizer(),
        "speech_encoder": speech_encoder(),
        "feature_extractor": Wav2Vec2FeatureExtractor(do_normalize=True),
        "scheduler": Hallo3DPMScheduler(),
        "face_encoder": EmbeddedFaceAnalyzer(FaceLocator(), FaceEncoder(embed_dim=8)),
    }


def config() -> dict[str, int]:
    return {
        "sample_height": HEIGHT,
        "sample_width": WIDTH,
        "num_frames": FRAMES,
        "motion_frames": 2,
        "text_length": WORDS,
        "fps": 25,
        "num_inference_steps": 2,
    }


def write_bundle(folder: Path) -> Path:
    save_components(folder, components(), config())
    return folder


def portrait() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Image.fromarray(values)


def speech(seconds: float) -> np.ndarray:
    """(n,) float32 at 16 kHz: a tone whose loudness goes up and down."""
    time = np.arange(round(seconds * 16000)) / 16000
    return (0.4 * np.sin(2 * np.pi * 180 * time) * np.sin(2 * np.pi * 3 * time)).astype(np.float32)


def write_wav(path: Path, samples: np.ndarray, rate: int = 16000) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_f32le", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples.astype(np.float32)[None], format="flt", layout="mono")
        frame.rate = rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return path


def write_vocal_network(path: Path, shape: Any = (1, 4, 3072, 256), gains: Any = (1.0, 1.0, 1.0, 1.0)) -> Path:
    """An ONNX file of Kim_Vocal_2's shape that multiplies its four channels by `gains`."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("input", "output")]
    gain = numpy_helper.from_array(np.float32(gains).reshape(1, 4, 1, 1), "gain")
    graph = helper.make_graph(
        [helper.make_node("Mul", ["input", "gain"], ["output"])], "net", *[[v] for v in values], [gain]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path
