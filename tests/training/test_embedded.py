"""The recipe from samples to a bundle, at a tiny size."""

import hashlib
import json
import wave

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from hallo3.bundles.index import read_index
from hallo3.errors import UserError
from hallo3.pipeline import Hallo3Pipeline
from hallo3.studio import photographs, speech_clips
from hallo3.studio.photographs import FaceLabel
from hallo3.studio.voices import recordings
from hallo3.training.checkpoints import last_checkpoint
from hallo3.training.data import open_samples
from hallo3.training.embedded import (
    Recipe,
    make_speech,
    prepare,
    train_phase,
    train_the_decoder,
    training_photographs,
    write_bundle,
)
from hallo3.training.encoders_speech import load_recordings
from hallo3.training.loop import LoopSettings
from hallo3.training.phases import Phase
from hallo3.training.run import usable_samples
from hallo3.training.vae import EMBEDDED_VAE, make_vae

SHARED = {"num_layers": 2, "num_attention_heads": 1, "attention_head_dim": 32, "time_embed_dim": 8, "text_embed_dim": 8}
CONDITIONS = {
    "speech_blocks": 2, "speech_channels": 8, "speech_intermediate_dim": 8, "speech_tokens": 2, "speech_token_dim": 8,
    "face_embed_dim": 8, "face_tokens": 2, "face_token_dim": 8,
}  # fmt: skip


def write_sample(folder, frames=17, speed=0.0):
    """A clip of noise whose face box moves `speed` pixels a frame to the right."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    np.save(folder / "frames.npy", random.integers(0, 255, (frames, 128, 192, 3), np.uint8))
    np.save(folder / "speech.npy", random.normal(0, 0.1, frames * 640).astype(np.float32))
    box = np.tile(np.array([64.0, 40.0, 60.0, 60.0]), (frames, 1))
    box[:, 0] += speed * np.arange(frames)
    np.savez(folder / "truth.npz", mouth_box=box, face_box=box, opening=np.linspace(0, 1, frames))
    (folder / "meta.json").write_text(json.dumps({"caption": "a woman talks"}))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    work = tmp_path_factory.mktemp("embedded")
    for index in range(2):
        write_sample(work / "data" / f"{index:06d}", speed=index)
    made = tiny.components()
    for name in ("text_encoder", "tokenizer", "speech_encoder", "feature_extractor", "face_encoder"):
        made[name].save_pretrained(work / "parts" / name)
    make_vae(EMBEDDED_VAE | {"block_out_channels": (8, 8, 8, 8)}).save_pretrained(work / "vae")
    warmup = Phase(
        trains=(r"^denoiser\.", r"^reference_network\."),
        speech=True,
        caption_for_reference=False,
        clip_frames=9,
        loop=LoopSettings(steps=2, warmup=0, ema=0.5),
    )
    speech = warmup.model_copy(update={"trains": (r"speech_attention", r"norm_speech", r"speech_projection")})
    found = Recipe(
        work,
        processes=1,
        decoder_loop=LoopSettings(steps=1, optimizer="muon"),
        warmup=warmup,
        speech=speech,
        shared=SHARED,
        conditions=CONDITIONS,
    )
    prepare(found)
    return found


def test_prepared_samples_hold_what_a_step_needs(recipe):
    with np.load(recipe.work / "prepared" / "000000.npz") as tables:
        shapes = {name: tables[name].shape for name in tables}
    assert shapes["latents"] == (2, 3, 16, 16, 24)
    assert shapes["references"] == (8, 1, 16, 16, 24)
    assert shapes["deviations"] == shapes["reference_deviations"] == (1, 1, 16, 1, 1), "constant: our own VAE's"
    assert shapes["speech"] == (17 + 4, 2, 8)
    assert shapes["faces"] == (8, 8)
    assert shapes["text"][-1] == 8


def averages(folder):
    saved = last_checkpoint(folder)
    return {name: saved[f"average/{name}"] for name in saved.below("average")}


def test_both_phases_train_and_the_bundle_runs(recipe):
    train_the_decoder(recipe)
    train_phase(recipe, "warmup")
    train_phase(recipe, "speech")
    write_bundle(recipe)
    pipeline = Hallo3Pipeline.from_pretrained(recipe.work / "bundle", torch_dtype=torch.float32)
    assert (pipeline.config.num_frames, pipeline.config.sample_width) == (9, 192)
    frozen = averages(recipe.work / "warmup")
    weights = pipeline.transformer.state_dict()
    assert not torch.equal(weights["proj_out.weight"], torch.zeros_like(weights["proj_out.weight"]))
    for name in ("proj_out.weight", "transformer_blocks.0.attention.to_qkv.weight"):
        torch.testing.assert_close(weights[name], frozen[f"denoiser.{name}"].bfloat16().float())
    speech = averages(recipe.work / "speech")
    assert speech and all("speech" in name for name in speech)


def test_the_bundle_says_what_it_was_trained_from(recipe):
    for name in ("warmup", "speech"):
        train_phase(recipe, name)
    write_bundle(recipe)
    noted = read_index(recipe.work / "bundle").notes["_hallo3_training"]
    assert noted["command"] == "python -m hallo3.training.embedded all --seed 0 --processes 1" and noted["clips"] == 2
    assert noted["warmup"].startswith("2 steps, ") and noted["speech"].endswith(" minutes")
    card = (recipe.work / "bundle" / "README.md").read_text()
    assert "hallo3.training.embedded all" in card and "2 steps, " in card


def test_held_out_photographs_never_train_the_vae(tmp_path, monkeypatch):
    """What it learns from is known by its label, whatever else lies in the folder."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    labels = []
    for number, split in enumerate(("train", "test", "train")):
        name = f"{number}.jpg"
        Image.new("RGB", (60, 60), (80 * number, 0, 0)).save(pictures / name)
        digest = hashlib.sha256((pictures / name).read_bytes()).hexdigest()
        box = ((0.3, 0.2, 0.4, 0.6), (0.5, 0.65), 0.14, (0.4, 0.4), (0.6, 0.4))
        labels.append(FaceLabel(name, digest, *box, False, f"source {split}", split))
    Image.new("RGB", (60, 60), (0, 255, 0)).save(pictures / "of nobody known.jpg")
    monkeypatch.setattr(photographs, "face_labels", lambda: tuple(labels))
    recipe = Recipe(tmp_path / "work", portraits=pictures)
    (recipe.work / "photographs").mkdir(parents=True)
    (recipe.work / "photographs" / "1.jpg").write_bytes((pictures / "1.jpg").read_bytes())  # left by an older recipe
    learned = training_photographs(recipe)
    assert sorted(path.name for path in (recipe.work / "photographs").iterdir()) == ["0.jpg", "2.jpg"]
    assert len(learned.images) == 2 and all(np.asarray(one)[..., 1].max() < 20 for one in learned.images)
    assert training_photographs(Recipe(tmp_path)) is None


