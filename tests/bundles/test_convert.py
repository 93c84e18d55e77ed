import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from bundle_parts import GOLDEN, GRID
from safetensors.torch import load_file

from hallo3.bundles.convert import ConversionError, Sources, convert, published_sources
from hallo3.bundles.layout import load_components, missing_parts, read_index
from hallo3.errors import UserError
from waiting import killed_beyond

CHECKPOINT = GOLDEN / "dit" / "hallo3" / "1" / "mp_rank_00_model_states.pt"
SIZES = {"speech_channels": 8, "speech_intermediate_dim": 8, "speech_tokens": 2, "speech_token_dim": 8}
SIZES |= {"face_embed_dim": 8, "face_tokens": 2, "face_token_dim": 8}


def golden_state():
    return torch.load(CHECKPOINT, weights_only=True)["module"]


def save_published(folder, state):
    (folder / "1").mkdir(parents=True)
    (folder / "latest").write_text("1\n")
    torch.save({"module": state, "dp_world_size": 64}, folder / "1" / CHECKPOINT.name)
    return folder


def largest_difference(ours, recorded):
    return ((ours - recorded).abs().max() / recorded.abs().max()).item()


def test_the_recorded_checkpoint_is_inferred_from_its_shapes(golden_bundle):
    config = json.loads((golden_bundle / "transformer" / "config.json").read_text())
    sizes = json.loads((GOLDEN / "dit" / "config.json").read_text())
    assert config["num_layers"] == sizes["num_layers"]
    assert config["num_attention_heads"] == sizes["num_attention_heads"]
    assert config["face_token_dim"] == sizes["face"]["hidden_size"]
    assert config["face_embed_dim"] == sizes["face"]["embedding_dim"]
    assert config["speech_tokens"] == sizes["audio"]["context_tokens"]
    assert config["time_embed_dim"] == sizes["time_embed_dim"]
    index = read_index(golden_bundle)
    assert index.config["text_length"] == sizes["text_length"]
    assert index.missing == ("text_encoder", "tokenizer", "speech_encoder", "feature_extractor", "face_encoder")


def test_the_recorded_forward_agrees_through_the_bundle(golden_bundle):
    parts = load_components(golden_bundle, ["transformer", "reference_network"])
    recorded = load_file(GOLDEN / "dit" / "transformer_io.safetensors")
    with torch.no_grad():
        portrait = recorded["reference_latents"]
        empty = torch.zeros_like(recorded["text_embeds"][:1])
        features = parts["reference_network"](torch.cat([portrait, portrait], 2), empty)
        output = parts["transformer"](
            torch.cat([recorded["latents"], recorded["image_latents"]], 2),
            recorded["timestep"],
            recorded["text_embeds"],
            speech=recorded["audio_embeds"],
            face=recorded["face_embeds"],
            reference=features,
        )
    for i, feature in enumerate(features):
        assert largest_difference(feature, recorded[f"reference_features.{i}"]) <= 2e-5
    assert largest_difference(output, recorded["output"]) <= 2e-5


def test_the_recorded_vae_agrees_through_the_bundle(golden_bundle):
    from hallo3.conditions.motion import encode_video

    vae = load_components(golden_bundle, ["vae"])["vae"]
    assert vae.config["scaling_factor"] == 0.7
    recorded = load_file(GOLDEN / "vae" / "vae_io.safetensors")
    with torch.no_grad():
        for frames in (1, 3, 9, 17):
            mean = encode_video(vae, recorded[f"video_{frames}"]).transpose(1, 2) / 0.7
            assert largest_difference(mean, recorded[f"latent_mean_{frames}"]) <= 2e-5
        assert largest_difference(vae.decode(recorded["latents_13"]).sample, recorded["decoded_49"]) <= 2e-5


