"""Ways to train: spread over processes, with adapters, from scratch, watched."""

import gc
import json
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import T5EncoderModel, Wav2Vec2Model

import tiny
from hallo3.bundles.layout import load_components
from hallo3.conditions.face import EmbeddedFaceAnalyzer
from hallo3.errors import UserError
from hallo3.media.sound import decode_sound
from hallo3.media.video import probe, stream_frames
from hallo3.pipeline import Hallo3Pipeline
from hallo3.studio.dataset import Material, write_dataset
from hallo3.training.checkpoints import checkpoints
from hallo3.training.config import Lora, Training, Validation
from hallo3.training.explain import explain
from hallo3.training.journal import read_metrics
from hallo3.training.loop import Loop, LoopSettings
from hallo3.training.parallel import run_processes
from hallo3.training.run import train, training_networks

LAYERS = (r"^denoiser\.transformer_blocks\.", r"^reference_network\.transformer_blocks\.")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, recordings: Path) -> Path:
    """Three drawn clips, and the folder where what is prepared of them stays."""
    folder = tmp_path_factory.mktemp("clips")
    size = {"frames": 13, "height": tiny.HEIGHT, "width": tiny.WIDTH}
    write_dataset(folder / "data", 3, 0, split="train", material=Material.find(recordings), **size)
    (folder / "prepared").mkdir()
    return folder


@pytest.fixture
def make(shared: Path, tiny_bundle: Path, tmp_path: Path) -> Any:
    """Makes trainings, each in a folder of its own."""

    def build(name: str, steps: int = 2, loop: dict[str, Any] | None = None, **values: Any) -> Training:
        out = tmp_path / name
        out.mkdir()
        (out / "prepared").symlink_to(shared / "prepared")
        settings = {"steps": steps, "learning_rate": 1e-3, "warmup": 0, "save_every": 50, "log_every": 1} | (loop or {})
        given = {"start": str(tiny_bundle), "data": shared / "data", "out": out, "trains": LAYERS, "speech": True}
        return Training(**(given | {"clip_frames": 9, "loop": LoopSettings(**settings)} | values))

    return build


def losses(training: Training) -> list[float]:
    return [row["loss"] for row in read_metrics(training.out / "metrics.jsonl")]


def networks(bundle: Path) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": value
        for part in ("transformer", "reference_network")
        for file in (bundle / part).glob("*.safetensors")
        for name, value in load_file(file).items()
    }


def moved(bundle: Path, start: str) -> set[str]:
    before, after = networks(Path(start)), networks(bundle)
    assert before.keys() == after.keys()
    return {name for name in after if not torch.equal(before[name], after[name])}


