"""What the page shows of a job, as HTML; everything that people have sent is escaped."""

import base64
import html
import io
import json
import math
import re
import shlex
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from ..durations import clock
from ..media.credentials import available as signs
from ..runtime.forecast import Forecast
from ..serving.store import Job
from ..settings import Settings
from .answers import Live

if TYPE_CHECKING:
    from ..conditions.face import Box
    from ..pipeline import Look

_FACE, _OTHER, _DIMMED = (255, 176, 0), (190, 190, 190), 0.45
_CODE = re.compile("`(.*?)`")
_MIN_SHOWN = 480  # pixels of the preview's width: less is enlarged, so that lines are thin


def problem(message: str) -> str:
    """An error: the same line as on the command line."""
    return f'<p class="problem" role="alert">{html.escape(message)}</p>' if message else ""


def note(message: str) -> str:
    """What is good to know. What stands between backticks is shown as code."""
    words = _CODE.sub(r"<code>\1</code>", html.escape(message))
    return f'<p class="note">{words}</p>' if message else ""


# ------------------------------------------------------------------------------------------------------- before a start


def preview(look: "Look") -> str:
    """What the model sees: the canvas, dark where the reference network is shown nothing, and the face in a frame."""
    picture = _drawn(look)
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=90)
    data = base64.b64encode(file.getvalue()).decode()
    words = [f"{look.framing.report}.", *_about_face(look), *(f"Note: {notice}." for notice in look.face.notices)]
    text = " ".join(words)
    shown = f'<img src="data:image/webp;base64,{data}" alt="{html.escape(text)}" width="{picture.width}">'
    return f'<figure class="preview">{shown}<figcaption>{html.escape(text)}</figcaption></figure>'


def _about_face(look: "Look") -> list[str]:
    found = look.face
    if found.face is None:
        return ["No face is used."]
    x, y, w, h = (round(value) for value in found.face.box)
    which = f"face {_index(look)} of {len(found.candidates)} " if len(found.candidates) > 1 else "the face "
    return [f"In the frame: {which}({w}×{h} pixels at {x}, {y}); what is dark is not used to know the person."]


def _index(look: "Look") -> int:
    return next(i for i, face in enumerate(look.face.candidates) if face is look.face.face)


def _drawn(look: "Look") -> Image.Image:
    image = Image.fromarray(look.canvas)
    scale = math.ceil(_MIN_SHOWN / image.width)
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    if look.face.face is None:
        return image
    inside = _corners(look.face.box, scale)
    dimmed = image.point(lambda value: round(value * _DIMMED))
    dimmed.paste(image.crop(inside), inside[:2])
    draw = ImageDraw.Draw(dimmed)
    for index, face in enumerate(look.face.candidates):
        chosen = face is look.face.face
        corners = _corners(face.box, scale)
        draw.rectangle(corners, outline=_FACE if chosen else _OTHER, width=3 if chosen else 2)
        if len(look.face.candidates) > 1:
            draw.text((corners[0] + 6, corners[1] + 4), str(index), fill=_FACE if chosen else _OTHER, font_size=18)
    return dimmed


def _corners(box: "Box", scale: int) -> tuple[int, int, int, int]:
    x, y, w, h = (value * scale for value in box)
    return round(x), round(y), round(x + w), round(y + h)


def forecast(found: Forecast, seconds: float, ahead: int) -> str:
    """Time and memory before a start."""
    memory = f"{found.device / 1e9:.1f} GB of memory"
    clips = "1 clip" if found.clips == 1 else f"{found.clips} clips"
    steps = "1 step" if found.steps == 1 else f"{found.steps} steps"
    words = f"About {clock(found.seconds)} for {seconds:.1f} s of speech ({clips} of {steps}), in {memory}."
    if ahead:
        words += f" {'One video is' if ahead == 1 else f'{ahead} videos are'} before it."
    return note(words) + note(found.notice and f"Note: {found.notice}.")


# ----------------------------------------------------------------------------------------------------------- on the way


