"""The recipe of the embedded bundle: `python -m hallo3.training.embedded all --work DIR`.

Stages, each resumable: `data` (drawn and photographed clips), `encoders` (speech, text, face), `vae`, `decoder`,
`prepare` (latents, text, speech on disk), `warmup` and `speech` (the phases in this recipe's form), `bundle`. What they
make lies in folders of the same names below DIR.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import torch
import typer
from torch import Tensor

from hallo3.errors import UserError
from hallo3.media.files import replace_file
from hallo3.networks.lean_vae import make_lean
from hallo3.training.checkpoints import checkpoints, load_average
from hallo3.training.data import Photographs, open_samples
from hallo3.training.loop import Loop, LoopSettings, StepRandom
from hallo3.training.parallel import rank, run_processes, say
from hallo3.training.phases import Drops, Phase
from hallo3.training.run import in_bundle, prepare_samples, run_phase
from hallo3.training.starting import CONDITIONS, SHARED, TEXT_LENGTH, make_networks
from hallo3.training.vae import VaeSettings, make_vae, train_vae, vae_loss
from hallo3.training.vae_run import finish_vae, still_pictures, vae_batches
from hallo3.training.vae_start import start_vae

# The bundle renders what it was trained on. Clips of 33 frames have half the borders of 17, where a picture can jump
# and loses a little each time; 49 would leave one place in a drawn clip to begin at.
CLIP_FRAMES = 33
CANVAS = (128, 192)
EVERYTHING = (r"^denoiser\.", r"^reference_network\.")

VAE_LOOP = LoopSettings(
    steps=4000,
    optimizer="muon",
    learning_rate=2e-3,
    muon_rate=5e-3,
    warmup=10,
    final_rate=0.05,
    ema=0.98,
    save_every=100,
)
# The decoder alone, on noisier latents: those that the denoiser will give are not exact either.
DECODER_LOOP = VAE_LOOP.model_copy(update={"steps": 600, "learning_rate": 1e-3, "muon_rate": 3e-3})
DECODER = VaeSettings(noise=0.2, shrink=0.0, mouth=3.0)
# Both networks learn everything at once, speech included: from scratch there is nothing that phase 1 could spare, and
# speech, which is learned last, hears from the first step on. Only the noisiest timesteps: speech shows there, a video
# made in one step is made there, and trained so briefly the network is better at one step than at many. Motion frames
# lose fewer pixels than the published tenth: so small a network smooths them away, in whole pictures too.
WARMUP = Phase(
    trains=EVERYTHING,
    speech=True,
    opening=0.2,
    caption_for_reference=False,
    mouth=20.0,
    motion_mask=0.02,
    least_timestep=960,
    clip_frames=CLIP_FRAMES,
    batch=2,
    loop=LoopSettings(
        steps=4000, optimizer="muon", learning_rate=3e-3, muon_rate=1e-2, warmup=20, ema=0.98, save_every=100
    ),
)
# Then mostly at the mouth.
SPEECH_PHASE = WARMUP.model_copy(
    update={
        "mouth": 60.0,
        "drops": Drops(text=0.1, image_latents=0.02, reference=0.02, speech=0.1),
        "loop": LoopSettings(
            steps=3000, optimizer="muon", learning_rate=2e-3, muon_rate=8e-3, warmup=5, ema=0.98, save_every=100
        ),
    }
)


@dataclass(frozen=True)
class Recipe:
    """Where the recipe works and how much of it there is; sizes are the embedded bundle's unless a test shrinks them.

    Attributes:
        work: Folder of everything that is made.
        portraits, recordings: Folders of photographs and of recorded speech; None does without.
        clips, people, speeches, captions: Amounts of training data.
        processes: Single-threaded processes that train together.
    """

    work: Path
    portraits: Path | None = None
    recordings: Path | None = None
    clips: int = 520
    people: int = 800
    speeches: int = 1200
    captions: int = 8000
    encoder_steps: int = 3000
    processes: int = 2
    seed: int = 0
    vae_loop: LoopSettings = VAE_LOOP
    decoder_loop: LoopSettings = DECODER_LOOP
    warmup: Phase = WARMUP
    speech: Phase = SPEECH_PHASE
    shared: dict[str, Any] = field(default_factory=lambda: dict(SHARED))
    conditions: dict[str, Any] = field(default_factory=lambda: dict(CONDITIONS))


def make_data(recipe: Recipe) -> None:
    """Clips with their truth."""
    from hallo3.studio.dataset import Material, write_dataset

    material = Material.find(recipe.recordings, recipe.portraits)
    write_dataset(
        recipe.work / "data", recipe.clips, recipe.seed, split="train", frames=49, height=CANVAS[0], width=CANVAS[1],
        material=material, workers=recipe.processes,
    )  # fmt: skip


def training_photographs(recipe: Recipe) -> Photographs | None:
    """The labelled photographs of the split train, as stills; None where there are none to learn from.

    They are gathered in the folder `photographs`, so that what was learned from can be looked at.
    """
    from hallo3.studio.photographs import find_photographs

    if recipe.portraits is None:
        return None
    folder = recipe.work / "photographs"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {one.path.name: one.path for one in find_photographs(recipe.portraits) if one.label.split == "train"}
    for path in set(folder.iterdir()) - {folder / name for name in wanted}:
        path.unlink(missing_ok=True)
    for name, path in wanted.items():
        if not (folder / name).is_file():  # several processes may do this at once
            replace_file(folder / name, path.read_bytes(), alone=False)
    return Photographs(folder, *CANVAS) if wanted else None


def make_speech(recipe: Recipe) -> tuple[Path, Path]:
    """Folders of speech to learn from, and of voices and recordings to measure on that are in none of it."""
    from hallo3.studio.speech_clips import write_speech
    from hallo3.studio.voices import recordings

    recorded = recordings(recipe.recordings) if recipe.recordings else ()
    spoken, unheard = recipe.work / "spoken", recipe.work / "spoken-unheard"
    write_speech(spoken, recipe.speeches, "train", recorded)
    write_speech(unheard, max(1, recipe.speeches // 10), "test", recorded)
    return spoken, unheard


def train_encoders(recipe: Recipe) -> None:
    """Speech, text and face encoders, each with its own objective."""
    from hallo3.training import encoders

    torch.set_num_threads(recipe.processes)
    parts, seed, threads = recipe.work / "parts", recipe.seed, recipe.processes
    spoken, unheard = make_speech(recipe)
    encoders.speech(spoken, parts, held_out=unheard, steps=recipe.encoder_steps, seed=seed, threads=threads)
    encoders.text(parts, count=recipe.captions, steps=recipe.encoder_steps, seed=seed, threads=threads)
    encoders.draw(recipe.work / "faces", people=recipe.people)
    for train in (encoders.locator, encoders.face):
        train(
            recipe.work / "faces", parts, photographs=recipe.portraits, people=recipe.people,
            steps=recipe.encoder_steps, seed=seed, threads=threads,
        )  # fmt: skip


def train_the_vae(recipe: Recipe) -> None:
    """The VAE, then its scale."""
    samples = open_samples(recipe.work / "data")
    photographs = training_photographs(recipe)
    vae = make_vae(seed=recipe.seed)
    start_vae(vae, still_pictures(samples, photographs, 120, recipe.seed))
    draw = vae_batches(samples, photographs, recipe.vae_loop.steps)
    train_vae(vae, draw, recipe.work / "vae" / "checkpoints", recipe.vae_loop, VaeSettings(), say)
    if rank() == 0:
        finish_vae(vae, samples, CLIP_FRAMES)
        vae.save_pretrained(recipe.work / "vae")


def train_the_decoder(recipe: Recipe) -> None:
    """The decoder once more, with the encoder as it is: prepared latents stay valid."""
    from diffusers import AutoencoderKLCogVideoX

    samples = open_samples(recipe.work / "data")
    photographs = training_photographs(recipe)
    vae: Any = make_lean(AutoencoderKLCogVideoX.from_pretrained(recipe.work / "vae"))
    vae.encoder.requires_grad_(False)
    steps = recipe.decoder_loop.steps
    draw = vae_batches(samples, photographs, steps)

    def step_loss(step: int, random: StepRandom) -> tuple[Tensor, dict[str, float]]:
        return vae_loss(vae, draw(steps // 5 + step, random), DECODER, random)

    Loop(vae, step_loss, recipe.work / "decoder" / "checkpoints", recipe.decoder_loop, say).run()
    load_average(vae, recipe.work / "decoder" / "checkpoints")
    if rank() == 0:
        vae.save_pretrained(recipe.work / "decoder")


def load_parts(recipe: Recipe) -> dict[str, Any]:
    """The encoders and the VAE, in evaluation mode."""
    from diffusers import AutoencoderKLCogVideoX
    from transformers import AutoTokenizer, T5EncoderModel, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    from hallo3.conditions.face import EmbeddedFaceAnalyzer

    parts, tuned = recipe.work / "parts", recipe.work / "decoder"
    vae = tuned if (tuned / "config.json").exists() else recipe.work / "vae"
    loaded = {
        "vae": make_lean(AutoencoderKLCogVideoX.from_pretrained(vae)).eval(),
        "text_encoder": T5EncoderModel.from_pretrained(parts / "text_encoder").eval(),
        "tokenizer": AutoTokenizer.from_pretrained(parts / "tokenizer"),
        "speech_encoder": Wav2Vec2Model.from_pretrained(parts / "speech_encoder").eval(),
        "feature_extractor": Wav2Vec2FeatureExtractor.from_pretrained(parts / "feature_extractor"),
        "face_encoder": EmbeddedFaceAnalyzer.from_pretrained(parts / "face_encoder"),
    }
    return loaded


def prepare(recipe: Recipe) -> None:
    """What does not change while the phases train."""
    samples, folder = open_samples(recipe.work / "data"), recipe.work / "prepared"
    prepare_samples(samples, load_parts(recipe), folder, recipe.warmup.clip_frames, TEXT_LENGTH, recipe.seed, say)


def train_phase(recipe: Recipe, name: str, until: int | None = None) -> None:
    """One phase; the second starts from the averaged weights of the first."""
    from diffusers import AutoencoderKLCogVideoX

    work, phase = recipe.work, getattr(recipe, name)
    networks = make_networks(recipe.shared, recipe.conditions, recipe.seed)
    if name != "warmup":
        load_average(networks, work / "warmup")
    vae = AutoencoderKLCogVideoX.from_pretrained(work / "vae").eval()
    run_phase(networks, vae, open_samples(work / "data"), work / "prepared", phase, work / name, say, until)


def write_bundle(recipe: Recipe) -> None:
    """Everything as one bundle, in bfloat16."""
    from hallo3.bundles.layout import save_components
    from hallo3.sampling.scheduler import Hallo3DPMScheduler

    networks = make_networks(recipe.shared, recipe.conditions, recipe.seed)
    for name in ("warmup", "speech"):
        if checkpoints(recipe.work / name):
            load_average(networks, recipe.work / name)
    components = load_parts(recipe) | in_bundle(networks) | {"scheduler": Hallo3DPMScheduler()}
    config = {
        "sample_height": CANVAS[0],
        "sample_width": CANVAS[1],
        "num_frames": recipe.warmup.clip_frames,
        "motion_mask": recipe.speech.motion_mask,
        "text_length": TEXT_LENGTH,
        "num_inference_steps": 1,
        "speech_scale": 2.5,
        "text_scale": 1.0,
    }
    save_components(
        recipe.work / "bundle", components, config, max_shard_size="8MB", dtype=torch.bfloat16,
        notes={"_hallo3_training": training_notes(recipe)},
    )  # fmt: skip
    say(f"wrote {recipe.work / 'bundle'}")


def training_notes(recipe: Recipe) -> dict[str, Any]:
    """What the weights come from, for the bundle's index and card: command, data, steps and minutes."""
    from hallo3.studio.dataset import noted_settings

    data = recipe.work / "data"
    settings = noted_settings(data / "dataset.json") if (data / "dataset.json").is_file() else {}
    command = f"python -m hallo3.training.embedded all --seed {recipe.seed} --processes {recipe.processes}"
    for name in ("portraits", "recordings"):  # where they lie on one machine says nothing to others
        if getattr(recipe, name) is not None:
            command += f" --{name} FOLDER"
    notes: dict[str, Any] = {
        "command": command,
        "clips": sum(path.name.isdigit() for path in data.glob("*")),
    }
    notes |= {name: value for name, value in settings.items() if value is not None}
    if (recipe.work / "photographs").is_dir():
        notes["photographs_of_the_vae"] = sum(1 for _ in (recipe.work / "photographs").iterdir())
    for name in ("vae/checkpoints", "decoder/checkpoints", "warmup", "speech"):
        metrics = recipe.work / name / "metrics.jsonl"
        if metrics.is_file():
            rows = [json.loads(line) for line in metrics.read_text().splitlines()]
            steps = [0, *(int(row["step"]) for row in rows)]
            took = sum(row["seconds"] * count for row, count in zip(rows, np.diff(steps), strict=True))
            notes[name.split("/")[0]] = f"{steps[-1]} steps, {took / 60:.1f} minutes"
    return notes


