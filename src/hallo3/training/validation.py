"""Videos made on the way through a training, always of the same clips with the same seeds."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from hallo3.media.files import writing
from hallo3.media.provenance import provenance_tags
from hallo3.media.sound import SAMPLE_RATE, Speech
from hallo3.media.video import VideoWriter
from hallo3.pipeline import Hallo3Pipeline
from hallo3.studio.speech_clips import SAMPLES_PER_FRAME
from hallo3.training.config import Validation
from hallo3.training.data import Sample
from hallo3.training.journal import KEPT
from hallo3.training.loop import Loop
from hallo3.training.parallel import is_spread, rank

COLUMNS = 8  # frames of a clip on the sheet


class Validator:
    """Speaks the first clips of a dataset again with the averaged weights, every so many steps.

    Writes `FOLDER/step-0000100/CLIP.mp4` and `sheet.jpg`, in which each clip's own frames stand above those made.

    Args:
        components: Parts of a pipeline; the networks are those that are trained.
        config: Settings of the pipeline, with the training's frames a clip.
        folder: For the videos. precision: of the computation, as in the training.
    """

    def __init__(
        self,
        settings: Validation,
        components: Mapping[str, Any],
        config: Mapping[str, Any],
        samples: list[Sample],
        folder: Path,
        precision: torch.dtype = torch.float32,
    ):
        self.settings, self.folder, self.samples = settings, folder, samples[: settings.count]
        self.pipeline, self.precision = Hallo3Pipeline(**components, **config), precision

    def __call__(self, loop: Loop) -> None:
        """Makes the videos if it is time to; random numbers of the training are not touched."""
        if loop.step % self.settings.every:
            return
        networks = [network for network in (self.pipeline.transformer, self.pipeline.reference_network) if network]
        loop.average.swap(loop.parameters)
        try:
            for network in networks:
                network.eval()
            kind = next(networks[0].parameters()).device.type
            with torch.autocast(kind, self.precision, enabled=self.precision != torch.float32):
                videos = [(sample, self._video(sample)) for sample in self.samples]
        finally:
            loop.average.swap(loop.parameters)
            for network in networks:
                network.train()
        if rank() == 0:
            with writing(self.folder, KEPT):
                self._write(videos, loop)

    def _video(self, sample: Sample) -> NDArray[np.uint8]:
        speech = np.load(sample.folder / "speech.npy")[: round(self.settings.seconds * SAMPLE_RATE)]
        caption = json.loads((sample.folder / "meta.json").read_text())["caption"]
        x, y, width, height = map(float, sample.face_box[0])
        portrait = Image.fromarray(np.array(sample.frames[0]))
        performance = self.pipeline.prepare(portrait, speech, caption, face_box=(x, y, width, height))
        # What is computed ahead goes around the layers' own calls, which bring spread weights together.
        clips = self.pipeline.render(
            performance, num_inference_steps=self.settings.steps, cached=not _spread(self.pipeline.transformer)
        )
        return np.concatenate([clip.frames for clip in clips])

    def _write(self, videos: list[tuple[Sample, NDArray[np.uint8]]], loop: Loop) -> None:
        folder = self.folder / f"step-{loop.step:07d}"
        folder.mkdir(parents=True, exist_ok=True)
        for sample, frames in videos:
            speech = np.load(sample.folder / "speech.npy")[: len(frames) * SAMPLES_PER_FRAME]
            writer = VideoWriter(
                folder / f"{sample.folder.name}.mp4",
                frames.shape[2],
                frames.shape[1],
                speech=Speech(speech, sample.folder.name, SAMPLE_RATE, 1, original=speech[None]),  # silent, if it is
                metadata=provenance_tags(bundle="in training", seed=0, settings={"step": loop.step}),
                overwrite=True,
            )
            with writer:
                writer.write_clip(frames)
                writer.finish()
        sheet = _sheet(videos)
        Image.fromarray(sheet).save(folder / "sheet.jpg", quality=90)
        loop.journal.picture("validation", sheet, loop.step)


def _spread(network: nn.Module) -> bool:
    return any(is_spread(parameter) for parameter in network.parameters())


def _sheet(videos: list[tuple[Sample, NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    """Two rows a clip, true above made, `COLUMNS` frames spread over it; `(H, W, 3)`."""
    rows = []
    for sample, frames in videos:
        count = min(len(frames), len(sample.frames))
        chosen = np.linspace(0, count - 1, COLUMNS).round().astype(int)
        rows += [np.concatenate(list(movie[chosen]), axis=1) for movie in (sample.frames, frames)]
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows])