def progress(job: Job, ahead: int) -> str:
    """How far a job is that is not over."""
    event = job.progress or {}
    if job.state == "queued":
        if job.error:  # why it was given back
            return _bar(None, job.error)
        before = "one video comes" if ahead == 1 else f"{ahead} videos come"
        return _bar(None, f"Waiting: {before} before yours." if ahead else "Waiting for its turn.")
    if event.get("event") not in ("step", "clip"):
        return _bar(None, "Reading and encoding.")
    clips, left = event["clips"], event.get("seconds_left") or 0.0
    if event["event"] == "clip":
        return _bar((event["clip"] + 1) / clips, f"Clip {event['clip'] + 1} of {clips} is done; {clock(left)} left.")
    share = (event["clip"] * event["steps"] + event["step"] + 1) / (clips * event["steps"])
    where = f"Clip {event['clip'] + 1} of {clips}, step {event['step'] + 1} of {event['steps']}"
    return _bar(share, f"{where}; {clock(left)} left.")


def _bar(share: float | None, words: str) -> str:
    value = "" if share is None else f' value="{share:.4f}"'
    said = html.escape(words)
    return f'<div class="going" role="status"><progress aria-label="progress"{value}></progress><p>{said}</p></div>'


def live(job: Job, found: Live) -> str:
    """The video as far as it is made; starts at its newest clip. No `div`: the page would then reuse it, muted."""
    source = f"videos/{job.id}?until={found.size}#t={found.newest:.2f}"
    return f'<figure class="live">{_video(source, "the video so far", "autoplay muted")}</figure>'


# ------------------------------------------------------------------------------------------------------------ when done


def result(job: Job, record: Mapping[str, Any], bundle: str) -> str:
    """A finished video, to be seen, kept and made again. bundle: what whoever makes it again has to name."""
    source = f"videos/{job.id}"
    shown = _video(source, f"{job.portrait} says {job.speech}")
    seed = record.get("seed", job.settings["seed"])
    words = f"{job.seconds:.1f} s of video, made in {clock(job.took or 0.0)}; seed {seed}."
    button = f'<a class="download" href="{source}?download=1" download>Download</a>'
    made = f'<p class="made"><span>{words}</span>{button}</p>{note(_marks(record))}'
    return f'<div class="result">{shown}{made}{_again(job, record, bundle)}</div>'


def _marks(record: Mapping[str, Any]) -> str:
    marks = ["tags"] + ["content credentials"] * signs() + ["an invisible watermark"] * bool(record.get("watermark"))
    return f"Marked as AI-generated by {', '.join(marks[:-1])} and {marks[-1]}; `hallo3 inspect` reads them."


def _again(job: Job, record: Mapping[str, Any], bundle: str) -> str:
    command = html.escape(command_for(job, bundle))
    facts = html.escape(json.dumps(record, indent=1, ensure_ascii=False))
    return (
        f"<details><summary>Make it again</summary><p>The same video on the command line, with the same files:</p>"
        f"<pre tabindex=0>{command}</pre><p>What the file says of itself:</p><pre tabindex=0>{facts}</pre></details>"
    )


def command_for(job: Job, bundle: str) -> str:
    """The command that makes a job's video again, where its files are."""
    files = (f"./{name}" if name.startswith("-") else name for name in (job.portrait, job.speech))
    words = ["hallo3", "animate", *files]
    words += [] if bundle == "embedded" else ["--bundle", bundle]
    for name, value in job.settings.items():
        option = "--" + name.replace("_", "-")
        if value == Settings.model_fields[name].default and name != "seed":
            continue
        if isinstance(value, list):
            words += [option, *(f"{number:.15g}" for number in value)]
        else:
            words += [option] if value is True else [option, str(value)]
    return shlex.join(words)


def history(jobs: list[tuple[Job, Mapping[str, Any]]], bundle: str) -> str:
    """The visit's earlier jobs, the newest first. bundle: as for `result`."""
    return "".join(
        f'<details class="earlier"><summary>{_title(job)}</summary>'
        f"{result(job, record, bundle) if job.state == 'done' else ended(job)}</details>"
        for job, record in jobs
    )


def _title(job: Job) -> str:
    at = time.strftime("%H:%M", time.localtime(job.ended or job.created))
    return f"{at} · {html.escape(job.portrait)} · {html.escape(job.speech)} · {job.state}"


def ended(job: Job) -> str:
    """What became of a job that has no result."""
    return problem(job.error) if job.error else note("Cancelled; nothing is kept of it.")


def _video(source: str, label: str, more: str = "preload=metadata") -> str:
    name = html.escape(label)
    return f'<video controls playsinline {more} src="{html.escape(source)}" aria-label="{name}"></video>'
