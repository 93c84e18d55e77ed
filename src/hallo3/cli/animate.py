"""`hallo3 animate`: a portrait speaks."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import FileIO
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError
from .options import (
    FACE,
    INPUT,
    LOOK,
    RUN,
    Attention,
    Bundle,
    Certificate,
    Compiled,
    Decoding,
    Device,
    Dtype,
    Events,
    NoCredentials,
    NoWatermark,
    PrivateKey,
    Quality,
    Quiet,
    ReferenceScale,
    Rights,
    SeparateVocals,
    SpeechScale,
    Strategy,
    TextScale,
    VocalSeparator,
    Weights,
    signing,
)


def command(
    context: typer.Context,
    portrait: Annotated[
        Path, typer.Argument(metavar="PORTRAIT", help="Image of the person: PNG, JPEG, WebP, …", show_default=False)
    ],
    speech: Annotated[
        Path, typer.Argument(metavar="SPEECH", help="Recording: WAV, MP3, M4A, FLAC, OGG, or a video's sound.")
    ],
    prompt: Annotated[str, typer.Option(help="Who is seen, what they do, and where.", rich_help_panel=INPUT)] = "",
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="The video, .mp4; - for standard output.", show_default="PORTRAIT_SPEECH.mp4 here"
        ),
    ] = None,
    bundle: Bundle = "embedded",
    separate_vocals: SeparateVocals = False,
    vocal_separator: VocalSeparator = None,
    seed: Annotated[int, typer.Option(help="Same seed, same machine: same frames.", rich_help_panel=LOOK)] = 0,
    quality: Quality = "exact",
    steps: Annotated[
        int | None,
        typer.Option(
            help="Sampling steps; more is finer and slower.",
            rich_help_panel=LOOK,
            show_default="the bundle's, as the quality says",
        ),
    ] = None,
    speech_scale: SpeechScale = None,
    text_scale: TextScale = None,
    reference_scale: ReferenceScale = None,
    framing: Annotated[
        str, typer.Option(help="auto, pad or crop: how the picture meets the model's format.", rich_help_panel=LOOK)
    ] = "auto",
    crf: Annotated[int, typer.Option(help="H.264 quality, 1 (nearly lossless) to 51.", rich_help_panel=LOOK)] = 18,
    face_box: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(metavar="X Y W H", help="Where the face is, in pixels.", rich_help_panel=FACE, show_default=False),
    ] = None,
    face: Annotated[
        int | None, typer.Option(help="Which of several faces, largest first, from 0.", rich_help_panel=FACE)
    ] = None,
    no_face: Annotated[
        bool,
        typer.Option("--no-face", help="Animate without knowing who it is: a zero identity.", rich_help_panel=FACE),
    ] = False,
    rights: Rights = False,
    no_watermark: NoWatermark = False,
    no_credentials: NoCredentials = False,
    certificate: Certificate = None,
    private_key: PrivateKey = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    strategy: Strategy = "auto",
    weights: Weights = "auto",
    decoding: Decoding = "auto",
    attention: Attention = "auto",
    compiled: Compiled = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.", rich_help_panel=RUN)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUTPUT, and forget an interrupted run.", rich_help_panel=RUN)
    ] = False,
    quiet: Quiet = False,
    json_events: Events = False,
) -> None:
    """Make PORTRAIT say SPEECH.

    The result is an MP4 (H.264, AAC, 25 frames a second) as long as the speech. While it is made, OUTPUT.part can be
    played already; when the run is stopped, the same command with --resume goes on where it was. With -o - it goes to
    standard output clip by clip, and all text to standard error.
    """
    from ..animation import AnimationRequest, animate, missing_marks
    from .progress import listener

    request = AnimationRequest(
        portrait=portrait,
        speech=speech,
        output=output or Path(f"{portrait.stem}_{speech.stem}.mp4"),
        prompt=prompt,
        bundle=bundle,
        seed=seed,
        quality=quality,
        steps=steps,
        speech_scale=speech_scale,
        text_scale=text_scale,
        reference_scale=reference_scale,
        framing=framing,
        face_box=face_box,
        no_face=no_face,
        face_index=face,
        separate_vocals=separate_vocals,
        vocal_separator=vocal_separator,
        crf=crf,
        watermark=not no_watermark,
        **signing(context, no_credentials, certificate, private_key),
        resume=resume,
        overwrite=overwrite,
    )
    if quiet and json_events:
        raise UserError("--quiet and --json: one of them, not both")
    streamed = request.output == Path("-")
    if streamed and resume:
        raise UserError("-o - and --resume: a stream cannot be resumed; start it again, or write to a file")
    require_rights(portrait, rights)
    if quiet or json_events:  # otherwise they are among the notices
        for missing in missing_marks(request, streamed=streamed):
            print(f"note: {missing}", file=sys.stderr, flush=True)
    how: dict[str, Any] = {"device": device, "dtype": dtype, "strategy": strategy, "weights": weights}
    how |= {"decoding": decoding, "attention": attention, "compiled": compiled}
    with (
        _standard_output() if streamed else nullcontext() as stream,
        listener(quiet=quiet, as_json=json_events) as listen,
    ):
        animate(request, listen=listen, stream=stream, **how)


@contextmanager
def _standard_output() -> Iterator[FileIO]:
    """Gives standard output to the video alone: what anything prints there meanwhile goes to standard error."""
    if sys.stdout.isatty():
        raise UserError("-o -: standard output is a terminal; pipe it to a player, or into a file")
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with FileIO(os.dup(kept), "wb") as stream:
            yield stream
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def require_rights(portrait: Path, given: bool) -> None:
    """Goes on if the user has the right to this portrait and a voice: says so now, or has once; asks on a terminal.

    Raises UserError where nobody can be asked, or the answer is no.
    """
    from .. import consent

    if not given and (not consent.needed(portrait) or consent.stated()):
        return
    if not given:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise consent.refused()
        print(f"Before the first video, please state:\n  {consent.STATEMENT}", file=sys.stderr)
        if not typer.confirm("Is that so?", default=False, err=True):
            raise consent.refused()
    notice = consent.remember()
    if notice:
        print(f"note: {notice}", file=sys.stderr)
