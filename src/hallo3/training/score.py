"""How good a small bundle is, on people, voices and photographs it has never seen: `hallo3 studio score`.

Drawn people have a truth: what their mouths should do, who they are, what moves behind them. Each meter is also held to
the true videos, and what it says of them stands beside the score. Photographs have none; what must hold there, is held
to the photograph.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import count as counter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UserError
from ..evaluation.motion import clip_borders
from ..media.files import ensure_writable, writing
from . import score_drawn as drawn
from .score_cases import FIRST_SEED, FPS, STILL_SECONDS, VIEWS, Case, drawn_cases, prompt_pairs
from .score_photographs import Talking, find_pictures, photograph_scores, talking_photographs
from .score_table import Scores, write_scores

SHEET = 8  # cases on the contact sheet

T = TypeVar("T")


@dataclass(frozen=True)
class Extent:
    """How much is measured.

    Attributes:
        count, seconds: Drawn cases and their length. still: drawn cases of ten seconds in still surroundings.
        poses: Cases of each view. pairs: portraits with either prompt. long_count, long: long cases and their seconds.
    """

    count: int = 16
    seconds: float = 4.0
    still: int = 3
    poses: int = 3
    pairs: int = 7
    long_count: int = 1
    long: float = 60.0

    @property
    def videos(self) -> int:
        """Videos to be made of drawn people."""
        return self.count + self.still + self.poses * len(VIEWS) + 2 * self.pairs + self.long_count


def contact_sheet(videos: list[NDArray[np.uint8]], columns: int = 10) -> Image.Image:
    """A row a video, `columns` frames spread over it, all scaled to a height of 128."""
    rows = []
    for frames in videos:
        chosen = frames[np.linspace(0, len(frames) - 1, columns).round().astype(int)]
        size = (round(128 * frames.shape[2] / frames.shape[1]), 128)
        rows.append(np.concatenate([np.asarray(Image.fromarray(frame).resize(size)) for frame in chosen], axis=1))
    width = max(row.shape[1] for row in rows)
    return Image.fromarray(np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]))


def score_bundle(
    bundle: str,
    out: Path,
    extent: Extent,
    *,
    json_file: Path | None = None,
    photographs: Path | None = None,
    recordings: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Scores a bundle of the embedded one's size; writes the table as JSON, and contact sheets into `out`.

    Args:
        json_file: Where the table goes; `out/scores.json` if not given.
        photographs: Folder of photographs, of which those to train on are left out; None leaves their scores out.
        recordings: Folder of recordings to speak now and then, or always where no synthesiser is installed.
        progress: Called with the videos made and the videos to make.

    Raises:
        UserError: for a bundle that can't be loaded, a folder without photographs, or a file that can't be written.
    """
    from ..pipeline import Hallo3Pipeline
    from ..studio.dataset import Material

    if json_file is not None:
        ensure_writable(json_file, ".json")
    if any(place.exists() and not place.is_dir() for place in (out, *out.parents)):
        raise UserError(
            f"{out}: the contact sheets go to a folder, and this is a file, or in one; choose another --out"
        )
    with writing(out, "choose another --out"):
        out.mkdir(parents=True, exist_ok=True)
    pictures = [] if photographs is None else find_pictures(photographs)
    material, pipeline = Material.find(recordings), Hallo3Pipeline.from_pretrained(bundle)
    made, total = counter(1), extent.videos + len(pictures)

    def told(videos: Iterable[T], each: int = 1) -> Iterator[T]:
        for video in videos:
            for _ in range(each):
                number = next(made)
            if progress:
                progress(number, total)
            yield video

    scores = _drawn_scores(pipeline, material, extent, out, told)
    if pictures:
        scores |= _photograph_scores(pipeline, material, pictures, out, told)
    write_scores(json_file or out / "scores.json", scores, {"bundle": bundle, **asdict(extent)})
    return scores


def _drawn_scores(
    pipeline: Any, material: Any, extent: Extent, out: Path, told: Callable[..., Iterator[Any]]
) -> Scores:
    borders = clip_borders(round(extent.seconds * FPS), pipeline.config.num_frames, pipeline.config.motion_frames)
    shown: list[NDArray[np.uint8]] = []

    def read(case: Case) -> drawn.ReadCase:
        if len(shown) < 2 * SHEET:
            shown.extend((case.truth.frames, case.frames))
        return drawn.read_case(case, borders)

    def cases(first: int, number: int, seconds: float, **wishes: Any) -> Iterator[Case]:
        return told(drawn_cases(pipeline, first, number, seconds, material, **wishes))

    scores = drawn.drawn_scores([read(case) for case in cases(0, extent.count, extent.seconds)])
    contact_sheet(shown).save(out / "drawn.png")
    for index, (name, style) in enumerate(VIEWS.items()):
        scores |= drawn.view_scores(name, cases(2000 + 100 * index, extent.poses, extent.seconds, style=style))
    scores |= drawn.still_scores(cases(1000, extent.still, STILL_SECONDS, dynamic=False))
    scores |= drawn.text_scores(told(prompt_pairs(pipeline, 3000, extent.pairs, material), each=2))
    return scores | drawn.long_scores(cases(4000, extent.long_count, extent.long))


def _photograph_scores(
    pipeline: Any, material: Any, pictures: list[Path], out: Path, told: Callable[..., Iterator[Any]]
) -> Scores:
    from ..studio.speech_clips import speech_clip

    clip = speech_clip(FIRST_SEED, STILL_SECONDS * FPS, "test", material.recorded)
    videos: list[Talking] = list(told(talking_photographs(pipeline, pictures, clip.samples)))
    contact_sheet([video.frames for video in videos]).save(out / "photographs.png")
    return photograph_scores(videos, clip.movement.loudness)