@pytest.mark.parametrize("entry", ["hallo3", "hallo3/1", "hallo3/1/mp_rank_00_model_states.pt", "."])
def test_the_denoiser_is_found_where_a_person_points(entry, tmp_path):
    report = convert(Sources(denoiser=GOLDEN / "dit" / entry), tmp_path / "b")
    assert report.parts == ("transformer", "reference_network", "scheduler")
    assert "324 rows" in report.notices[0] and "17776" in report.notices[0]
    weights = load_components(tmp_path / "b", ["transformer"], torch_dtype="auto")["transformer"]
    assert {p.dtype for p in weights.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp16", torch.float16), ("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_number_formats(name, dtype, tmp_path):
    convert(Sources(vae=GOLDEN / "vae" / "vae" / "3d-vae.pt"), tmp_path / "b", dtype=dtype)
    stored = load_file(tmp_path / "b" / "vae" / "diffusion_pytorch_model.safetensors")
    source = torch.load(GOLDEN / "vae" / "vae" / "3d-vae.pt", weights_only=True)["state_dict"]
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    assert torch.equal(stored["encoder.conv_in.conv.weight"], source["encoder.conv_in.conv.weight"].to(dtype))


def test_foreign_prefixes_and_missing_unused_tensors_do_no_harm(golden_bundle, tmp_path):
    state = {
        n: x for n, x in golden_state().items() if "freqs_" not in n and "transformer.position_embeddings" not in n
    }
    state = {n: x for n, x in state.items() if not n.startswith("ref_model") or "final_layer" not in n}
    state |= {"first_stage_model.encoder.weight": torch.ones(3), "conditioner.embedders.0.weight": torch.ones(2)}
    convert(Sources(denoiser=save_published(tmp_path / "source", state)), tmp_path / "b", dtype=None, config=GRID)
    for part in ("transformer", "reference_network"):
        one, other = (load_components(f, [part])[part].state_dict() for f in (tmp_path / "b", golden_bundle))
        assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_what_does_not_fit_is_listed_and_nothing_is_written(tmp_path):
    state = golden_state()
    prefix, reference = "model.diffusion_model.", "ref_model.diffusion_model."
    state[f"{prefix}time_embed.7.weight"] = torch.ones(1)
    state[f"{prefix}transformer.layers.0.mlp.dense_4h_to_h.bias"] = torch.ones(65)
    del state[f"{prefix}transformer.layers.1.audio_attn.dense.weight"]
    del state[f"{reference}transformer.layers.1.attention.query_key_value.bias"]
    vae = torch.load(GOLDEN / "vae" / "vae" / "3d-vae.pt", weights_only=True)["state_dict"]
    del vae["decoder.norm_out.norm_layer.bias"]
    vae |= {"loss.discriminator.weight": torch.ones(4)}
    torch.save({"state_dict": vae}, tmp_path / "3d-vae.pt")
    with pytest.raises(ConversionError, match="5 tensors do not fit") as caught:
        sources = Sources(denoiser=save_published(tmp_path / "source", state), vae=tmp_path / "3d-vae.pt")
        convert(sources, tmp_path / "b")
    assert sorted(caught.value.problems) == [
        "reference_network: missing transformer_blocks.1.attention.to_qkv.bias [192]",
        "transformer: missing transformer_blocks.1.speech_attention.to_out.weight [64, 64]",
        "transformer: transformer_blocks.0.mlp.net.2.bias is [65], not [64]",
        "transformer: unexpected time_embed.7.weight",
        "vae: missing decoder.norm_out.norm_layer.bias [32]",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3d-vae.pt", "source"]


def test_parts_are_added_to_a_bundle_that_lacks_them_but_none_is_replaced(golden_bundle, tmp_path, components):
    out = tmp_path / "b"
    shutil.copytree(golden_bundle, out)
    (tmp_path / "wav2vec").mkdir()
    components["speech_encoder"].save_pretrained(tmp_path / "wav2vec")
    report = convert(Sources(speech_encoder=tmp_path / "wav2vec"), out, dtype=torch.float32)
    assert report.parts == ("speech_encoder", "feature_extractor")
    assert report.missing == missing_parts(out) == ("text_encoder", "tokenizer", "face_encoder")
    assert read_index(out).config["sample_height"] == 64
    before = (out / "model_index.json").read_text()
    with pytest.raises(UserError, match="has speech_encoder, feature_extractor already"):
        convert(Sources(speech_encoder=tmp_path / "wav2vec"), out)
    assert (out / "model_index.json").read_text() == before
    assert len(load_components(out, read_index(out).parts)) == 6


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").write_text("sun")
    with pytest.raises(UserError, match="holds other things"):
        convert(Sources(vae=GOLDEN / "vae" / "vae" / "3d-vae.pt"), tmp_path)
    with pytest.raises(UserError, match="is a file"):
        convert(Sources(vae=GOLDEN / "vae" / "vae" / "3d-vae.pt"), tmp_path / "holiday.jpg")
    with pytest.raises(UserError, match="can't be written"):
        convert(Sources(vae=GOLDEN / "vae" / "vae" / "3d-vae.pt"), tmp_path / "holiday.jpg" / "b")
    with pytest.raises(UserError, match="nothing to convert"):
        convert(Sources(), tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


# ------------------------------------------------------------------------------------------------------------ hostile


class Trap:
    def __reduce__(self):
        return os.system, ("touch trapped",)


@pytest.mark.parametrize("content", ["trap", "text", "empty", "cut", "list", "no tensors"])
def test_a_file_that_is_no_checkpoint_is_one_line(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    if content == "cut":
        path.write_bytes(CHECKPOINT.read_bytes()[:100_000])
    elif content in ("text", "empty"):
        path.write_text("hello" * (content == "text"))
    else:
        torch.save({"trap": Trap(), "list": [1, 2], "no tensors": {"module": {"a": 1}}}[content], path)
    with pytest.raises(UserError) as caught:
        convert(Sources(denoiser=path), tmp_path / "b")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "trapped").exists()
    assert not (tmp_path / "b").exists()


def test_latest_cannot_lead_out_of_its_folder(tmp_path):
    (tmp_path / "latest").write_text("../../etc")
    with pytest.raises(UserError, match="does not name a sub-folder"):
        convert(Sources(denoiser=tmp_path), tmp_path / "b")
    (tmp_path / "latest").write_text("7")
    with pytest.raises(UserError, match=r"7/mp_rank_00_model_states.pt: no such file"):
        convert(Sources(denoiser=tmp_path), tmp_path / "b")


@pytest.mark.parametrize("part", ["denoiser", "vae", "text_encoder", "tokenizer", "speech_encoder", "face_encoder"])
def test_an_empty_or_missing_folder_is_one_line(part, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(UserError, match=str(folder)):
            convert(Sources(**{part: folder}), tmp_path / "b")
    assert not (tmp_path / "b").exists()


# ----------------------------------------------------------------------------------------------------------- encoders


def test_text_encoder_keeps_the_encoder_of_an_encoder_decoder(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=40, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    whole = T5ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path / "t5", max_shard_size="5KB")
    convert(Sources(text_encoder=tmp_path / "t5"), tmp_path / "b", dtype=None)
    encoder = load_components(tmp_path / "b", ["text_encoder"])["text_encoder"]
    words = torch.tensor([[3, 5, 7, 1]])
    with torch.no_grad():
        assert torch.equal(encoder(words).last_hidden_state, whole.encoder(words).last_hidden_state)


@pytest.mark.parametrize("old", [False, True])
def test_speech_encoder_from_a_recogniser_old_or_new(old, tmp_path, components):
    from transformers import Wav2Vec2ForCTC

    torch.manual_seed(0)
    recogniser = Wav2Vec2ForCTC(components["speech_encoder"].config).eval()
    recogniser.save_pretrained(tmp_path / "w")
    if old:  # as older versions of the library saved it: pickled, with the old names of the weight norm
        state = load_file(tmp_path / "w" / "model.safetensors")
        names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
        for new, name in names.items():
            state = {key.replace(new, name): tensor for key, tensor in state.items()}
        state.pop("wav2vec2.masked_spec_embed")
        (tmp_path / "w" / "model.safetensors").unlink()
        torch.save(state, tmp_path / "w" / "pytorch_model.bin")
    report = convert(Sources(speech_encoder=tmp_path / "w"), tmp_path / "b", dtype=None)
    assert report.parts == ("speech_encoder", "feature_extractor")
    loaded = load_components(tmp_path / "b", ["speech_encoder", "feature_extractor"])
    wave = torch.randn(1, 4000)
    with torch.no_grad():
        expected = recogniser.wav2vec2(wave).last_hidden_state
        assert torch.equal(loaded["speech_encoder"](wave).last_hidden_state, expected)
    assert loaded["feature_extractor"].do_normalize


def make_tokenizer(folder):
    import sentencepiece

    folder.mkdir()
    words = folder / "words.txt"
    words.write_text("\n".join(f"a woman talks by the sea number {i} in the evening light" for i in range(200)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(words), model_prefix=str(folder / "spiece"), vocab_size=60, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    words.unlink()
    return folder


def test_tokenizer_from_a_sentencepiece_model(tmp_path):
    import sentencepiece

    folder = make_tokenizer(tmp_path / "t5")
    convert(Sources(tokenizer=folder), tmp_path / "b")
    tokenizer = load_components(tmp_path / "b", ["tokenizer"])["tokenizer"]
    text = "a woman talks in the light"
    expected = sentencepiece.SentencePieceProcessor(str(folder / "spiece.model")).encode(text)
    assert tokenizer(text).input_ids == [*expected, 1]
    padded = tokenizer(text, padding="max_length", max_length=40)
    assert padded.input_ids[len(expected) + 1 :] == [0] * (39 - len(expected))


def test_face_and_vocal_files_are_copied(tmp_path):
    models = tmp_path / "face_analysis" / "models"
    models.mkdir(parents=True)
    for name in ("scrfd_10g_bnkps.onnx", "glintr100.onnx", "face_landmarker_v2_with_blendshapes.task", "notes.txt"):
        (models / name).write_text(name)
    (tmp_path / "Kim_Vocal_2.onnx").write_text("vocals")
    sources = Sources(face_encoder=tmp_path / "face_analysis", vocal_separator=tmp_path / "Kim_Vocal_2.onnx")
    assert convert(sources, tmp_path / "b").parts == ("face_encoder",)
    assert sorted(f.name for f in (tmp_path / "b" / "face_encoder").iterdir()) == [
        "face_landmarker_v2_with_blendshapes.task", "glintr100.onnx", "scrfd_10g_bnkps.onnx",
    ]  # fmt: skip
    assert (tmp_path / "b" / "vocal_separator" / "Kim_Vocal_2.onnx").read_text() == "vocals"
    assert read_index(tmp_path / "b").parts["face_encoder"] == ("hallo3.conditions.face", "InsightFaceAnalyzer")
    (models / "glintr100.onnx").unlink()
    with pytest.raises(UserError, match=r"lacks some of scrfd_10g_bnkps.onnx, glintr100.onnx"):
        convert(Sources(face_encoder=tmp_path), tmp_path / "c")


def test_published_sources_are_what_is_there(tmp_path):
    shutil.copytree(GOLDEN / "dit" / "hallo3", tmp_path / "hallo3")
    (tmp_path / "cogvideox-5b-i2v-sat" / "vae").mkdir(parents=True)
    shutil.copy(GOLDEN / "vae" / "vae" / "3d-vae.pt", tmp_path / "cogvideox-5b-i2v-sat" / "vae")
    assert published_sources(tmp_path) == Sources(
        denoiser=tmp_path / "hallo3", vae=tmp_path / "cogvideox-5b-i2v-sat" / "vae" / "3d-vae.pt"
    )


# ---------------------------------------------------------------------------------------------------------- CogVideoX


def make_cogvideox(folder, **changes):
    from diffusers import CogVideoXTransformer3DModel

    torch.manual_seed(1)
    sizes = {
        "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3, "in_channels": 32, "out_channels": 16,
        "time_embed_dim": 12, "text_embed_dim": 10, "sample_width": 12, "sample_height": 8, "max_text_seq_length": 12,
        "use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True,
    }  # fmt: skip
    model = CogVideoXTransformer3DModel(**sizes | changes).eval()
    for name, tensor in model.state_dict().items():  # the position table is no parameter there
        torch.nn.init.normal_(tensor, mean=float("norm" in name and "weight" in name and tensor.ndim == 1), std=0.1)
    model.save_pretrained(folder / "transformer", max_shard_size="100KB")
    return model


def cogvideox_output(model, latents, timestep, text):
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    rotary = get_3d_rotary_pos_embed(16, None, (4, 6), 13, grid_type="slice", max_size=(4, 6))
    return model(latents, text, timestep, image_rotary_emb=rotary, return_dict=False)[0]


def test_cogvideox_in_diffusers_layout_equals_itself_without_a_reference(tmp_path):
    model = make_cogvideox(tmp_path / "cog")
    report = convert(Sources(denoiser=tmp_path / "cog"), tmp_path / "b", dtype=None, sizes=SIZES, max_shard_size="90KB")
    assert report.parts == ("transformer", "reference_network", "scheduler")
    settings = read_index(tmp_path / "b").config
    assert {name: settings[name] for name in GRID} == GRID
    ours = load_components(tmp_path / "b", ["transformer", "reference_network"])
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(2, 13, 32, 8, 12, generator=generator)
    text = torch.randn(2, 12, 10, generator=generator)
    speech = torch.randn(2, 49, 5, 12, 8, generator=generator)
    face = torch.randn(2, 8, generator=generator)
    timestep = torch.tensor([981, 3])
    with torch.no_grad():
        expected = cogvideox_output(model, latents, timestep, text)
        plain = ours["transformer"](latents, timestep, text)
        attended = ours["transformer"](latents, timestep, text, speech=speech, face=face)
        features = ours["reference_network"](latents[:, :1], text)
    assert largest_difference(plain, expected) <= 2e-5
    assert torch.equal(attended, plain)  # new attention starts at zero output
    assert len(features) == 3 and all(feature.shape == (2, 24, 32) for feature in features)


def test_new_attention_can_learn_from_its_start(tmp_path):
    make_cogvideox(tmp_path / "cog")
    convert(Sources(denoiser=tmp_path / "cog" / "transformer"), tmp_path / "b", dtype=None, sizes=SIZES)
    network = load_components(tmp_path / "b", ["transformer"])["transformer"]
    network(
        torch.randn(1, 13, 32, 8, 12), torch.tensor([500]), torch.randn(1, 12, 10),
        speech=torch.randn(1, 49, 5, 12, 8), face=torch.randn(1, 8),
    ).square().mean().backward()  # fmt: skip
    for block in network.transformer_blocks:
        assert block.speech_attention.to_out.weight.grad.abs().max() > 0
        assert block.face_attention.to_out.weight.grad.abs().max() > 0
        assert block.speech_attention.to_q.weight.std() > 0.05
        assert torch.equal(block.norm_speech.weight, torch.ones(32))


def test_reference_network_starts_as_the_denoisers_copy(tmp_path):
    make_cogvideox(tmp_path / "cog")
    convert(Sources(denoiser=tmp_path / "cog"), tmp_path / "b", dtype=None, sizes=SIZES)
    parts = load_components(tmp_path / "b", ["transformer", "reference_network"])
    denoiser = parts["transformer"].state_dict()
    for name, tensor in parts["reference_network"].state_dict().items():
        assert torch.equal(tensor, denoiser[name]), name


def test_cogvideox_in_sat_layout(tmp_path):
    new = ("audio_", "face_")
    state = golden_state()
    state = {n: x for n, x in state.items() if n.startswith("model.") and not any(word in n for word in new)}
    convert(Sources(denoiser=save_published(tmp_path / "sat", state)), tmp_path / "b", dtype=None, sizes=SIZES)
    convert(Sources(denoiser=GOLDEN / "dit" / "hallo3"), tmp_path / "hallo3", dtype=None)
    start = load_components(tmp_path / "b", ["transformer"])["transformer"]
    published = load_components(tmp_path / "hallo3", ["transformer"])["transformer"]
    recorded = load_file(GOLDEN / "dit" / "transformer_io.safetensors")
    latents = torch.cat([recorded["latents"], recorded["image_latents"]], 2)
    with torch.no_grad():
        inputs = (latents, recorded["timestep"], recorded["text_embeds"])
        assert torch.equal(start(*inputs), published(*inputs))


def test_the_speech_encoders_size_is_that_of_the_new_attention(tmp_path, components):
    make_cogvideox(tmp_path / "cog")
    components["speech_encoder"].save_pretrained(tmp_path / "w")
    sizes = {name: value for name, value in SIZES.items() if name != "speech_channels"}
    convert(Sources(denoiser=tmp_path / "cog", speech_encoder=tmp_path / "w"), tmp_path / "b", sizes=sizes)
    config = json.loads((tmp_path / "b" / "transformer" / "config.json").read_text())
    assert (config["speech_blocks"], config["speech_channels"]) == (2, 8)


def test_other_cogvideox_versions_are_refused(tmp_path):
    make_cogvideox(tmp_path / "sinusoidal", use_learned_positional_embeddings=False)
    with pytest.raises(UserError, match="is not CogVideoX-5B-I2V"):
        convert(Sources(denoiser=tmp_path / "sinusoidal"), tmp_path / "b", sizes=SIZES)
    make_cogvideox(tmp_path / "text", in_channels=16)
    with pytest.raises(ConversionError, match="16 input channels"):
        convert(Sources(denoiser=tmp_path / "text"), tmp_path / "b", sizes=SIZES)
    assert not (tmp_path / "b").exists()


# ------------------------------------------------------------------------------------------- memory and interruption


@pytest.fixture(scope="module")
def large_source(tmp_path_factory):
    """A checkpoint of 150 MB (wide golden): 38 M random numbers, in the published layout."""
    folder = tmp_path_factory.mktemp("large") / "hallo3"
    wide = {}
    for name, tensor in golden_state().items():
        if "mlp.dense" in name or "audio_proj.conv1.weight" in name:
            continue
        wide[name] = tensor
    generator = torch.Generator().manual_seed(0)
    tokens, prefix = 4400, "model.diffusion_model.transformer.audio_proj."
    wide[prefix + "conv1.weight"] = torch.randn(tokens, tokens, 2, generator=generator)
    wide[prefix + "conv1.bias"] = torch.zeros(tokens)
    wide[prefix + "proj3.weight"] = torch.zeros(tokens, 16)
    wide[prefix + "proj3.bias"] = torch.zeros(tokens)
    wide[prefix + "norm.weight"], wide[prefix + "norm.bias"] = torch.ones(tokens // 4), torch.zeros(tokens // 4)
    for name, tensor in golden_state().items():
        if "mlp.dense" in name:
            wide[name] = tensor
        if name.startswith("model.") and "audio_attn.key_value.weight" in name:
            wide[name] = torch.zeros(128, tokens // 4)
    return save_published(folder, wide)


CONVERT = """
import sys, threading, time
from pathlib import Path
import torch
from hallo3.bundles.convert import Sources, convert
from hallo3.networks.denoiser import Hallo3Transformer3DModel
import diffusers, transformers, hallo3.sampling.scheduler, hallo3.networks.reference
def anonymous():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))
before, peak, running = anonymous(), 0, True
def watch():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
convert(Sources(denoiser=Path(sys.argv[1])), sys.argv[2], dtype=torch.bfloat16, max_shard_size=sys.argv[3])
running = False
thread.join()
print(peak - before)
"""


def test_anonymous_memory_stays_below_one_and_a_half_shards(large_source, tmp_path):
    assert sum(file.stat().st_size for file in large_source.rglob("*.pt")) > 150e6
    shard = 20_000_000  # the largest tensor has 77 MB: not even that one is held whole
    command = [sys.executable, "-c", CONVERT, str(large_source), str(tmp_path / "b"), str(shard)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) <= 1.5 * shard
    report = json.loads((tmp_path / "b" / "transformer" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert report["metadata"]["total_size"] > 75e6


def test_a_killed_conversion_leaves_nothing_that_looks_complete(large_source, tmp_path):
    out = tmp_path / "b"
    # In the middle of its second shard: the first has less than 20 MB, the second, of one tensor, 77.
    command = killed_beyond(30_000_000, "-c", CONVERT, str(large_source), str(out), "20MB")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, timeout=600)
    assert killed.returncode == -signal.SIGXFSZ
    left = sorted(path.stat().st_size for path in tmp_path.glob(".b.partial/transformer/*.safetensors"))
    assert len(left) > 1 and left[-1] == 30_000_000
    assert not out.exists()
    with pytest.raises(UserError):
        load_components(str(out), ["transformer"])
    assert convert(Sources(denoiser=GOLDEN / "dit" / "hallo3"), out).parts[0] == "transformer"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_two_conversions_to_one_place_do_not_mix(tmp_path):
    from hallo3.bundles.staging import staged_folder

    with staged_folder(tmp_path / "b") as stage:
        (stage / "model_index.json").write_text("{}")
        with pytest.raises(UserError, match="another process is writing"):
            convert(Sources(vae=GOLDEN / "vae" / "vae" / "3d-vae.pt"), tmp_path / "b")
    assert (tmp_path / "b" / "model_index.json").exists()


def test_a_disk_too_small_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(UserError, match=r"needs 0.0 GB and .* has 0.0 GB free"):
        convert(Sources(vae=GOLDEN / "vae" / "vae" / "3d-vae.pt"), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []
