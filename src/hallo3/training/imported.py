"""Videos of people who talk, cut into the clips that all training reads.

A folder in the published layout holds `videos/NAME.mp4` (any container and codec that PyAV reads) and
`caption/NAME.txt`. Of a video less is known than of what the studio draws, and a clip's truth says no more:

- `face_box` is found by a bundle's face locator about twice a second, and linear between.
- `mouth_box` is an estimate: a fixed part of the face's box (`MOUTH`).
- `opening`, `width`, `loudness` and `phone_class` are estimates from the sound alone (`hallo3.studio.articulation`).
- Masks, poses, skeletons and the gap between the lips are not there.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from hallo3.conditions.face import MIN_FACE, Box, FaceAnalyzer, overlap
from hallo3.conditions.portrait import frame_portrait
from hallo3.conditions.speech import FPS, SAMPLE_RATE
from hallo3.errors import UserError
from hallo3.media.files import replace_file, require_file, writing
from hallo3.media.sound import read_speech
from hallo3.media.video import probe, stream_frames
from hallo3.studio.articulation import Articulation, articulation
from hallo3.studio.dataset import alone_in, check_settings, embed_face, write_clip
from hallo3.studio.speech_clips import SAMPLES_PER_FRAME

Size = tuple[int, int]  # height, width in pixels

HEARD = ("opening", "width", "loudness", "phone_class")  # what the sound alone says of a mouth
# Top left corner (x, y) and size (w, h) of the mouth at any opening, in sizes of the face's box: medians over 40 drawn
# people whose faces the embedded locator found.
MOUTH = (0.19, 0.63, 0.62, 0.38)
LOOK_EVERY = 12  # frames between two looks for the face
SLACK = 3  # frames of silence added at most: the sound of many files ends a packet or two before the picture
MOST_APART = 60.0  # seconds between the first frame and the first sound; more is a broken file
MOST_SECONDS = 1800.0  # of a video: its whole sound is in memory
MOST_CAPTION = 10_000  # bytes
MOST_TIMES = 5  # places named in a note


@dataclass
class Outcome:
    """What became of a video, kept in `imported/NUMBER.json` of the dataset.

    name: of the file. number: with which the names of its clips begin. clips: written. faceless: seconds at which clips
    begin that show no face to follow. whole: whether the video was read to its end.
    """

    name: str
    number: int
    clips: int = 0
    faceless: list[float] = field(default_factory=list)
    whole: bool = False

    def save(self, out: Path) -> None:
        """Writes it into the dataset `out`, in one step. Raises OSError."""
        replace_file(out / "imported" / f"{self.number:05d}.json", json.dumps(asdict(self)).encode())

    @property
    def note(self) -> str:
        """Which of its clips were left out; empty when none were."""
        if not self.faceless:
            return ""
        times = [f"{second:.1f} s" for second in self.faceless[:MOST_TIMES]]
        where = ", ".join([*times, "…"] if len(self.faceless) > MOST_TIMES else times)
        count = self.clips + len(self.faceless)
        return f"{self.name}: no face to follow in {len(self.faceless)} of {count} clips, from {where}"


@dataclass(frozen=True)
class Imported:
    """clips: in the dataset. videos: those they come from. skipped: videos that gave none. notes: a line for each of
    them, and for each video of which a part was left out."""

    clips: int
    videos: int
    skipped: int
    notes: list[str]


def bucket_sizes(height: int, width: int) -> tuple[Size, ...]:
    """Sizes for landscape, square and portrait videos: a canvas, the square that has no more tokens, the canvas turned.

    No more, because a network's table of positions ends with its canvas.
    """
    side = math.isqrt(height * width) // 16 * 16
    return tuple(dict.fromkeys([(height, width), (side, side), (width, height)]))


def nearest_size(aspect: float, sizes: Sequence[Size]) -> Size:
    """The size whose width over height is nearest, as a ratio."""
    return min(sizes, key=lambda size: abs(math.log(aspect * size[0] / size[1])))


@dataclass(frozen=True)
class _Video:
    """A video but for its pictures. speech: from its first frame on, 16 kHz. movement: the mouth's, by the sound."""

    path: Path
    caption: str
    speech: np.ndarray
    movement: Articulation

    @classmethod
    def open(cls, path: Path, captions: Path) -> "_Video":
        """Reads sound and caption. Raises UserError when either can't be used."""
        caption, speech = read_caption(captions / f"{path.stem}.txt"), _speech_from_first_frame(path)
        return cls(path, caption, speech, articulation(speech))

    def write(self, folder: Path, start: int, pixels: np.ndarray, boxes: np.ndarray, face: np.ndarray) -> None:
        """Writes the clip that begins at frame `start`. boxes: (F, 4) of the face. face: (c,) its embedding."""
        end = start + len(pixels)
        truth = {name: getattr(self.movement, name)[start:end] for name in HEARD}
        truth |= {"face_box": boxes, "mouth_box": estimate_mouth(boxes)}
        made_from = {"video": self.path.name, "start": start / FPS, "estimated": [*HEARD, "face_box", "mouth_box"]}
        meta = {"caption": self.caption, "identity": f"video-{self.path.stem}", "source": "video"}
        speech = self.speech[start * SAMPLES_PER_FRAME : end * SAMPLES_PER_FRAME]
        write_clip(folder, pixels, speech, truth, meta | {"made_from": made_from}, face)


