"""The page: what is where, and which question each part asks. Gradio draws it; `answers` answers."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import gradio as gr

from ..animation import EMBEDDED_NOTICE
from ..bundles.places import published_name
from ..consent import STATEMENT
from ..errors import UserError, in_one_line, show_bug
from ..sampling.shortcuts import QUALITIES
from ..serving.jobs import reason_of
from ..serving.store import Job
from ..settings import Settings
from . import shown
from .answers import Answers, Live, Upload
from .door import VISIT
from .samples import find_samples
from .visits import Visit

SECONDS_BETWEEN_LOOKS, SECONDS_BETWEEN_SIGNS = 1.0, 30.0  # while a video is made; else, so that the visit goes on
_FORM = (
    *("prompt", "quality", "seed", "steps", "speech_scale", "text_scale", "reference_scale"),
    *("framing", "crf", "face", "face_box", "no_face"),
)  # names of `Settings`, in the order in which the page sends them
_STATES = 8  # parts of the page that show how it stands
_NO_PORTRAIT = shown.note("What the model will see of the portrait is shown here.")
_NO_SPEECH = shown.note("What it will take is shown here when there is speech.")
_HEAD = """<header><h1>hallo3</h1>
<p>A portrait, a recording of speech and a line of text go in; a video comes out in which that person says it.</p>
</header>"""
_Sample = TypeVar("_Sample")
_log = logging.getLogger(__name__)

# Files come as the browser's word for them: Gradio would decode them before any limit of ours.
_RAW: dict[str, Any] = {"queue": False, "preprocess": False, "api_visibility": "private"}


class Page:
    """The page of one server.

    bundle: its model. alone: whether only people of this machine come, who may read where on it a bundle lies.
    """

    def __init__(self, answers: Answers, bundle: str, *, alone: bool) -> None:
        self._answers, self._bundle = answers, bundle
        self._told = bundle if alone else published_name(bundle)[0]
        self._samples = find_samples()

    def build(self) -> gr.Blocks:
        """The whole page; `theme` and `style` go to where it is mounted."""
        with gr.Blocks(title="hallo3", analytics_enabled=False) as blocks:
            gr.HTML(_HEAD)
            if self._bundle == "embedded":
                gr.HTML(shown.note(f"Note: {EMBEDDED_NOTICE}."))
            for left, right in (
                (self._portrait, self._preview),
                (self._speech, self._prompt),
                (self._start, self._outcome),
            ):
                with gr.Row():
                    for part in (left, right):
                        with gr.Column(min_width=320):
                            part()
            self._wire(blocks)
        return blocks

    # ---------------------------------------------------------------------------------------------------------- layout

    def _portrait(self) -> None:
        self.portrait = gr.Image(
            label="Portrait",
            sources=["upload", "webcam", "clipboard"],
            type="filepath",
            image_mode=None,
            height=300,
            buttons=[],
            webcam_options=gr.WebcamOptions(mirror=False),
            elem_id="portrait",
        )
        people = self._samples.people
        self.portraits = gr.Gallery(
            [(str(one.portrait), one.caption) for one in people],
            label="Sample portraits",
            show_label=False,
            columns=len(people),
            height="auto",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="portraits",
        )

    def _preview(self) -> None:
        self.preview = gr.HTML(_NO_PORTRAIT, elem_id="preview")

    def _speech(self) -> None:
        self.speech = gr.Audio(
            label="Speech", sources=["upload", "microphone"], type="filepath", buttons=[], elem_id="speech"
        )
        self.heard = gr.HTML(elem_id="heard")
        self.speeches = _choices("Sample speech", [one.words for one in self._samples.recordings], "speeches")

    def _prompt(self) -> None:
        self.prompt = gr.Textbox(
            label="Prompt", info="Who is seen, what they do, and where.", lines=3, max_length=4000, elem_id="prompt"
        )
        self.prompts = _choices("Sample prompts", self._samples.prompts, "prompts")

    def _start(self) -> None:
        self.quality = gr.Radio(
            list(QUALITIES), value=Settings().quality, label="Quality", info="--quality", elem_id="quality"
        )
        self.estimate = gr.HTML(_NO_SPEECH, elem_id="estimate")
        with gr.Accordion("More settings", open=False, elem_id="more"):
            self._more_settings()
        self.rights = gr.Checkbox(label=STATEMENT, value=False, elem_id="rights")
        with gr.Row():
            self.animate = gr.Button("Animate", variant="primary", elem_id="animate")
            self.cancel = gr.Button("Cancel", variant="stop", interactive=False, elem_id="cancel")

    def _more_settings(self) -> None:
        default, own = Settings(), self._answers.own
        with gr.Row():
            self.seed = _field("Seed", "--seed", str(default.seed), elem_id="seed")
            self.steps = _field("Steps", "--steps", usual=own["steps"], elem_id="steps")
            self.crf = _field("H.264 quality", "--crf, 1 to 51", str(default.crf))
        with gr.Row():
            self.speech_scale = _field("Guidance by speech", "--speech-scale", usual=own["speech_scale"])
            self.text_scale = _field("By the prompt", "--text-scale", usual=own["text_scale"])
            self.reference_scale = _field("By the portrait", "--reference-scale", usual=own["reference_scale"])
        self.framing = gr.Radio(
            ["auto", "pad", "crop"], value=default.framing, label="Framing", info="--framing", elem_id="framing"
        )
        with gr.Row():
            self.face = _field("Which face", "--face; the largest is 0")
            self.face_box = _field(
                "Where the face is", "--face-box X Y W H, in pixels of the portrait", elem_id="face-box"
            )
        self.no_face = gr.Checkbox(label="Animate without knowing who it is (--no-face)", elem_id="no-face")

    def _outcome(self) -> None:
        self.problem = gr.HTML(elem_id="problem")
        self.progress = gr.HTML(elem_id="progress")
        self.stage = gr.HTML(elem_id="stage")
        with gr.Accordion("Earlier in this visit", open=True, visible=False, elem_id="earlier") as self.earlier:
            self.history = gr.HTML(elem_id="history")
            self.clear = gr.Button("Delete all of this visit", size="sm", elem_id="clear")
        self.seconds = gr.State(0.0)
        self.seen = gr.State({})
        self.timer = gr.Timer(SECONDS_BETWEEN_SIGNS)

    # ---------------------------------------------------------------------------------------------------------- wiring

    def _wire(self, blocks: gr.Blocks) -> None:
        form: list[Any] = [getattr(self, name) for name in _FORM]
        state: list[Any] = [self.seen, self.progress, self.stage, self.earlier, self.history]
        state += [self.animate, self.cancel, self.timer]
        assert len(state) == _STATES
        quiet = {**_RAW, "show_progress": "hidden"}
        # One event for all that decides an answer, asked again only when it has answered: of two events under way the
        # older question's answer, a search for faces, could come last and stay.
        last = {"trigger_mode": "always_last", **_RAW}
        seen = [part.change for part in (self.portrait, self.framing, self.face, self.face_box, self.no_face)]
        gr.on(seen, self.on_look, [self.portrait, *form], self.preview, show_progress="minimal", **last)
        self.speech.change(self.on_hear, [self.speech], [self.heard, self.seconds], **quiet).then(
            self.on_foretell, [self.seconds, *form], self.estimate, **quiet
        )
        work = (self.quality, self.steps, self.speech_scale, self.text_scale, self.reference_scale)
        changed = [part.change for part in work]
        gr.on(changed, self.on_foretell, [self.seconds, *form], self.estimate, show_progress="hidden", **last)
        self.portraits.select(self.on_person, None, [self.portrait, self.prompt], **quiet)
        self.speeches.click(self.on_recording, self.speeches, self.speech, **quiet)
        self.prompts.click(self.on_prompt, self.prompts, self.prompt, **quiet)
        begin = [self.seen, self.rights, self.portrait, self.speech, *form]
        self.animate.click(self.on_animate, begin, [self.problem, *state], **quiet)
        self.cancel.click(self.on_cancel, self.seen, [self.problem, *state], **quiet)
        self.clear.click(self.on_clear, self.seen, [self.problem, *state], **quiet)
        self.timer.tick(self.on_tick, self.seen, state, **quiet)
        blocks.load(self.on_tick, self.seen, state, **quiet)
        blocks.load(self.on_load, None, self.rights, **quiet)

    # --------------------------------------------------------------------------------------------------------- answers

    def on_look(self, request: gr.Request, portrait: Upload | None, *form: Any) -> str:
        """Another portrait, framing or face."""
        if portrait is None:
            return _NO_PORTRAIT
        look = self._answers.look
        return _or_problem(lambda: shown.preview(look(_visit(request), portrait, _named(form))))

    def on_hear(self, request: gr.Request, speech: Upload | None) -> tuple[str, float]:
        """Another recording."""
        if speech is None:
            return "", 0.0
        try:
            return "", self._answers.hear(_visit(request), speech)
        except Exception as error:
            return shown.problem(_line(error)), 0.0

    def on_foretell(self, seconds: float, *form: Any) -> str:
        """What decides time and memory has changed."""
        if not seconds:
            return _NO_SPEECH
        answers = self._answers
        return _or_problem(
            lambda: shown.forecast(answers.foretell(seconds, _named(form)), seconds, answers.ahead()),
        )

    def on_person(self, chosen: gr.SelectData) -> Any:
        """A sample portrait was chosen; what it shows becomes the prompt."""
        one = _at(self._samples.people, chosen.index)
        return (gr.skip(), gr.skip()) if one is None else (str(one.portrait), one.caption)

    def on_recording(self, index: int) -> Any:
        """A sample recording was chosen."""
        one = _at(self._samples.recordings, index)
        return gr.skip() if one is None else str(one.speech)

    def on_prompt(self, index: int) -> Any:
        """A sample prompt was chosen."""
        one = _at(self._samples.prompts, index)
        return gr.skip() if one is None else one

    def on_animate(
        self,
        request: gr.Request,
        seen: dict[str, Any],
        rights: bool,
        portrait: Upload | None,
        speech: Upload | None,
        *form: Any,
    ) -> list[Any]:
        """Begin a video."""
        visit, named = _visit(request), _named(form)
        client = request.client.host if request.client else "unknown"
        begin = self._answers.begin
        line = _problem_of(lambda: begin(visit, portrait, speech, named, rights=bool(rights), client=client))
        return [line, *self._state(visit, seen)]

    def on_cancel(self, request: gr.Request, seen: dict[str, Any]) -> list[Any]:
        """Stop the video that is being made."""
        visit = _visit(request)
        return [_problem_of(lambda: self._answers.cancel(visit)), *self._state(visit, seen)]

    def on_clear(self, request: gr.Request, seen: dict[str, Any]) -> list[Any]:
        """Delete everything that the visit has made."""
        visit = _visit(request)
        return [_problem_of(lambda: self._answers.visits.clear(visit)), *self._state(visit, seen)]

    def on_load(self, request: gr.Request) -> Any:
        """The page is opened, perhaps again: the statement of rights is made once a visit."""
        return True if _visit(request).rights else gr.skip()

    def on_tick(self, request: gr.Request, seen: dict[str, Any]) -> list[Any]:
        """How it stands."""
        return self._state(_visit(request), seen)

    def _state(self, visit: Visit, seen: dict[str, Any]) -> list[Any]:
        """What has changed since the page last looked (`seen`), in the order of the outputs; the rest stays.

        All of it stays where that can't be told now, as of a job that another window deletes: it looks again soon.
        """
        try:
            return self._changes(visit, seen)
        except Exception as error:
            _line(error)
            return [gr.skip()] * _STATES

    def _changes(self, visit: Visit, seen: dict[str, Any]) -> list[Any]:
        jobs = self._answers.visits.jobs_of(visit)
        newest, earlier = (jobs[0], jobs[1:]) if jobs else (None, [])
        going = newest if newest and not newest.is_over else None
        ahead = self._answers.jobs.store.ahead(going) if going else 0
        live = self._answers.live(going) if going else None
        idle, any_over = going is None, any(job.is_over for job in jobs)
        pause = SECONDS_BETWEEN_SIGNS if idle else SECONDS_BETWEEN_LOOKS
        parts: list[tuple[Any, Callable[[], Any]]] = [
            (
                going and (going.state, going.progress, going.error, ahead),
                lambda: shown.progress(going, ahead) if going else "",
            ),
            (newest and (newest.id, newest.state, live), lambda: self._stage(visit, newest, live)),
            (any_over, lambda: gr.update(visible=any_over)),
            ([job.id for job in earlier], lambda: self._history(visit, earlier)),
            (idle, lambda: gr.update(interactive=idle)),
            (idle, lambda: gr.update(interactive=not idle)),
            (idle, lambda: gr.Timer(pause)),
        ]
        keys = {str(place): key for place, (key, _) in enumerate(parts)}
        changed = [
            gr.skip() if place in seen and seen[place] == key else make()
            for (place, key), (_, make) in zip(keys.items(), parts, strict=True)
        ]
        return [gr.skip() if keys == seen else keys, *changed]

    def _stage(self, visit: Visit, job: Job | None, live: Live | None) -> str:
        if job is None:
            return shown.note("The video is shown here, after every clip.")
        if not job.is_over:
            return shown.live(job, live) if live else ""
        return shown.result(job, self._record(visit, job), self._told) if job.state == "done" else shown.ended(job)

    def _history(self, visit: Visit, jobs: list[Job]) -> str:
        return shown.history([(job, self._record(visit, job)) for job in jobs], self._told)

    def _record(self, visit: Visit, job: Job) -> Mapping[str, Any]:
        return self._answers.record(visit, job) if job.state == "done" else {}


def theme() -> gr.Theme:
    """Gradio's own look, with the machine's fonts (none is fetched) and enough contrast, light and dark."""
    found = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return found.set(
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        checkbox_border_color="*neutral_500",
        checkbox_border_color_dark="*neutral_400",
    )


def _choices(label: str, words: list[str], name: str) -> gr.Dataset:
    """Buttons with these words on them; a click tells which."""
    part = gr.Textbox(render=False)
    return gr.Dataset(label=label, components=[part], samples=[[w] for w in words], type="index", elem_id=name)


def _field(label: str, info: str, value: str = "", *, usual: object = "", elem_id: str | None = None) -> gr.Textbox:
    """A setting, as text: a field for numbers turns what is left empty into 0. usual: what it then is."""
    hint = str(usual)
    return gr.Textbox(value, label=label, info=info, placeholder=hint, max_lines=1, min_width=120, elem_id=elem_id)


def _at(samples: Sequence[_Sample], index: int) -> _Sample | None:
    """The sample of this number; None where there is none, as whoever asks may say any."""
    return samples[index] if 0 <= index < len(samples) else None


def _visit(request: gr.Request) -> Visit:
    assert request.request is not None
    visit: Visit = request.request.scope[VISIT]
    return visit


def _named(form: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(_FORM, form, strict=True))


def _or_problem(make: Callable[[], str]) -> str:
    """What `make` gives; an error as the page shows it."""
    try:
        return make()
    except Exception as error:
        return shown.problem(_line(error))


def _problem_of(act: Callable[[], object]) -> str:
    """Nothing; an error as the page shows it."""

    def done() -> str:
        act()
        return ""

    return _or_problem(done)


def _line(error: Exception) -> str:
    if isinstance(error, UserError):
        return in_one_line(error)
    show_bug(error)
    reason = reason_of(error)
    line = in_one_line(error) if reason is None else f"server: can't do this now ({reason}); try again later"
    _log.error("%s", line)
    return line
