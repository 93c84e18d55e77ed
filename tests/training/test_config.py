"""A training as a file: the published phases, settings that win, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tiny
from hallo3.bundles.layout import load_components, save_components
from hallo3.errors import UserError
from hallo3.runtime.operations import measured_speed
from hallo3.sampling.scheduler import Hallo3DPMScheduler
from hallo3.training.config import Lora, Training, VaeTraining, read_training
from hallo3.training.explain import explain
from hallo3.training.loop import StepRandom
from hallo3.training.phases import PhaseBatch, phase_loss
from hallo3.training.run import empty_components, training_networks
from hallo3.training.vae import VaeSettings, make_vae
from hub_server import serving

CONFIGS = Path(__file__).parents[2] / "configs"
PLACES = ["data=clips", "out=run"]


PUBLISHED = {
    "drops": {"text": 0.1, "image_latents": 0.05, "reference": 0.05, "speech": 0.05},
    "motion_frames": 2, "motion_noise": (-3.0, 0.5), "motion_mask": 0.1, "opening": 0.0, "caption_for_reference": True,
    "mouth": 0.0, "least_timestep": 0, "largest_travel": None, "clip_frames": 49, "batch": 1, "frozen": (),
    "precision": "bfloat16", "activation_checkpointing": True, "scratch": False, "lora": None, "spread": True,
    "speech_conditioning": None, "identity_conditioning": None, "validation": None, "device": "auto", "seed": 0,
}  # fmt: skip
PUBLISHED_LOOP = {
    "steps": 20_000, "optimizer": "adamw", "learning_rate": 1e-5, "betas": (0.9, 0.95), "eps": 1e-8,
    "weight_decay": 1e-4, "warmup": 0, "schedule": "constant", "clip": 0.1, "accumulate": 1, "ema": 0.9999, "seed": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "start", "speech"), [("phase1", "cogvideox-5b-i2v", False), ("phase2", "phase1/bundle", True)]
)
def test_the_published_phases_are_the_papers(name: str, start: str, speech: bool) -> None:
    """Every number of a training but how often it says something and what it trains (`test_phases.py`)."""
    found = read_training(CONFIGS / f"{name}.yaml", PLACES).model_dump()
    loop = found.pop("loop")
    assert found.pop("trains") and (found.pop("data"), found.pop("out")) == (Path("clips"), Path("run"))
    assert found == PUBLISHED | {"start": start, "speech": speech}
    assert {key: value for key, value in loop.items() if key in PUBLISHED_LOOP} == PUBLISHED_LOOP
    assert loop.keys() - PUBLISHED_LOOP.keys() == {
        "muon_rate",
        "final_rate",
        "save_every",
        "log_every",
        "keep",
        "wandb",
    }


def test_settings_win_over_the_file() -> None:
    given = [*PLACES, "loop.steps=7", "batch=3", "trains=[denoiser]", "precision=bfloat16", "motion_noise=[]"]
    training = read_training(CONFIGS / "phase1.yaml", given)
    assert (training.loop.steps, training.batch, training.trains) == (7, 3, ("denoiser",))
    assert training.precision == "bfloat16" and training.motion_noise == ()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data=x"], "out: Field required"),
        ([*PLACES, "loop.stpes=7"], "loop.stpes"),
        ([*PLACES, "loop.steps=none"], "loop.steps"),
        ([*PLACES, "clip_frames=20"], "4k + 1"),
        ([*PLACES, "batch"], "name=value"),
        ([*PLACES, "batch.size=2"], "not a group"),
        ([*PLACES, "batch=[1"], "no YAML"),
        ([*PLACES, "precision=int8"], "precision"),
    ],
)
def test_refused(settings: list[str], words: str) -> None:
    with pytest.raises(UserError) as refused:
        read_training(CONFIGS / "phase1.yaml", settings)
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("setting", "place"),
    [
        ("loop.betas=[2,3]", "loop.betas.0"),
        ("loop.betas=[0.9,1.0]", "loop.betas.1"),
        ("loop.eps=-1", "loop.eps"),
        ("loop.eps=0", "loop.eps"),
        ("loop.seed=-3", "loop.seed"),
        ("loop.weight_decay=-1", "loop.weight_decay"),
        ("loop.final_rate=-5", "loop.final_rate"),
        ("loop.final_rate=1.5", "loop.final_rate"),
        ("loop.learning_rate=.inf", "loop.learning_rate"),
        ("loop.learning_rate=.nan", "loop.learning_rate"),
        ("loop.muon_rate=.inf", "loop.muon_rate"),
        ("loop.clip=.inf", "loop.clip"),
        ("seed=-1", "seed"),
        ("motion_noise=[-3,-1]", "motion_noise"),
        ("motion_noise=[.inf,1]", "motion_noise"),
        ("motion_noise=[900,1]", "motion_noise"),
        ("motion_frames=3", "motion_frames"),
        ("motion_frames=8", "motion_frames"),
        ('trains=["("]', "no regular expression"),
        ('frozen=["*"]', "no regular expression"),
        ("trains=[]", "trains"),
        ("mouth=.inf", "mouth"),
        ("largest_travel=.nan", "largest_travel"),
        ("lora={alpha: .inf}", "lora.alpha"),
        ("validation={every: 1, seconds: .inf}", "validation.seconds"),
    ],
)
def test_numbers_that_no_training_can_have_are_named(setting: str, place: str) -> None:
    with pytest.raises(UserError, match=r"phase1\.yaml: ") as refused:
        read_training(CONFIGS / "phase1.yaml", [*PLACES, setting])
    assert place in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "setting",
    [f"loss.{name}={value}" for name in VaeSettings.model_fields for value in ("-1", ".inf")] + ["loss.noise=0"],
)
def test_a_vaes_losses_have_weights_that_can_be(setting: str) -> None:
    with pytest.raises(UserError, match=rf"vae\.yaml: {setting.partition('=')[0]}: "):
        read_training(CONFIGS / "vae.yaml", [*PLACES, setting])


def test_one_seed_is_that_of_the_batches_too() -> None:
    for config in ("phase1.yaml", "vae.yaml"):
        training = read_training(CONFIGS / config, [*PLACES, "seed=5"])
        assert training.loop.seeded(training.seed).seed == 5
        apart = read_training(CONFIGS / config, [*PLACES, "seed=5", "loop.seed=0"])
        assert apart.loop.seeded(apart.seed).seed == 0


@pytest.mark.parametrize("text", ["[1, 2]", "", "a: [", "\x00"])
def test_files_that_hold_no_settings(text: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(UserError, match=r"wrong\.yaml"):
        read_training(tmp_path / "wrong.yaml", PLACES)
    with pytest.raises(UserError, match=r"none\.yaml"):
        read_training(tmp_path / "none.yaml", PLACES)


def test_explained_numbers_are_those_of_the_networks(tiny_bundle: Path) -> None:
    given = [*PLACES, f"start={tiny_bundle}", "clip_frames=9", "precision=float32", "activation_checkpointing=false"]
    first, second = (read_training(CONFIGS / f"phase{n}.yaml", given) for n in (1, 2))
    cpu = torch.device("cpu")
    identity, speech = explain(first, cpu), explain(second, cpu)
    parts, _ = empty_components(str(tiny_bundle))
    total = sum(p.numel() for part in parts.values() for p in part.parameters())
    for found in (identity, speech):
        assert found.trained + found.frozen == total and found.weights == 4 * total
        assert found.trained == sum(group.trained for group in found.groups)
        assert found.optimizer == 16 * found.trained
    trained = {group.name for group in speech.groups if group.trained}
    assert trained == {f"denoiser.layers.{n}" for n in ("speech_attention", "norm_speech")} | {
        "denoiser.speech_projection"
    }
    hearing = explain(first.model_copy(update={"speech": True}), cpu)
    assert hearing.operations > identity.operations, "speech costs where it is heard"
    everything = second.model_copy(update={"trains": ("",)})
    assert explain(everything, cpu).operations > speech.operations, "what is frozen needs no gradients"
    twice = explain(first.model_copy(update={"batch": 2}), cpu)
    assert twice.operations == 2 * identity.operations and twice.activations > 1.9 * identity.activations
    later = explain(with_loop(first, accumulate=3), cpu)
    assert later.operations == 3 * identity.operations and later.activations == identity.activations
    four = explain(first, cpu, processes=4)
    vae = 4 * sum(p.numel() for p in parts["vae"].parameters())
    assert four.weights - vae == (identity.weights - vae) // 4 and four.optimizer == identity.optimizer // 4
    assert four.operations == identity.operations, "each process has a batch of its own"
    whole = explain(first.model_copy(update={"spread": False}), cpu, processes=4)
    assert (whole.weights, whole.optimizer) == (identity.weights, identity.optimizer)
    saving = explain(first.model_copy(update={"activation_checkpointing": True}), cpu)
    assert saving.operations > identity.operations and saving.activations < identity.activations

    adapted = explain(second.model_copy(update={"lora": Lora(rank=1)}), cpu)
    assert 0 < adapted.trained < speech.trained and adapted.optimizer == 16 * adapted.trained


def with_loop(training: Training, **changes: Any) -> Training:
    return training.model_copy(update={"loop": training.loop.model_copy(update=changes)})


@pytest.mark.parametrize(("speech", "identity"), [("norm", "none"), ("joint", "face_norm"), (None, "reference")])
def test_a_variant_is_explained_as_it_trains(tiny_bundle: Path, speech: str | None, identity: str) -> None:
    given = [*PLACES, f"start={tiny_bundle}", "clip_frames=9", "trains=[.]", f"identity_conditioning={identity}"]
    training = read_training(CONFIGS / "phase2.yaml", given + ([f"speech_conditioning={speech}"] if speech else []))
    assert isinstance(training, Training)
    networks = training_networks(load_components(tiny_bundle), training, lambda line: None)
    found = explain(training, torch.device("cpu"))
    assert found.trained == sum(p.numel() for p in networks.parameters())
    assert any(group.name.startswith("reference_network") for group in found.groups) == (identity == "reference")


def test_explaining_counts_what_a_real_step_does(tiny_bundle: Path) -> None:
    """Operations of `phase_loss` itself on a batch with numbers, the VAE's among them."""
    given = [*PLACES, f"start={tiny_bundle}", "clip_frames=9", "batch=2", "motion_frames=4"]
    plain = "activation_checkpointing=false"
    for changes in ([plain, "trains=[.]"], [], [plain, "lora={rank: 2}"]):
        training = read_training(CONFIGS / "phase2.yaml", [*given, *changes])
        assert isinstance(training, Training)
        components = load_components(tiny_bundle)
        networks = training_networks(components, training, lambda line: None)
        vae, sizes = components["vae"], networks["denoiser"].config
        height, width = tiny.HEIGHT, tiny.WIDTH
        batch = PhaseBatch(
            latents=torch.randn(2, 3, 16, height // 8, width // 8),
            reference=torch.randn(2, 1, 16, height // 8, width // 8),
            pictures=torch.zeros(2, 3, 5, height, width),
            text=torch.randn(2, tiny.WORDS, sizes.text_embed_dim),
            face=torch.randn(2, sizes.face_embed_dim),
            windows=torch.randn(2, 9, sizes.speech_window, sizes.speech_blocks, sizes.speech_channels),
            mouth=torch.zeros(2, 3, height // 8, width // 8),
        )
        # The counter does not know the CPU's own fused attention.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            phase_loss(networks, vae, Hallo3DPMScheduler(), batch, training, StepRandom.at(0, 0))[0].backward()
        assert explain(training, torch.device("cpu")).operations == counter.get_total_flops(), changes


def test_explaining_refuses_what_training_would(tiny_bundle: Path, tmp_path: Path) -> None:
    components = tiny.components()
    alone = components["transformer"].in_variant("cross", "face")
    save_components(tmp_path / "without", components | {"transformer": alone, "reference_network": None}, tiny.config())
    write_clip(tmp_path / "data" / "000000", 17, 4 * tiny.HEIGHT, 4 * tiny.WIDTH)
    (tmp_path / "empty").mkdir()
    for start, changes, words in (
        (tmp_path / "without", ["identity_conditioning=both"], "has no reference network"),
        (tiny_bundle, ["trains=[nonsense]"], "names no parameter"),
        (tiny_bundle, [f"data={tmp_path / 'data'}"], "make smaller clips"),
        (tiny_bundle, [f"data={tmp_path / 'empty'}"], "no clips here"),
    ):
        given = [*PLACES, f"start={start}", "clip_frames=9", "trains=[.]", *changes]
        training = read_training(CONFIGS / "phase2.yaml", given)
        with pytest.raises(UserError, match=words):
            explain(training, torch.device("cpu"))


def write_clip(folder: Path, frames: int, height: int, width: int) -> None:
    folder.mkdir(parents=True)
    np.save(folder / "frames.npy", np.zeros((frames, height, width, 3), np.uint8))
    np.save(folder / "speech.npy", np.zeros(frames * 640, np.float32))
    box = np.tile([16.0, 16.0, 8.0, 8.0], (frames, 1))
    np.savez(folder / "truth.npz", mouth_box=box, face_box=box, opening=np.zeros(frames))
    (folder / "meta.json").write_text(json.dumps({"caption": "A person talks."}))


def test_clips_that_are_there_are_those_explained(tiny_bundle: Path, tmp_path: Path) -> None:
    write_clip(tmp_path / "data" / "000000", 9, tiny.HEIGHT - 16, tiny.WIDTH)
    given = [*PLACES, f"start={tiny_bundle}", "clip_frames=9"]
    canvas = explain(read_training(CONFIGS / "phase2.yaml", given), torch.device("cpu"))
    given.append(f"data={tmp_path / 'data'}")
    smaller = explain(read_training(CONFIGS / "phase2.yaml", given), torch.device("cpu"))
    assert smaller.operations < canvas.operations and "32×64" in smaller.clip and "48×64" in canvas.clip


def test_of_a_hub_repository_only_configurations_are_fetched(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with serving({"someone/tiny": tiny_bundle}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        for config in ("phase2.yaml", "vae.yaml"):
            given = [*PLACES, "start=someone/tiny", "clip_frames=9"]
            explain(read_training(CONFIGS / config, given), torch.device("cpu"))
    fetched = {path.rpartition("/main/")[2] or path for method, path, _ in hub.requests if method == "GET"}
    files = {path.split("/", 5)[-1] for path in fetched if "/resolve/" in path}
    assert files == {
        "model_index.json",
        *(f"{part}/config.json" for part in ("transformer", "reference_network", "vae")),
    }


def test_a_vae_is_explained_and_its_file_is_one() -> None:
    training = read_training(CONFIGS / "vae.yaml", PLACES)
    assert isinstance(training, VaeTraining) and training.loss.colour == 2.0
    found = explain(training, torch.device("cpu"))
    assert found.trained == sum(p.numel() for p in make_vae().parameters()) and found.frozen == 0
    assert {group.name for group in found.groups} == {"vae.encoder", "vae.decoder"}
    larger = explain(training.model_copy(update={"crop": 128}), torch.device("cpu"))
    assert larger.operations == pytest.approx(4 * found.operations, rel=0.01)
    with pytest.raises(UserError, match=r"loss\.nois"):
        read_training(CONFIGS / "vae.yaml", [*PLACES, "loss.nois=1"])


def test_adapters_are_a_training() -> None:
    training = read_training(CONFIGS / "lora.yaml", PLACES)
    assert isinstance(training, Training) and training.lora == Lora(rank=64, alpha=64)


def test_speed_is_that_of_this_machine() -> None:
    assert 1e8 < measured_speed(torch.device("cpu"), "float32", 0.05) < 1e15