def test_the_speech_encoder_is_measured_on_recordings_that_it_never_heard(tmp_path, monkeypatch):
    monkeypatch.setattr(speech_clips, "RECORDED_SHARE", 1.0)
    tones = {"low.wav": 200, "bright.wav": 900}  # hertz; by their names one is for training, one for tests
    for name, tone in tones.items():
        with wave.open(str(tmp_path / name), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            hum = np.sin(2 * np.pi * tone * np.arange(16000 * 12) / 16000)
            file.writeframes((hum * 9000).astype("<i2").tobytes())
    splits = {found.path.name: found.split for found in recordings(tmp_path)}
    assert sorted(splits.values()) == ["test", "train"]
    folders = make_speech(Recipe(tmp_path / "work", recordings=tmp_path, speeches=3))
    for folder, split, count in zip(folders, ("train", "test"), (3, 1), strict=True):
        heard = load_recordings(folder)
        assert len(heard) == count
        for one in heard:
            spectrum = np.abs(np.fft.rfft(one.samples))
            loudest = np.fft.rfftfreq(len(one.samples), 1 / 16000)[spectrum.argmax()]
            assert splits[min(tones, key=lambda name: abs(tones[name] - loudest))] == split


def test_a_phase_without_prepared_samples_says_what_to_run(recipe, tmp_path):
    (tmp_path / "vae").symlink_to(recipe.work / "vae")
    (tmp_path / "data").symlink_to(recipe.work / "data")
    empty = Recipe(tmp_path, processes=1, warmup=recipe.warmup, shared=SHARED, conditions=CONDITIONS)
    with pytest.raises(UserError, match="prepare the data first"):
        train_phase(empty, "warmup")


def test_a_phase_leaves_out_heads_that_wander(recipe):
    samples = open_samples(recipe.work / "data")

    def found(travel):
        phase = recipe.speech.model_copy(update={"largest_travel": travel})
        return [item.sample.folder.name for item in usable_samples(samples, recipe.work / "prepared", phase)]

    travels = [sample.travel for sample in samples]
    assert travels == [0, pytest.approx(np.sqrt(np.mean(np.arange(17) ** 2)))]
    assert found(None) == ["000000", "000001"] and found(3.0) == ["000000"] and len(found(9.4)) == 2
    (recipe.work / "prepared" / "000000.npz").rename(recipe.work / "aside.npz")
    with pytest.raises(UserError, match="allow more"):
        found(3.0)
    (recipe.work / "aside.npz").rename(recipe.work / "prepared" / "000000.npz")
