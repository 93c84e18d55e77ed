"""Tiny parts of the real classes."""

from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
NETWORK = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "time_embed_dim": 8}
NETWORK |= {"text_embed_dim": 8, "position_rows": 4 + 13 * 6}
SPEECH = {"speech_channels": 8, "speech_intermediate_dim": 8, "speech_tokens": 2, "speech_token_dim": 8}
FACE = {"face_embed_dim": 8, "face_tokens": 2, "face_token_dim": 8}
GRID = {"sample_height": 64, "sample_width": 96, "text_length": 12}  # of the recording
SETTINGS = {"sample_height": 32, "sample_width": 48, "text_length": 4, "num_inference_steps": 3}


def make_networks():
    from hallo3.networks.denoiser import Hallo3Transformer3DModel
    from hallo3.networks.reference import ReferenceNetwork

    return {
        "transformer": Hallo3Transformer3DModel(**NETWORK, **SPEECH, **FACE),
        "reference_network": ReferenceNetwork(**NETWORK),
    }


def make_encoders():
    from diffusers import AutoencoderKLCogVideoX
    from transformers import T5Config, T5EncoderModel, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    speech = Wav2Vec2Config(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, conv_dim=(8,) * 7,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    text = T5Config(
        vocab_size=40, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return {
        "vae": AutoencoderKLCogVideoX(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4),
        "text_encoder": T5EncoderModel(text),
        "speech_encoder": Wav2Vec2Model(speech),
        "feature_extractor": Wav2Vec2FeatureExtractor(),
    }
