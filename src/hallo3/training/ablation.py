"""The paper's comparisons (section 4.4), small enough for a laptop: which networks are trained, and on what.

Every variant starts from new weights, learns from the same clips for as many steps, and speaks for the same people.
"""

import hashlib
import inspect
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from hallo3.bundles.parts import read_json
from hallo3.errors import UserError
from hallo3.media.files import replace_file, writing
from hallo3.networks.denoiser import Hallo3Transformer3DModel
from hallo3.networks.variants import DEFAULT_IDENTITY, DEFAULT_SPEECH
from hallo3.sampling.guidance import GuidanceScales
from hallo3.training.checkpoints import load_average
from hallo3.training.config import read_settings, validated
from hallo3.training.data import open_samples
from hallo3.training.loop import Log
from hallo3.training.parallel import run_processes, say
from hallo3.training.phases import Phase, choose_parameters
from hallo3.training.run import in_bundle, prepare_samples, run_phase
from hallo3.training.starting import CONDITIONS, SHARED, TEXT_LENGTH, make_networks

PUBLISHED_FRAMES = 2
NOTED = "ablation.json"
NEEDS = (*CONDITIONS, "speech_window", "speech_blocks", "face_tokens")


class Variant(NamedTuple):
    """One way to condition; the defaults are the published one."""

    speech: str = DEFAULT_SPEECH
    identity: str = DEFAULT_IDENTITY
    motion_frames: int = PUBLISHED_FRAMES

    def __str__(self) -> str:
        return f"{self.speech}-{self.identity}-{self.motion_frames}"


PUBLISHED = Variant()
COMPARISONS: dict[str, dict[str, Variant]] = {
    "speech": {
        "self-attention": Variant(speech="joint"),
        "adaptive norm": Variant(speech="norm"),
        "cross-attention": PUBLISHED,
    },
    "identity": {
        "none": Variant(identity="none"),
        "face attention": Variant(identity="face"),
        "face adaptive norm": Variant(identity="face_norm"),
        "reference network": Variant(identity="reference"),
        "face attention + reference network": PUBLISHED,
    },
    "motion frames": {
        "1": Variant(motion_frames=1),
        "2": PUBLISHED,
        "4": Variant(motion_frames=4),
    },
}
"""The paper's tables: what each of their rows is."""

VARIANTS = tuple(dict.fromkeys(variant for rows in COMPARISONS.values() for variant in rows.values()))


class Scales(BaseModel):
    """Scales of guidance of one row of the paper's last table."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    speech: float = 3.0
    text: float = 1.0
    reference: float = 1.0

    def __str__(self) -> str:
        return f"{self.speech:g}-{self.text:g}-{self.reference:g}"

    @property
    def guidance(self) -> GuidanceScales:
        """As the pipeline takes them."""
        return GuidanceScales(**self.model_dump())


class Ablation(BaseModel):
    """What is compared, with how much work.

    Attributes:
        out: Folder of data, trainings, measurements and, at the end, `report/`.
        bundle: Where encoders, VAE and the size of the pictures come from.
        portraits, recordings: Folders of labelled photographs and of recorded speech to learn from too.
        clips, frames: Drawn clips to learn from, and their frames.
        sizes: What the networks have other than the embedded ones: num_layers, …
        phase: The training of every variant; its motion_frames and its loop's seed are replaced.
        seeds: One training of each variant for each.
        cases, seconds: Held-out people that every training speaks for, and for how long. views: people seen from the
            side, from above and from below, each, for the published variant. scenes: people with something before
            them, once where it and the surroundings move and once where all that stands still, likewise.
        scales: Of guidance wherever they are not what is compared.
        guidance: For each scale, the values that it is given while the others stay.
        sampling_steps: Of the solver; the bundle's if not given.
        processes: Single-threaded processes that train and measure.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    out: Path
    bundle: str = "embedded"
    portraits: Path | None = None
    recordings: Path | None = None
    clips: int = Field(default=300, ge=1)
    frames: int = Field(default=49, ge=5)
    sizes: dict[str, Any] = Field(default_factory=dict)
    phase: Phase
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0, 1), min_length=1)
    cases: int = Field(default=16, ge=2)
    views: int = Field(default=8, ge=0)
    scenes: int = Field(default=8, ge=0)
    seconds: float = Field(default=2.0, ge=0.6)
    scales: Scales = Scales()
    guidance: dict[Literal["speech", "text", "reference"], tuple[float, ...]] = Field(default_factory=dict)
    sampling_steps: int | None = Field(default=None, ge=1)
    processes: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _clips_fit(self) -> Self:
        longest = max(variant.motion_frames for variant in VARIANTS)
        if self.phase.clip_frames % 4 != 1 or not longest < self.phase.clip_frames <= self.frames:
            raise ValueError(
                f"phase.clip_frames is {self.phase.clip_frames}; it must be 4k + 1, more than {longest} and no more "
                f"than frames ({self.frames})"
            )
        if any(len(values) < 2 for values in self.guidance.values()):
            raise ValueError("guidance: give two values of a scale at least")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: each trains once; give different ones")
        return self

    def sweep(self, scale: str) -> list[Scales]:
        """The rows in which one scale of guidance changes, by its value."""
        values = self.guidance.get(scale, ())  # type: ignore[call-overload]
        return [self.scales.model_copy(update={scale: value}) for value in sorted(values)]