@dataclass(frozen=True)
class _Importer:
    """How videos become clips of the dataset `out`."""

    out: Path
    analyzer: FaceAnalyzer
    sizes: Sequence[Size]
    frames: int

    def open_dataset(self, source: Path) -> dict[str, Outcome]:
        """Notes what the dataset is made with, and reads what became of videos before, by their names.

        Raises UserError for one that was made otherwise or is damaged, OSError for one that can't be written.
        """
        sizes = [f"{height}x{width}" for height, width in self.sizes]
        settings = {"videos": str(source.resolve()), "frames": self.frames, "sizes": sizes}
        check_settings(self.out / "dataset.json", settings)
        (self.out / "imported").mkdir(exist_ok=True)
        outcomes = {}
        for path in sorted((self.out / "imported").glob("*.json")):
            try:
                outcome = Outcome(**json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, TypeError):
                raise UserError(f"{path}: is damaged; import into another folder") from None
            outcomes[outcome.name] = outcome
        return outcomes

    def cut(self, path: Path, captions: Path, outcome: Outcome) -> None:
        """Writes the clips of a video that are not there yet. Raises UserError for one that can't be used."""
        outcome.clips, outcome.faceless = 0, []
        outcome.save(self.out)  # before its clips: their number must stay its own
        video = _Video.open(path, captions)
        with_sound = len(video.speech) // (self.frames * SAMPLES_PER_FRAME)
        for index, pixels in enumerate(islice(_cut_video(path, self.frames, self.sizes), with_sound)):
            folder, start = self.out / f"{outcome.number:05d}{index:05d}", index * self.frames
            if not folder.is_dir():
                boxes = follow_face(self.analyzer, pixels)
                if boxes is None:
                    outcome.faceless.append(start / FPS)
                    continue
                video.write(folder, start, pixels, boxes, embed_face(self.analyzer, pixels[0], boxes[0]))
            outcome.clips += 1
        if not outcome.clips and not outcome.faceless:
            raise UserError(f"{path}: picture and sound last less than a clip, {self.frames} frames at {FPS} a second")
        outcome.whole = True
        outcome.save(self.out)


def import_videos(
    folder: Path,
    out: Path,
    analyzer: FaceAnalyzer,
    *,
    sizes: Sequence[Size],
    frames: int = 49,
    report: Callable[[int, int], None] | None = None,
) -> Imported:
    """Cuts every video of a folder into consecutive clips at 25 frames a second, one in memory at a time.

    What is there already stays: an interrupted import goes on where it stopped, and takes in videos that are new.

    Args:
        folder: Holds `videos/` and `caption/`.
        out: The dataset; made if it is not there.
        analyzer: A bundle's `face_encoder`.
        sizes: Heights and widths of clips; a video is scaled and cut to the one of the nearest shape.
        frames: Of a clip, 4k + 1. What is left at a video's end is dropped.
        report: Called with (videos done, all) after each.

    Raises:
        UserError: no videos, a dataset made with other settings, a full disk. A video that can't be used is a note.
    """
    videos = find_videos(folder)
    # The analyser loads its models when it first looks: what they lack is said here, and not of every video.
    analyzer.detect(np.zeros((*sizes[0], 3), np.uint8))
    importer, notes = _Importer(out, analyzer, sizes, frames), list[str]()
    with alone_in(out), writing(out, "what is written stays: make room, then give the command again"):
        outcomes = importer.open_dataset(folder)
        for done, path in enumerate(videos):
            outcome = outcomes.setdefault(path.name, Outcome(path.name, len(outcomes)))
            try:
                if not outcome.whole:
                    importer.cut(path, folder / "caption", outcome)
                notes.append(outcome.note)
            except UserError as error:
                notes.append(str(error) + (f"; its {outcome.clips} clips before are kept" if outcome.clips else ""))
            if report:
                report(done + 1, len(videos))
    counts = [outcomes[path.name].clips for path in videos]
    return Imported(sum(counts), len(counts) - counts.count(0), counts.count(0), [note for note in notes if note])


