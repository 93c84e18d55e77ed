"""A training as a file: the published phases, settings that win, and what is refused."""

from pathlib import Path

import pytest
import torch

from hallo3.errors import UserError
from hallo3.runtime.operations import measured_speed
from hallo3.training.config import Lora, Training, VaeTraining, read_training
from hallo3.training.explain import empty_networks, explain
from hallo3.training.vae import make_vae

CONFIGS = Path(__file__).parents[2] / "configs"
PLACES = ["data=clips", "out=run"]


def test_the_published_phases_are_trainings() -> None:
    for name in ("phase1.yaml", "phase2.yaml"):
        training = read_training(CONFIGS / name, PLACES)
        assert (training.data, training.out, training.start) == (Path("clips"), Path("run"), "embedded")
        assert training.loop.learning_rate == 1e-5 and training.loop.clip == 0.1 and training.clip_frames == 49


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


@pytest.mark.parametrize("text", ["[1, 2]", "", "a: [", "\x00"])
def test_files_that_hold_no_settings(text: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(UserError, match=r"wrong\.yaml"):
        read_training(tmp_path / "wrong.yaml", PLACES)
    with pytest.raises(UserError, match=r"none\.yaml"):
        read_training(tmp_path / "none.yaml", PLACES)


def test_explained_numbers_are_those_of_the_networks(tiny_bundle: Path) -> None:
    given = [*PLACES, f"start={tiny_bundle}", "clip_frames=9"]
    first, second = (read_training(CONFIGS / f"phase{n}.yaml", given) for n in (1, 2))
    cpu = torch.device("cpu")
    identity, speech = explain(first, cpu), explain(second, cpu)
    networks, _ = empty_networks(str(tiny_bundle))
    total = sum(p.numel() for p in networks.parameters())
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
    saving = explain(first.model_copy(update={"activation_checkpointing": True}), cpu)
    assert saving.operations > identity.operations and saving.activations < identity.activations

    adapted = explain(second.model_copy(update={"lora": Lora(rank=1)}), cpu)
    assert 0 < adapted.trained < speech.trained and adapted.optimizer == 16 * adapted.trained


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
