import json
import subprocess
import sys

import pytest
import torch
from bundle_parts import NETWORK, SETTINGS

from hallo3.bundles.layout import (
    load_components,
    load_pipeline,
    missing_parts,
    read_index,
    save_components,
    write_index,
)
from hallo3.errors import UserError

LOADED = ["transformer", "reference_network", "vae", "text_encoder", "speech_encoder", "feature_extractor"]


def same_weights(one, other):
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_parts_come_back_as_they_were_saved(bundle, components):
    loaded = load_components(bundle, LOADED)
    assert list(loaded) == LOADED
    for name in LOADED[:-1]:
        assert type(loaded[name]) is type(components[name])
        assert same_weights(loaded[name], components[name])
        assert not loaded[name].training
    assert loaded["transformer"].config.num_layers == NETWORK["num_layers"]
    assert loaded["feature_extractor"].sampling_rate == 16000


def test_a_bundle_does_not_tell_where_its_parts_came_from(bundle, tmp_path):
    copy = tmp_path / "copy"
    save_components(copy, load_components(bundle, LOADED))
    configs = [path.read_text() for path in copy.rglob("*.json")]
    assert len(configs) > len(LOADED)
    assert not any(str(bundle) in config or "_name_or_path" in config for config in configs)


def test_weights_are_in_shards_no_larger_than_asked_for(bundle):
    shards = sorted((bundle / "transformer").glob("*.safetensors"))
    assert len(shards) > 2
    total = json.loads((bundle / "transformer" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert total["metadata"]["total_size"] == sum(
        4 * p.numel() for p in load_components(bundle, ["transformer"])["transformer"].parameters()
    )
    for shard in shards:
        header = int.from_bytes(shard.read_bytes()[:8], "little")
        assert shard.stat().st_size - 8 - header <= 20_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_is_the_callers_choice(bundle, dtype):
    for part in load_components(bundle, LOADED[:-1], torch_dtype=dtype).values():
        assert {p.dtype for p in part.parameters()} == {dtype}


def test_dtype_auto_is_that_of_the_files(components, tmp_path):
    save_components(tmp_path / "half", {"vae": components["vae"]}, dtype=torch.bfloat16)
    assert load_components(tmp_path / "half", ["vae"], torch_dtype="auto")["vae"].dtype == torch.bfloat16
    assert load_components(tmp_path / "half", ["vae"])["vae"].dtype == torch.float32
    assert components["vae"].dtype == torch.float32  # saving in another format leaves the model alone


@pytest.mark.parametrize("dtype", ["int8", "quadruple", torch.int64])
def test_a_dtype_that_is_none_for_weights_is_refused(bundle, dtype):
    with pytest.raises(UserError, match="float32, bfloat16, float16 or auto"):
        load_components(bundle, ["vae"], torch_dtype=dtype)


def test_a_partial_bundle_says_so_and_is_refused_by_name(bundle):
    assert missing_parts(bundle) == ("tokenizer", "scheduler", "face_encoder")
    assert json.loads((bundle / "model_index.json").read_text())["_hallo3_missing_parts"] == list(missing_parts(bundle))
    with pytest.raises(UserError, match=r"without tokenizer, scheduler, face_encoder; .*--tokenizer --denoiser"):
        load_components(bundle)
    assert load_components(bundle, ["vae", "face_encoder"], optional=["face_encoder"])["face_encoder"] is None


def test_saving_into_a_bundle_adds_parts_and_keeps_settings(components, tmp_path):
    save_components(tmp_path / "b", {"vae": components["vae"]}, SETTINGS)
    save_components(tmp_path / "b", {"speech_encoder": components["speech_encoder"]}, {"fps": 24})
    index = read_index(tmp_path / "b")
    assert set(index.parts) == {"vae", "speech_encoder"}
    assert {name: index.config[name] for name in SETTINGS} == SETTINGS
    assert (index.config["fps"], index.config["num_frames"]) == (24, 49)
    for name, part in load_components(tmp_path / "b", index.parts).items():
        assert same_weights(part, components[name])


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "missing shard": ("transformer", "diffusion_pytorch_model-00002-of-*.safetensors", lambda p: p.unlink()),
    "cut shard": ("transformer", "diffusion_pytorch_model-00001-of-*.safetensors", cut),
    "empty shard": ("vae", "diffusion_pytorch_model-00001-of-*.safetensors", lambda p: p.write_bytes(b"")),
    "text as weights": ("vae", "diffusion_pytorch_model-00001-of-*.safetensors", lambda p: p.write_text("hello " * 99)),
    "broken config": ("text_encoder", "config.json", cut),
    "missing config": ("vae", "config.json", lambda p: p.unlink()),
    "no object": ("speech_encoder", "config.json", lambda p: p.write_text("[1]")),
    "broken index": (".", "model_index.json", cut),
    "escaping index": (
        "transformer",
        "diffusion_pytorch_model.safetensors.index.json",
        lambda p: p.write_text('{"weight_map": {"proj_out.weight": "../../../etc/passwd"}}'),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_half_copied_bundle_is_one_line_that_names_the_file(bundle, damage):
    part, pattern, spoil = DAMAGE[damage]
    (path,) = (bundle / part).glob(pattern)
    spoil(path)
    with pytest.raises(UserError) as caught:
        load_components(bundle, LOADED)
    assert str(path) in str(caught.value) or path.name.replace(".index.json", "") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_lost_tensor_is_an_error_not_a_random_number(components, tmp_path):
    from safetensors.torch import load_file, save_file

    save_components(tmp_path / "b", {"vae": components["vae"], "text_encoder": components["text_encoder"]})
    for file in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        tensors = load_file(tmp_path / "b" / file)
        tensors.pop(next(iter(tensors)))
        save_file(tensors, tmp_path / "b" / file, {"format": "pt"})
        with pytest.raises(UserError, match=r"missing tensors|can't be loaded"):
            load_components(tmp_path / "b", [file.split("/")[0]])


def test_a_class_that_hallo3_does_not_load_is_refused(bundle):
    index = json.loads((bundle / "model_index.json").read_text())
    index["vae"] = ["os", "system"]
    (bundle / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="'system', which hallo3 doesn't load"):
        load_components(bundle, ["vae"])


@pytest.mark.parametrize("value", [-480, 0, "480", True, 1.5])
def test_a_senseless_setting_is_refused(bundle, value):
    index = json.loads((bundle / "model_index.json").read_text()) | {"sample_height": value}
    (bundle / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="sample_height"):
        read_index(bundle)


def test_what_is_no_bundle_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("HALLO3_HOME", str(tmp_path / "home"))
    with pytest.raises(UserError, match=r"no model_index.json; make one with `hallo3 convert`"):
        load_components(tmp_path)
    with pytest.raises(UserError, match="no such bundle"):
        load_components("nothing-of-this-name")
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(UserError, match="describes a StableDiffusionPipeline"):
        load_components(tmp_path)


def test_pickled_weights_are_never_read(bundle, components):
    for file in (bundle / "vae").glob("*.safetensors*"):
        file.unlink()
    torch.save(components["vae"].state_dict(), bundle / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"diffusion_pytorch_model.safetensors: is missing"):
        load_components(bundle, ["vae"])


class Assembled:
    """Stands where the pipeline's class does: takes the components and settings that it would."""

    def __init__(self, **values):
        self.values = values

    def register_to_config(self, **values):
        self.values |= values


def test_a_pipeline_gets_components_settings_and_replacements(bundle, components):
    others = dict.fromkeys(("tokenizer", "scheduler", "face_encoder"), "given")
    made = load_pipeline(Assembled, bundle, torch_dtype=torch.bfloat16, vae=components["vae"], fps=30, **others)
    assert made.values["vae"] is components["vae"]
    assert made.values["tokenizer"] == "given"
    assert made.values["transformer"].dtype == torch.bfloat16
    assert made.values["fps"] == 30
    assert made.values["sample_width"] == 48
    assert made.values["_name_or_path"] == str(bundle)
    with pytest.raises(TypeError, match="device_mop"):
        load_pipeline(Assembled, bundle, device_mop="auto")


def test_an_unknown_part_or_setting_is_a_mistake_of_the_caller(tmp_path):
    with pytest.raises(ValueError, match="soul"):
        write_index(tmp_path, {"soul": ("a", "b")})
    with pytest.raises(ValueError, match="height"):
        write_index(tmp_path, {}, {"height": 3})
    with pytest.raises(TypeError, match="vae must be a AutoencoderKLCogVideoX, not a Linear"):
        save_components(tmp_path / "x", {"vae": torch.nn.Linear(1, 1)})


def test_a_killed_save_leaves_nothing_under_the_name(tmp_path):
    code = """
import sys, os, signal, torch
from hallo3.bundles import layout
from transformers import Wav2Vec2FeatureExtractor
write = layout.extend_index
def die(*arguments): os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "die": layout.extend_index = die
layout.save_components(sys.argv[1], {"feature_extractor": Wav2Vec2FeatureExtractor()})
"""
    out = tmp_path / "bundle"
    assert subprocess.run([sys.executable, "-c", code, out, "die"]).returncode == -9
    assert not out.exists()
    assert (tmp_path / ".bundle.partial").exists()
    assert subprocess.run([sys.executable, "-c", code, out, "finish"]).returncode == 0
    assert missing_parts(out)[0] == "transformer"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]