def read_ablation(path: Path, settings: Sequence[str] = ()) -> Ablation:
    """Reads an ablation from YAML. Raises UserError naming the file or setting and the field that is wrong."""
    return validated(Ablation, read_settings(path, settings), path)


@dataclass(frozen=True)
class Run:
    """One training: a variant and a seed."""

    variant: Variant
    seed: int

    def __str__(self) -> str:
        return f"{self.variant}-seed{self.seed}"


def runs(ablation: Ablation) -> list[Run]:
    """All trainings: each variant once before any is trained again."""
    return [Run(variant, seed) for seed in ablation.seeds for variant in VARIANTS]


def check_ablation(ablation: Ablation) -> None:
    """Raises UserError for what can't be trained: sizes that make no networks, and names of parameters without any."""
    known = inspect.signature(Hallo3Transformer3DModel.__init__).parameters
    if unknown := sorted(set(ablation.sizes) - set(known)):
        raise UserError(f"sizes: {unknown[0]} is no size of a network; such as {', '.join((*SHARED, *CONDITIONS))}")
    try:
        # It has all that any variant has: what names nothing in it is a mistake.
        networks = networks_of(ablation, Run(PUBLISHED, ablation.seeds[0]))
    except (RuntimeError, TypeError, ValueError, AssertionError, IndexError, ZeroDivisionError, OverflowError) as error:
        told = " ".join(str(error).split())[:160]
        raise UserError(f"sizes: {ablation.sizes} make no networks ({told}); change them") from error
    if not len(networks.get_submodule("denoiser.transformer_blocks")):  # type: ignore[arg-type]
        raise UserError(f"sizes: {ablation.sizes} make no networks (no layers); change them")
    choose_parameters(networks, ablation.phase)


def train_all(ablation: Ablation, log: Log = print) -> None:
    """Draws the data and trains every variant; goes on where it was interrupted.

    Raises UserError for an ablation that can't be trained, and for work in `out` that other settings made.
    """
    from hallo3.studio.dataset import Material, write_dataset

    config = bundle_config(ablation)
    check_ablation(ablation)
    check_work(ablation)
    waiting = [run for run in runs(ablation) if not (folder(ablation, run) / "bundle").exists()]
    if not waiting:
        return
    material = Material.find(ablation.recordings, ablation.portraits)
    write_dataset(
        ablation.out / "data", ablation.clips, 0, split="train", frames=ablation.frames,
        height=config["sample_height"], width=config["sample_width"], material=material,
        workers=ablation.processes, report=partial(_drawn, log),
    )  # fmt: skip
    run_processes(ablation.processes, _prepare, ablation)
    for number, run in enumerate(waiting):
        log(f"{run}: {len(waiting) - number} of {len(runs(ablation))} trainings to do")
        run_processes(ablation.processes, _train, ablation, run)
        _write_bundle(ablation, run)


def made_with(ablation: Ablation) -> dict[str, Any]:
    """All that decides what a training comes to, but for its variant and seed; plain values for JSON."""
    names = ("clips", "frames", "sizes", "processes")
    told: dict[str, Any] = ablation.model_dump(mode="json", include=set(names))
    told |= {f"phase.{name}": value for name, value in ablation.phase.model_dump(mode="json").items()}
    told |= {f"phase.loop.{name}": value for name, value in told.pop("phase.loop").items()}
    for name in ("phase.motion_frames", "phase.loop.seed"):
        del told[name]
    material = {name: folder_digest(getattr(ablation, name)) for name in ("portraits", "recordings")}
    return told | {"bundle": folder_digest(resolve_bundle(ablation)), **material}


def resolve_bundle(ablation: Ablation) -> Path:
    """The folder of the bundle that everything but the networks comes from."""
    from hallo3.bundles.places import resolve

    return Path(resolve(ablation.bundle))


def folder_digest(folder: Path | None) -> str | None:
    """Tells folders apart: how many files there are, and a digest of their names and sizes; None for no folder."""
    if folder is None:
        return None
    found = hashlib.blake2b(digest_size=6)
    # Cards and licences of a bundle say nothing of what it computes.
    told = (".md", ".txt", ".py", ".pyc")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in told)
    for path in files:
        found.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
    return f"{len(files)} files, {found.hexdigest()}"