def _train(training: Training) -> None:
    train(training, log=lambda line: None)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_processes_that_share_the_weights_learn_what_one_does(make: Any, optimizer: str) -> None:
    """The same global batch, 20 steps: equal losses; and each process really holds only a part of every weight."""
    alone = make("alone", 20, {"accumulate": 2, "optimizer": optimizer})
    _train(alone)
    both = make("both", 20, {"optimizer": optimizer})
    run_processes(2, _train, both)
    assert losses(both) == pytest.approx(losses(alone), rel=1e-5)
    found = checkpoints(both.out)[-1]
    parts = [torch.load(part, weights_only=True)["tensors"] for part in sorted(found.glob("part-*"))]
    whole = torch.load(next(checkpoints(alone.out)[-1].glob("part-*")), weights_only=True)["tensors"]
    assert len(parts) == 2
    for name, value in whole.items():
        if value.ndim:
            rows = [part[name].shape[0] for part in parts]
            assert sum(rows) == value.shape[0] and max(rows) <= -(-value.shape[0] // 2)
    for name, value in networks(alone.out / "bundle").items():
        torch.testing.assert_close(networks(both.out / "bundle")[name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_one_process_goes_on_from_what_two_have_left(make: Any, tmp_path: Path) -> None:
    """And the command under torchrun writes the bundle."""
    settings = {"accumulate": 2, "save_every": 2, "schedule": "constant"}
    whole = make("whole", 4, settings)
    _train(whole)
    config = tmp_path / "config.yaml"
    cut = make("cut", 4, {"save_every": 2, "schedule": "constant"})
    config.write_text(json.dumps(json.loads(cut.model_dump_json())))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "hallo3", "train", str(config), "loop.steps=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(str(cut.out / "bundle"))
    alone = cut.model_copy(update={"loop": LoopSettings(**(cut.loop.model_dump() | settings))})
    _train(alone)
    assert len(losses(alone)) == 4 and losses(alone) == pytest.approx(losses(whole), rel=1e-5)


def test_adapters_train_in_place_of_the_weights(make: Any) -> None:
    attention = (r"^denoiser\.transformer_blocks\.\d+\.attention\.",)
    plain, lora = make("plain", trains=attention), make("lora", trains=attention, lora=Lora(rank=2))
    _train(plain)
    said: list[str] = []
    bundle = train(lora, said.append)
    assert losses(lora)[0] == pytest.approx(losses(plain)[0], rel=1e-5), "adapters start without effect"
    assert losses(lora)[1] != losses(plain)[1]
    changed = moved(bundle, lora.start)
    assert changed and all(".attention.to_" in name and name.endswith(".weight") for name in changed)
    saved = [sum(file.stat().st_size for file in checkpoints(t.out)[-1].iterdir()) for t in (lora, plain)]
    assert saved[0] < saved[1]


@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_frozen_layers_take_half_the_memory_and_compute_the_same(
    make: Any, monkeypatch: pytest.MonkeyPatch, lora: Lora | None
) -> None:
    """In bfloat16 that is what autocast makes of them; and what is watched can still be watched."""
    given = {"trains": (r"speech_attention",), "precision": "bfloat16", "lora": lora}
    light = make("light", **given, validation=Validation(every=2, count=1, seconds=0.3, steps=1))
    held: list[int] = []
    run = Loop.run

    def weigh(loop: Loop, until: int | None = None) -> None:
        held.append(sum(p.nbytes for p in loop.module.parameters()))
        run(loop, until)

    monkeypatch.setattr(Loop, "run", weigh)
    bundle = train(light, lambda line: None)
    assert explain(light, torch.device("cpu")).weights - held[0] == 4 * sum(
        p.numel() for p in load_components(light.start, ["vae"])["vae"].parameters()
    )
    monkeypatch.setattr("hallo3.training.run.halve_frozen", lambda networks, training: None)
    whole = make("whole", **given)
    full = train(whole, lambda line: None)
    assert held[0] < 0.65 * held[1] and losses(light) == losses(whole)
    first, second = networks(bundle), networks(full)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {name.split(".")[3] for name in moved(bundle, light.start)} == {"speech_attention"}
    assert (light.out / "validation" / "step-0000002" / "000000.mp4").exists()


def test_encoders_are_gone_when_it_trains(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = (T5EncoderModel, Wav2Vec2Model, EmbeddedFaceAnalyzer)
    before, alive = {id(one) for one in gc.get_objects() if type(one) in kinds}, list[Any]()
    run = Loop.run

    def look(loop: Loop, until: int | None = None) -> None:
        gc.collect()
        alive.extend(one for one in gc.get_objects() if type(one) in kinds and id(one) not in before)
        run(loop, until)

    monkeypatch.setattr(Loop, "run", look)
    _train(make("freed"))
    assert not alive


@pytest.mark.parametrize("values", [{"lora": Lora(rank=2)}, {"scratch": True}])
def test_what_is_new_is_the_same_for_a_seed(make: Any, values: dict[str, Any]) -> None:
    """Processes that hold whole copies begin alike, and a training can be made again."""
    parts, training = load_components(make("one").start), make("two", trains=("attention|modulation",), **values)
    first, second, other = (
        training_networks(deepcopy(parts), training.model_copy(update={"seed": seed}), lambda line: None).state_dict()
        for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_adapters_need_linear_layers(make: Any) -> None:
    with pytest.raises(UserError, match="names no linear layer"):
        _train(make("lora", trains=(r"norm_face",), lora=Lora()))


def test_from_scratch_takes_the_sizes_and_not_the_weights(make: Any) -> None:
    training = make("scratch", 1, scratch=True, trains=(".",))
    train(training)
    before, after = networks(Path(training.start)), networks(training.out / "bundle")
    assert {name: value.shape for name, value in before.items()} == {name: v.shape for name, v in after.items()}
    name = "transformer.transformer_blocks.0.attention.to_qkv.weight"
    assert float((before[name] - after[name]).abs().max()) > 0.01


def test_videos_on_the_way_do_not_disturb(make: Any) -> None:
    plain, watched = make("plain"), make("watched", validation=Validation(every=2, count=2, seconds=0.3, steps=1))
    _train(plain)
    _train(watched)
    assert losses(watched) == losses(plain)
    folder = watched.out / "validation" / "step-0000002"
    assert sorted(path.name for path in folder.iterdir()) == ["000000.mp4", "000001.mp4", "sheet.jpg"]
    assert probe(folder / "000000.mp4").frames == 8
    assert not (watched.out / "validation" / "step-0000001").exists()


def test_validation_says_the_same_twice_and_silence_too(make: Any, shared: Path, tmp_path: Path) -> None:
    """Fixed seeds: a second look at the same weights gives the same files. A clip without a sound ends no training."""
    shutil.copytree(shared / "data", tmp_path / "data")
    np.save(tmp_path / "data" / "000000" / "speech.npy", np.zeros(13 * 640, np.float32))
    watch = Validation(every=1, count=2, seconds=0.3, steps=2)
    folders = []
    for name in ("first", "second"):
        training = make(name, data=tmp_path / "data", validation=watch)
        (training.out / "prepared").unlink()
        _train(training)
        folders.append(training.out / "validation")
    for step in ("step-0000001", "step-0000002"):
        for file in ("000000.mp4", "000001.mp4", "sheet.jpg"):
            first, second = (folder / step / file for folder in folders)
            assert first.read_bytes() == second.read_bytes(), file
    movies = [decode(folders[0] / step / "000001.mp4") for step in ("step-0000001", "step-0000002")]
    assert (movies[0] != movies[1]).any(), "other weights, other videos"
    sound = probe(folders[0] / "step-0000001" / "000000.mp4").sound
    assert sound is not None and abs(read_samples(folders[0] / "step-0000001" / "000000.mp4")).max() < 1e-3


def decode(path: Path) -> np.ndarray:
    return np.stack(list(stream_frames(path)))


def read_samples(path: Path) -> np.ndarray:
    return np.concatenate(list(decode_sound(path, 16_000, 1)), axis=1)


def test_a_loss_that_is_no_number_names_the_clips(make: Any, shared: Path) -> None:
    training = make("broken")
    _train(training)  # prepares
    (training.out / "prepared").unlink()
    (training.out / "prepared").mkdir()
    for file in (shared / "prepared").iterdir():
        (training.out / "prepared" / file.name).write_bytes(file.read_bytes())
    with np.load(training.out / "prepared" / "000001.npz") as tables:
        broken = {name: tables[name] for name in tables}
    broken["latents"][:] = np.nan
    np.savez(training.out / "prepared" / "000001.npz", **broken)
    again = training.model_copy(update={"loop": LoopSettings(**(training.loop.model_dump() | {"steps": 40}))})
    with pytest.raises(UserError, match=r"loss nan, gradient norm nan, clips 000001; .*start again"):
        _train(again)


@pytest.mark.parametrize(("speech", "identity"), [("norm", "face_norm"), ("joint", "none"), (None, "reference")])
def test_the_papers_variants_train_from_any_bundle(make: Any, speech: str | None, identity: str) -> None:
    training = make("variant", 1, trains=(".",), speech_conditioning=speech, identity_conditioning=identity)
    pipeline = Hallo3Pipeline.from_pretrained(train(training, log=lambda line: None))
    config = pipeline.transformer.config
    assert (config.speech_conditioning, config.identity_conditioning) == (speech or "cross", identity)
    assert (pipeline.reference_network is None) == (identity != "reference")
    frames = pipeline(tiny.portrait(), tiny.speech(0.4), face_box=(8, 8, 30, 30), num_inference_steps=1).frames
    assert frames.shape == (10, tiny.HEIGHT, tiny.WIDTH, 3)


def test_clips_larger_than_the_networks_know_are_named(make: Any, recordings: Path, tmp_path: Path) -> None:
    size = {"frames": 9, "height": 4 * tiny.HEIGHT, "width": 4 * tiny.WIDTH}
    write_dataset(tmp_path / "clips", 1, 0, split="train", material=Material.find(recordings), **size)
    training = make("large", data=tmp_path / "clips")
    (training.out / "prepared").unlink()
    with pytest.raises(UserError, match=r"000000: 192×256 pixels.*make smaller clips"):
        _train(training)