STAGES: dict[str, Callable[[Recipe], None]] = {
    "data": make_data,
    "encoders": train_encoders,
    "vae": lambda recipe: run_processes(recipe.processes, train_the_vae, recipe),
    "decoder": lambda recipe: run_processes(recipe.processes, train_the_decoder, recipe),
    "prepare": lambda recipe: run_processes(recipe.processes, prepare, recipe),
    "warmup": lambda recipe: run_processes(recipe.processes, train_phase, recipe, "warmup"),
    "speech": lambda recipe: run_processes(recipe.processes, train_phase, recipe, "speech"),
    "bundle": write_bundle,
}


def main(
    stage: Annotated[str, typer.Argument(help="all, or one of: " + ", ".join(STAGES))],
    work: Annotated[Path, typer.Option(help="Folder for data, checkpoints and the bundle.")] = Path("work/embedded"),
    portraits: Annotated[Path | None, typer.Option(help="Labelled photographs, to learn from them too.")] = None,
    recordings: Annotated[Path | None, typer.Option(help="Recorded speech, to learn from it too.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that train together, one core each.")] = 2,
    seed: Annotated[int, typer.Option(help="Fixes data, weights and batches.")] = 0,
) -> None:
    """Trains the embedded bundle; goes on where it was interrupted."""
    if stage != "all" and stage not in STAGES:
        _stop(f"{stage}: no such stage; choose all or one of {', '.join(STAGES)}")
    recipe = Recipe(work, portraits, recordings, processes=processes, seed=seed)
    for name in STAGES if stage == "all" else (stage,):
        say(f"stage {name}")
        try:
            STAGES[name](recipe)
        except UserError as error:
            _stop(str(error))


def _stop(message: str) -> NoReturn:
    print(f"hallo3: error: {message}", file=sys.stderr)
    raise typer.Exit(2)


if __name__ == "__main__":
    typer.run(main)
