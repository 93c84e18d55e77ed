"""What the page asks: what the model will see, how long it will take, to make a video, to stop, how it stands."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..animation import SCALES
from ..errors import UserError
from ..media.images import read_image
from ..media.provenance import read_provenance
from ..media.sound import MIN_SECONDS, read_speech
from ..runtime.forecast import Forecast, Forecaster, Work
from ..sampling.guidance import GuidanceScales
from ..serving.jobs import shown_name
from ..serving.store import Job
from ..settings import Settings, read_settings
from .visits import Visit, Visits

if TYPE_CHECKING:
    from ..pipeline import Hallo3Pipeline, Look

Upload = Mapping[str, Any]
"""A file as the page names it: `path` among the uploads, `orig_name` as its owner calls it."""

_ONE_ALREADY = "video: one of yours is being made; wait for it, or cancel it"
_LOOKED_AT_ONCE = 2  # pictures and recordings: a picture may take 150 MB meanwhile


def settings_of(form: Mapping[str, Any]) -> Settings:
    """The settings that a form says; what is left empty is left out. Raises UserError."""
    return read_settings({name: value for name, value in form.items() if value is not None and value != ""})


@dataclass(frozen=True)
class Live:
    """A video as far as it is made. size: bytes to a clip's end. newest: second at which that clip begins."""

    size: int
    newest: float


class Answers:
    """Everything that the page asks for, without a page.

    pipeline: the one that the queue's worker uses too; here it only looks at portraits. forecaster: of that pipeline.
    Every method may be called by any number of threads, and raises UserError for what the visitor can mend.
    """

    def __init__(self, visits: Visits, pipeline: "Hallo3Pipeline", forecaster: Forecaster) -> None:
        self.visits, self.jobs = visits, visits.jobs
        self._pipeline, self._forecaster = pipeline, forecaster
        self._looking = threading.Semaphore(_LOOKED_AT_ONCE)

    @property
    def own(self) -> dict[str, Any]:
        """What the bundle takes where the settings say nothing: steps and scales of guidance."""
        config = self._pipeline.config
        return {"steps": config.num_inference_steps} | {name: config[name] for name in SCALES}

    # ------------------------------------------------------------------------------------------------- before the start

    def look(self, visit: Visit, portrait: Upload, form: Mapping[str, Any]) -> "Look":
        """What the model will see of a portrait, and which face it finds there."""
        settings = settings_of(form)
        with self._reading(visit, portrait, "portrait") as path, self._looking:
            image = read_image(path, max_pixels=self.jobs.limits.pixels)
            return self._pipeline.look(
                image,
                framing=settings.framing,
                face_box=settings.face_box,
                no_face=settings.no_face,
                face_index=settings.face,
            )

    def hear(self, visit: Visit, speech: Upload) -> float:
        """Seconds of a recording."""
        with self._reading(visit, speech, "speech") as path, self._looking:
            return read_speech(path, max_seconds=self.jobs.limits.seconds).seconds

    def foretell(self, seconds: float, form: Mapping[str, Any]) -> Forecast:
        """Time and memory of a video of so many seconds."""
        return self._forecaster(self._work(max(seconds, MIN_SECONDS), settings_of(form)))

    def learn(self, job: Job, took: float) -> None:
        """A job has ended after so many seconds; what `Worker.on_end` takes."""
        made = self.jobs.store.get(job.id)
        if job.state == "done" and made is not None:
            self._forecaster.learn(self._work(made.seconds, Settings.model_validate(made.settings)), took)

    def _work(self, seconds: float, settings: Settings) -> Work:
        scales = {name: getattr(settings, name) for name in SCALES}
        given = (float(self.own[name] if scale is None else scale) for name, scale in scales.items())
        return Work(seconds, settings.quality, settings.steps, GuidanceScales(*given))

    def ahead(self) -> int:
        """Videos that come before one that is begun now."""
        counts = self.jobs.store.counts()
        return counts["queued"] + counts["running"]

    # --------------------------------------------------------------------------------------------------------- a video

    def begin(
        self,
        visit: Visit,
        portrait: Upload | None,
        speech: Upload | None,
        form: Mapping[str, Any],
        *,
        rights: bool,
        client: str,
    ) -> Job:
        """Puts a video into the queue. rights: whether the visitor has ticked the statement."""
        if portrait is None or speech is None:
            lacking, how = ("portrait", "a picture") if portrait is None else ("speech", "a recording")
            raise UserError(f"{lacking}: there is none; choose {how}, or take a sample")
        if not rights:
            raise UserError("rights: nothing is made before you state that you have them; tick the box")
        settings = settings_of(form)
        with _alone(visit):
            if any(not job.is_over for job in self.visits.jobs_of(visit)):
                raise UserError(_ONE_ALREADY)
            self.jobs.admit(client)
            return self._submit(visit, portrait, speech, settings)

    def _submit(self, visit: Visit, portrait: Upload, speech: Upload, settings: Settings) -> Job:
        with (
            self._reading(visit, portrait, "portrait") as picture,
            self._reading(visit, speech, "speech") as recording,
            open(picture, "rb") as seen,
            open(recording, "rb") as heard,
        ):
            names = (_name_of(portrait, picture), _name_of(speech, recording))
            job = self.jobs.submit(seen, heard, settings, rights=True, names=names)
        self.visits.keep(visit, job.id)
        visit.rights = True
        return job

    def cancel(self, visit: Visit) -> None:
        """Stops a visit's video: at once while it waits, within a step while it is made."""
        for job in self.visits.jobs_of(visit):
            if not job.is_over:
                self.jobs.cancel(job.id)

    # --------------------------------------------------------------------------------------------------- how it stands

    def live(self, job: Job) -> Live | None:
        """What there is to see of a video that is being made; None before its first clip is done."""
        written, config = self.jobs.written(job.id), self._pipeline.config
        if written is None or not written.clips:
            return None
        return Live(written.bytes, (written.clips - 1) * (config.num_frames - config.motion_frames) / config.fps)

    def record(self, visit: Visit, job: Job) -> Mapping[str, Any]:
        """What a finished video says of itself: bundle, seed, settings, hashes of the inputs, marks."""
        if job.id not in visit.records:
            visit.records[job.id] = read_provenance(self.jobs.result(job.id)) or {}
        return visit.records[job.id]

    # ---------------------------------------------------------------------------------------------------------- inside

    @contextmanager
    def _reading(self, visit: Visit, upload: Upload, what: str) -> Iterator[Path]:
        """The file of an upload; errors name it as its owner does."""
        path = Path(str(upload.get("path", ""))).resolve()
        if not path.is_relative_to(self.visits.uploads.resolve()):
            raise UserError(f"{what}: is no file that was sent to this page; choose it again")
        if not path.is_file():
            raise UserError(f"{what}: the file that was sent is no longer kept; choose it again")
        name, limit = _name_of(upload, path), self.jobs.limits.upload_bytes
        if path.stat().st_size > limit:
            raise UserError(f"{name}: is larger than {limit / 1e6:g} MB, the limit; make it smaller")
        self.visits.use(visit, path)
        try:
            yield path
        except UserError as error:
            raise UserError(str(error).replace(str(path), name)) from None


@contextmanager
def _alone(visit: Visit) -> Iterator[None]:
    """Two buttons may be pressed in two windows of one visit: the second is refused, whichever has come that far."""
    if not visit.beginning.acquire(blocking=False):
        raise UserError(_ONE_ALREADY)
    try:
        yield
    finally:
        visit.beginning.release()


def _name_of(upload: Upload, path: Path) -> str:
    return shown_name(str(upload.get("orig_name") or "")) or path.name
