"""The embedded bundle's small encoders: `python -m hallo3.training.encoders {speech,text,locator,face}`.

Each command trains one encoder from data on disk, resumes where it was interrupted, and writes the weights in the
bundle's layout (`speech_encoder/`, `feature_extractor/`, `text_encoder/`, `tokenizer/`, `face_encoder/locator/`,
`face_encoder/encoder/`) with a `metrics.json` beside them, measured on data it did not learn from.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from hallo3.training.encoders_run import encoder_settings
from hallo3.training.loop import LoopSettings
from hallo3.training.parallel import say

if TYPE_CHECKING:
    from hallo3.training.encoders_images import FaceImage

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
app.callback()(lambda: None)  # always a command's name, even were there only one

Data = Annotated[Path, typer.Option(help="Folder of data to learn from.")]
Drawn = Annotated[Path, typer.Option(help="Folder of drawn people (the draw command's).")]
People = Annotated[int, typer.Option(min=2, help="Drawn people used; every tenth is for tests.")]
Photographs = Annotated[
    Path | None, typer.Option(help="Folder of photographs named in studio/data/portrait_boxes.csv.")
]
Out = Annotated[Path, typer.Option(help="Folder of parts to write to; checkpoints lie in its checkpoints/.")]
Steps = Annotated[int, typer.Option(min=1, help="Steps of the whole training.")]
Seed = Annotated[int, typer.Option(help="Seed of weights and batches.")]
Rate = Annotated[float, typer.Option(help="Highest learning rate.")]
Device = Annotated[str, typer.Option(help="Where to train: cpu or cuda.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]


def train_flags(steps: int, rate: float, seed: int, threads: int) -> LoopSettings:
    """Settings of the loop; also sets the number of threads."""
    torch.set_num_threads(threads)
    return encoder_settings(steps, rate, seed)


@app.command()
def speech(
    data: Data,
    out: Out,
    steps: Steps = 6000,
    rate: Rate = 2e-3,
    seed: Seed = 0,
    held_out: Annotated[Path | None, typer.Option(help="Folder to measure on; else a tenth of the data.")] = None,
    most: Annotated[int | None, typer.Option(help="Recordings used, first by name; all if not given.")] = None,
    device: Device = "cpu",
    threads: Threads = 1,
) -> None:
    """wav2vec2 on recordings whose articulation is known (a folder of studio.speech_clips)."""
    from hallo3.training.encoders_speech import train_speech

    settings = train_flags(steps, rate, seed, threads)
    train_speech(data, out, settings, held_out=held_out, most=most, device=device, log=say)


@app.command()
def text(
    out: Out,
    count: Annotated[int, typer.Option(min=20, help="Captions to draw.")] = 20_000,
    steps: Steps = 2000,
    rate: Rate = 4e-3,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = 1,
) -> None:
    """Tokenizer and T5 encoder on captions of drawn people."""
    from hallo3.training.encoders_text import draw_captions, train_text

    train_text(draw_captions(count, seed), out, train_flags(steps, rate, seed, threads), device=device, log=say)


@app.command()
def draw(
    out: Annotated[Path, typer.Option(help="Folder for the drawn people.")],
    people: Annotated[int, typer.Option(min=1, help="People to draw; every tenth is for tests.")] = 800,
    views: Annotated[int, typer.Option(min=2, help="Pictures of each.")] = 4,
) -> None:
    """Draws the people that the face networks learn from."""
    from hallo3.training.encoders_images import draw_faces

    draw_faces(out, range(people), views, log=say)


@app.command()
def locator(
    drawn: Drawn,
    out: Out,
    photographs: Photographs = None,
    people: People = 800,
    steps: Steps = 4000,
    rate: Rate = 2e-3,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = 1,
) -> None:
    """The network that finds faces, on drawn people and photographs."""
    from hallo3.training.encoders_locator import train_locator

    settings = train_flags(steps, rate, seed, threads)
    train_locator(*face_images(drawn, photographs, people), out, settings, device=device, log=say)


@app.command()
def face(
    drawn: Drawn,
    out: Out,
    photographs: Photographs = None,
    people: People = 800,
    steps: Steps = 4000,
    rate: Rate = 2e-3,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = 1,
) -> None:
    """The network that tells faces apart, on drawn people and photographs."""
    from hallo3.training.encoders_face import train_face

    settings = train_flags(steps, rate, seed, threads)
    train_face(*face_images(drawn, photographs, people), out, settings, device=device, log=say)


@app.command()
def measure(
    photographs: Annotated[Path, typer.Option(help="Folder of photographs named in studio/data/portrait_boxes.csv.")],
    bundle: Annotated[str, typer.Option(help="Bundle whose locator is measured.")] = "embedded",
) -> None:
    """How many faces a bundle's locator finds in the photographs that no locator here was trained on."""
    from hallo3.bundles.places import resolve
    from hallo3.networks.faces import FaceLocator
    from hallo3.training.encoders_images import load_photographs
    from hallo3.training.encoders_locator import evaluate_locator

    locator = FaceLocator.from_pretrained(resolve(bundle) / "face_encoder" / "locator").eval()
    print(json.dumps(evaluate_locator(locator, load_photographs(photographs)["test"]), indent=2))


def face_images(
    drawn: Path, photographs: Path | None, people: int
) -> tuple[list[list["FaceImage"]], dict[str, list["FaceImage"]]]:
    """Groups to learn from and named groups to measure on; every tenth drawn person is for measuring."""
    from hallo3.training.encoders_images import load_drawn, load_photographs

    faces = load_drawn(drawn, range(people))
    held_out = {"drawn": [face for face in faces if face.identity % 10 == 9]}
    groups = [[face for face in faces if face.identity % 10 != 9]]
    if photographs is not None:
        photographed = load_photographs(photographs)
        groups.append(photographed["train"])
        held_out["photographs"] = photographed["test"]
    return groups, held_out


if __name__ == "__main__":
    app()