def find_videos(folder: Path) -> list[Path]:
    """The files of `folder/videos`, in order. Raises UserError when there are none."""
    place = folder / "videos"
    if not place.is_dir():
        raise UserError(f"{folder}: has no folder videos; import reads videos/NAME.mp4 with caption/NAME.txt")
    found = sorted(path for path in place.iterdir() if path.is_file() and not path.name.startswith("."))
    if not found:
        raise UserError(f"{place}: no videos here; import reads videos/NAME.mp4 with caption/NAME.txt")
    return found


def read_caption(path: Path) -> str:
    """The text of a caption on one line. Raises UserError when it is missing, empty, too long or no text."""
    require_file(path, "caption")
    if path.stat().st_size > MOST_CAPTION:
        raise UserError(f"{path}: the caption is longer than {MOST_CAPTION} bytes; shorten it")
    try:
        text = " ".join(path.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError:
        raise UserError(f"{path}: the caption is no UTF-8 text; save it as such") from None
    if not text:
        raise UserError(f"{path}: the caption is empty; describe the person and what they do")
    return text


def follow_face(analyzer: FaceAnalyzer, frames: np.ndarray) -> np.ndarray | None:
    """Where the face is in each of `(F, H, W, 3)` uint8: `(F, 4)` float32 x, y, w, h in pixels.

    The largest face at first, then the one that overlaps it most. None when there is none, or it is lost on the way.
    """
    count, boxes = len(frames), list[Box]()

    def rank(box: Box) -> float:
        return overlap(box, boxes[-1]) if boxes else box[2] * box[3]

    looks = np.linspace(0, count - 1, max(2, round(count / LOOK_EVERY) + 1)).round().astype(int)
    for look in looks:
        found = [face.box for face in analyzer.detect(frames[look])]
        best = max((box for box in found if min(box[2:]) >= MIN_FACE * frames.shape[1]), key=rank, default=None)
        if best is None or rank(best) == 0:
            return None
        boxes.append(best)
    sides = np.array(boxes, np.float32).T
    return np.stack([np.interp(np.arange(count), looks, side) for side in sides], axis=1).astype(np.float32)


def estimate_mouth(face_boxes: np.ndarray) -> np.ndarray:
    """Face boxes `(F, 4)` → boxes `(F, 4)` where the mouth of an upright face seen from the front is."""
    place = np.array(MOUTH, np.float32)
    corner, size = face_boxes[:, :2], face_boxes[:, 2:]
    return np.concatenate([corner + size * place[:2], size * place[2:]], axis=1)


def _cut_video(path: Path, frames: int, sizes: Sequence[Size]) -> Iterator[np.ndarray]:
    """Consecutive clips `(frames, H, W, 3)` uint8 of a video, each scaled to cover its size and cut at the edges."""
    size: Size | None = None
    held = []
    for picture in stream_frames(path, fps=FPS):
        size = size or nearest_size(picture.shape[1] / picture.shape[0], sizes)
        held.append(frame_portrait(Image.fromarray(picture), *size, "crop")[0])
        if len(held) == frames:
            yield np.stack(held)
            held = []


def _speech_from_first_frame(path: Path) -> np.ndarray:
    """The sound of a video at 16 kHz, from when its first frame is shown, and `SLACK` frames of silence."""
    info = probe(path)
    if info.sound is None:
        raise UserError(f"{path}: the video has no sound; training needs the speech")
    apart = info.sound.start - info.start
    if abs(apart) > MOST_APART:
        raise UserError(f"{path}: its picture and sound begin {abs(apart):.0f} s apart; convert it again")
    samples, lead = read_speech(path, max_seconds=MOST_SECONDS).samples, round(apart * SAMPLE_RATE)
    return np.pad(samples[max(0, -lead) :], (max(0, lead), SLACK * SAMPLES_PER_FRAME))