def check_work(ablation: Ablation, adopt: bool = False, *, note: bool = True) -> None:
    """Notes in `out/ablation.json` what the trainings there are made with.

    adopt: take trainings of which nothing is noted as made with these settings; the report says so. note: whether
    anything is written.

    Raises UserError for trainings that were made with other settings, naming one, or of which nothing is noted.
    """
    path, now = ablation.out / NOTED, made_with(ablation)
    if ablation.out.exists() and not ablation.out.is_dir():
        raise UserError(f"{ablation.out}: is a file; give a folder as out=…")
    if path.is_file():
        noted = _noted(ablation)["made_with"]
        for name in sorted(noted.keys() | now.keys()):
            if noted.get(name) != now.get(name):
                raise UserError(
                    f"{path}: the trainings here were made with {name}={noted.get(name)}, not {now.get(name)}; "
                    f"set it back, or choose another out"
                )
        return
    there = (ablation.out / "runs").is_dir() or (ablation.out / "data").is_dir()
    if there and not adopt:
        raise UserError(
            f"{path}: is not there, so nobody knows what the trainings here were made with; if it was these settings, "
            f"say so with --adopt, else choose another out"
        )
    if not note:
        return
    with writing(ablation.out, "name a folder that can be made"):
        ablation.out.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps({"made_with": now, "adopted": there}, indent=1) + "\n").encode())


def was_adopted(ablation: Ablation) -> bool:
    """Whether the settings of the trainings were stated afterwards, not noted when they began."""
    return (ablation.out / NOTED).is_file() and bool(_noted(ablation)["adopted"])


def _noted(ablation: Ablation) -> dict[str, Any]:
    """What `out/ablation.json` says. Raises UserError where that can't be read."""
    path = ablation.out / NOTED
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"made_with": dict(found["made_with"]), "adopted": bool(found["adopted"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{path}: is damaged, so nobody knows what the trainings here were made with; if it was these settings, "
            f"delete the file and say so with --adopt, else choose another out"
        ) from None


def folder(ablation: Ablation, run: Run) -> Path:
    """Where a training keeps its checkpoints, metrics and bundle."""
    return ablation.out / "runs" / str(run)


def bundle_config(ablation: Ablation) -> dict[str, Any]:
    """Settings of the bundle that everything but the networks comes from."""
    from hallo3.bundles.index import read_index

    return dict(read_index(resolve_bundle(ablation)).config)


def networks_of(ablation: Ablation, run: Run) -> nn.ModuleDict:
    """New networks of a run, ready to be trained: of the bundle's sizes, but for those that the ablation gives."""
    path = resolve_bundle(ablation) / "transformer" / "config.json"
    if not path.is_file():
        raise UserError(f"bundle={ablation.bundle}: has no transformer, whose sizes are taken; give another bundle")
    known = read_json(path) | ablation.sizes
    shared, conditions = ({name: known[name] for name in names if name in known} for names in (SHARED, NEEDS))
    conditions["speech_conditioning"], conditions["identity_conditioning"] = run.variant.speech, run.variant.identity
    return make_networks(shared, conditions, run.seed)


def phase_of(ablation: Ablation, run: Run, networks: nn.Module) -> Phase:
    """The phase of a run: what there is of all that trains, for the run's motion frames and seed."""
    names = [name for name, _ in networks.named_parameters()]
    trains = tuple(one for one in ablation.phase.trains if any(re.search(one, name) for name in names))
    loop = ablation.phase.loop.model_copy(update={"seed": run.seed})
    changed = {"trains": trains, "motion_frames": run.variant.motion_frames, "loop": loop}
    return ablation.phase.model_copy(update=changed)


def _drawn(log: Log, there: int, count: int) -> None:
    if there % 50 == 0 or there == count:
        log(f"drew {there} of {count} clips")


def _prepare(ablation: Ablation) -> None:
    from hallo3.bundles.layout import load_components

    samples, clip_frames = open_samples(ablation.out / "data"), ablation.phase.clip_frames
    parts = load_components(ablation.bundle)
    prepare_samples(samples, parts, ablation.out / "prepared", clip_frames, TEXT_LENGTH, 0, say)


def _train(ablation: Ablation, run: Run) -> None:
    from hallo3.bundles.layout import load_components

    vae, samples = load_components(ablation.bundle, ("vae",))["vae"], open_samples(ablation.out / "data")
    prepared, out, networks = ablation.out / "prepared", folder(ablation, run), networks_of(ablation, run)
    run_phase(networks, vae, samples, prepared, phase_of(ablation, run, networks), out, say)


def _write_bundle(ablation: Ablation, run: Run) -> None:
    """The bundle of a run: of what is in its folder, this and the metrics are all that is needed from now on."""
    from hallo3.bundles.layout import load_components, save_components

    networks, out = networks_of(ablation, run), folder(ablation, run)
    load_average(networks, out)
    config = bundle_config(ablation) | {
        "num_frames": ablation.phase.clip_frames,
        "motion_frames": run.variant.motion_frames,
        "motion_mask": ablation.phase.motion_mask,
        "text_length": TEXT_LENGTH,
    }
    save_components(out / "bundle", load_components(ablation.bundle) | in_bundle(networks), config)
