"""`hallo3 studio`: drawn talking portraits whose truth is known."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from ..errors import UserError
from .options import bundle_names

if TYPE_CHECKING:
    from ..studio.dataset import Material

app = typer.Typer(
    help="Draw talking portraits whose truth is known: mouths, boxes, masks, poses.", no_args_is_help=True
)

Seed = Annotated[int, Option(min=0, help="Fixes everything that is drawn and said.")]
Split = Annotated[str, Option(help="train or test: identities, voices and photographs differ.")]
Height = Annotated[int, Option(min=32, max=2160, help="Pixels.")]
Width = Annotated[int, Option(min=32, max=3840, help="Pixels.")]
Photographs = Annotated[
    Path | None, Option(help="Folder with the labelled portraits, bent into further people.", show_default=False)
]
Recordings = Annotated[
    Path | None, Option(help="Folder with recordings to speak; else synthetic voices.", show_default=False)
]
Share = Annotated[float, Option(min=0, max=1, help="Share of photographs, if there are any.")]


@app.command()
def render(
    output: Annotated[Path, Option("-o", "--output", help="The video, .mp4.")],
    seed: Seed = 0,
    seconds: Annotated[float, Option(min=0.2, max=600, help="Length.")] = 5.0,
    split: Split = "test",
    height: Height = 256,
    width: Width = 384,
    photographs: Photographs = None,
    recordings: Recordings = None,
    photograph_share: Share = 0.25,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace OUTPUT.")] = False,
) -> None:
    """Draw one person who talks, as a video with sound; prints the caption."""
    from ..media.files import ensure_writable
    from ..media.provenance import provenance_tags
    from ..media.video import VideoWriter
    from ..studio.dataset import sample
    from ..studio.speech_clips import as_sound

    ensure_writable(output)
    if output.exists() and not overwrite:
        raise UserError(f"{output}: exists already; choose another name, or --overwrite")
    material = _material(recordings, photographs, photograph_share)
    frames = max(1, round(seconds * 25))
    drawn = sample(seed, split=_split(split), frames=frames, height=height, width=width, material=material)
    settings = {"split": split, "frames": frames, "caption": drawn.caption, "source": drawn.source}
    writer = VideoWriter(
        output,
        width,
        height,
        speech=as_sound(drawn.speech),
        metadata=provenance_tags(bundle="studio", seed=seed, settings=settings),
        overwrite=True,
    )
    with writer:
        writer.write_clip(drawn.frames)
        writer.finish()
    print(f"{output}: {drawn.caption}")


@app.command()
def preview(
    output: Annotated[Path, Option("-o", "--output", help="The picture, .png or .jpg.")],
    seed: Seed = 0,
    rows: Annotated[int, Option(min=1, max=100, help="People below each other.")] = 8,
    columns: Annotated[int, Option(min=1, max=20, help="People side by side, each with four mouths.")] = 2,
    height: Height = 128,
    width: Width = 192,
    style: Annotated[str | None, Option(help="How they move; random if not given.", show_default=False)] = None,
    light: Annotated[str, Option(help="steady, harsh, lamp, passing or fading.")] = "steady",
) -> None:
    """Draw a contact sheet: random people in random surroundings, with the mouth shut and saying /i/, /a/, /u/."""
    from PIL import Image

    from ..media.files import ensure_writable
    from ..studio.performance import STYLES
    from ..studio.preview import contact_sheet
    from ..studio.scene import LIGHTS

    ensure_writable(output, ".png", ".jpg")
    if light not in LIGHTS:
        raise UserError(f"--light {light}: give one of {', '.join(LIGHTS)}")
    if style is not None and style not in STYLES:
        raise UserError(f"--style {style}: give one of {', '.join(STYLES)}")
    Image.fromarray(contact_sheet(seed, rows, columns, height, width, style, light)).save(output)
    print(output)


@app.command()
def dataset(
    out: Annotated[Path, Option(help="Folder of the dataset; made if it is not there.")],
    count: Annotated[int, Option(min=1, help="Number of clips.")] = 600,
    seed: Seed = 0,
    split: Split = "train",
    frames: Annotated[int, Option(min=1, help="Frames of a clip, at 25 a second.")] = 65,
    height: Height = 128,
    width: Width = 192,
    photographs: Photographs = None,
    recordings: Recordings = None,
    photograph_share: Share = 0.25,
    workers: Annotated[int, Option(min=1, help="Processes.")] = 1,
    bundle: Annotated[
        str, Option(help="Bundle that embeds the faces; none goes without.", autocompletion=bundle_names)
    ] = "embedded",
) -> None:
    """Draw clips to train on, with their truth; an interrupted run goes on where it stopped."""
    _folder(out)
    from ..studio.dataset import write_dataset
    from .progress import counted

    with counted("clips") as report:
        new = write_dataset(
            out,
            count,
            seed,
            split=_split(split),
            frames=frames,
            height=height,
            width=width,
            material=_material(recordings, photographs, photograph_share),
            workers=workers,
            face_encoder=None if bundle == "none" else bundle,
            report=report,
        )
    print(f"{out}: {count} clips, {new} of them new")


@app.command("import")
def import_videos(
    folder: Annotated[Path, typer.Argument(help="Holds videos/NAME.mp4 and caption/NAME.txt.")],
    out: Annotated[Path, Option(help="Folder of the dataset; made if it is not there.")],
    bundle: Annotated[
        str, Option(help="Bundle that finds the faces and whose size the clips get.", autocompletion=bundle_names)
    ] = "embedded",
    frames: Annotated[int, Option(min=5, max=1001, help="Frames of a clip, at 25 a second: 4k + 1.")] = 49,
    size: Annotated[
        list[str] | None,
        Option(help="HEIGHTxWIDTH of clips, several times for several shapes; else three.", show_default=False),
    ] = None,
) -> None:
    """Cut videos of people who talk into clips to train on; an interrupted run goes on where it stopped."""
    _folder(out)
    if frames % 4 != 1:
        raise UserError(f"--frames {frames}: must be 4k + 1, such as 33 or 49")
    sizes = [_size(text) for text in size or ()]

    from ..bundles.index import read_index
    from ..bundles.layout import load_components
    from ..bundles.places import resolve
    from ..training.imported import bucket_sizes, find_videos
    from ..training.imported import import_videos as cut_videos
    from .progress import counted

    find_videos(folder)
    if not sizes:
        config = read_index(resolve(bundle, parts=["face_encoder"])).config
        sizes = list(bucket_sizes(config["sample_height"], config["sample_width"]))
    analyzer = load_components(bundle, ["face_encoder"])["face_encoder"]
    with counted("videos") as report:
        done = cut_videos(folder, out, analyzer, sizes=sizes, frames=frames, report=report)
    for note in done.notes:
        print(f"left out: {' '.join(note.split())}", file=sys.stderr)
    if not done.clips:
        raise UserError(f"{folder}: no clip came of its {done.skipped} videos, for the reasons above")
    print(f"{out}: {done.clips} clips of {done.videos} videos, {done.skipped} skipped")


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{2,4})[x×](\d{2,4})", text)
    height, width = (int(found[1]), int(found[2])) if found else (0, 0)
    if height % 16 or width % 16 or not (32 <= height <= 2160 and 32 <= width <= 3840):
        raise UserError(f"--size {text}: give HEIGHTxWIDTH in multiples of 16, such as 128x192")
    return height, width


@app.command()
def score(
    bundle: Annotated[
        str, typer.Argument(help="Bundle to score, of the embedded one's size.", autocompletion=bundle_names)
    ] = "embedded",
    out: Annotated[Path, Option(help="Folder for contact sheets and scores.json.")] = Path("scores"),
    json_file: Annotated[
        Path | None, Option("--json", help="File for the scores, instead of scores.json.", show_default=False)
    ] = None,
    photographs: Annotated[
        Path | None, Option(help="Folder of photographs; labelled ones to train on are left out.", show_default=False)
    ] = None,
    recordings: Recordings = None,
    count: Annotated[int, Option(min=2, help="Drawn cases, of people and voices never trained on.")] = 16,
    seconds: Annotated[float, Option(min=0.6, help="Length of a drawn case.")] = 4.0,
    still: Annotated[int, Option(min=0, help="Drawn cases of ten seconds in still surroundings.")] = 3,
    poses: Annotated[int, Option(min=0, help="Drawn cases in profile, from above and from below: each.")] = 3,
    pairs: Annotated[int, Option(min=0, help="Portraits prompted with moving and with still surroundings.")] = 7,
    long_count: Annotated[int, Option(min=0, help="Long drawn cases, to see whether a face stays who it is.")] = 1,
    long: Annotated[float, Option(min=4, help="Length of a long drawn case, in seconds.")] = 60.0,
) -> None:
    """Measure a bundle's mouths, faces, surroundings and seams beside the truth's; exit code 1 when a bar is missed."""
    from ..training.score import Extent, score_bundle
    from ..training.score_table import passes, report
    from .progress import counted

    _folder(out)
    extent = Extent(count, seconds, still, poses, pairs, long_count, long)
    with counted("videos") as progress:
        scores = score_bundle(
            bundle,
            out,
            extent,
            json_file=json_file,
            photographs=photographs,
            recordings=recordings,
            progress=progress,
        )
    report(scores)
    if not all(passes(name, found.value) for name, found in scores.items()):
        raise typer.Exit(1)


def _folder(out: Path) -> None:
    """Raises UserError unless `out` is a folder or can become one."""
    there = next((path for path in (out, *out.parents) if path.exists()), out)
    if there.exists() and not there.is_dir():
        raise UserError(f"--out {out}: {there} is a file; name a folder")


def _split(text: str) -> Any:
    if text not in ("train", "test"):
        raise UserError(f"--split {text}: give train or test")
    return text


def _material(recordings: Path | None, photographs: Path | None, share: float) -> "Material":
    from ..studio.dataset import Material

    return Material.find(recordings, photographs, share)
