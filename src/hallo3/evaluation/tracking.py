"""Where a person's face is in a video, by comparison with true frames of the same person."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .meters import Floats, luminance

UPPER_FACE = 0.65  # of a face's height: brows to nose, which keep their shape when the mouth moves
REACH = 8  # pixels that a face may move from one frame to the next
TEMPLATES = 5


@dataclass(frozen=True)
class Places:
    """Where a face is, frame by frame.

    Attributes:
        like: `(F,)` the true frame that looks most alike.
        shift: `(F, 2)` x, y in pixels from the face's place there.
        likeness: `(F,)` correlation of the two upper faces, −1…1.
    """

    like: NDArray[np.int64]
    shift: Floats
    likeness: Floats

    def carry(self, boxes: Floats) -> Floats:
        """Boxes `(F, 4)` x, y, w, h of what moves with the face, from those of the true frames `(n, 4)`."""
        return boxes[self.like] + np.pad(self.shift, ((0, 0), (0, 2)))


class FaceTracker:
    """Follows one person's face, from its place in the first true frame on.

    The upper faces of a few true frames, in several poses, are looked for around the last place (normalised
    cross-correlation). A meter that reads a mouth needs its place to a pixel; a face locator's boxes tremble more.
    """

    def __init__(self, frames: NDArray[np.uint8], boxes: Floats, templates: int = TEMPLATES):
        """Args: frames `(F, H, W, 3)` of the truth, boxes `(F, 4)` of the face in them; templates: how many to use."""
        self.chosen = np.unique(np.linspace(0, len(frames) - 1, templates).round().astype(np.int64))
        x, y, w, h = boxes[self.chosen].T
        self.corners = np.stack([x, y, x + w, y + UPPER_FACE * h], axis=1).round().astype(int)
        self.faces = [
            luminance(frames[index])[top:bottom, left:right]
            for index, (left, top, right, bottom) in zip(self.chosen, self.corners, strict=True)
        ]

    def __call__(self, frames: NDArray[np.uint8]) -> Places:
        """Follows the face through frames `(F, H, W, 3)`."""
        centre = (self.corners[0, :2] + self.corners[0, 2:]) / 2
        found = []
        for frame in frames:
            picture = luminance(frame)
            looks = (self._look(picture, number, centre) for number in range(len(self.faces)))
            best = max(looks, key=lambda one: one[0])
            _, number, corner = best
            centre = corner + (self.corners[number, 2:] - self.corners[number, :2]) / 2
            found.append(best)
        likeness, numbers, corners = zip(*found, strict=True)
        chosen = np.array(numbers)
        return Places(self.chosen[chosen], np.array(corners) - self.corners[chosen, :2], np.array(likeness))

    def _look(self, picture: Floats, number: int, centre: Floats) -> tuple[float, int, Floats]:
        """Likeness, the template's number, and its corner (x, y) where it fits best near `centre`."""
        from skimage.feature import match_template

        template = self.faces[number]
        size = np.array(template.shape)[::-1]
        low = np.clip((centre - size / 2).round().astype(int) - REACH, 0, np.array(picture.shape)[::-1] - size)
        high = low + size + 2 * REACH
        scores = match_template(picture[low[1] : high[1], low[0] : high[0]], template)
        row, column = np.unravel_index(int(scores.argmax()), scores.shape)
        finer = np.array([_vertex(scores[row], column), _vertex(scores[:, column], row)])
        return float(scores[row, column]), number, low + finer


def _vertex(values: Floats, peak: np.intp) -> float:
    """The top of the parabola through a peak and its neighbours; the peak itself at an end."""
    if not 0 < peak < len(values) - 1:
        return float(peak)
    before, here, after = values[peak - 1 : peak + 2]
    bend = before - 2 * here + after
    return float(peak + 0.5 * (before - after) / bend) if bend < 0 else float(peak)
