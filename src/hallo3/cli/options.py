"""Options that several commands share: the same name, words and default wherever they stand."""

from pathlib import Path
from typing import Annotated, Any

import typer

INPUT, LOOK, FACE, RUN, MARKS = "What to animate", "How it looks", "Which face", "How it runs", "Rights and marks"
WHERE, LIMITS = "Where it listens", "Limits"


def bundle_names() -> list[str]:
    """What a shell offers where a bundle is to be named."""
    from ..bundles.places import known_names

    return known_names()


Bundle = Annotated[
    str,
    typer.Option(
        help="Model: `embedded`, a folder, or a name that `hallo3 bundles` lists.",
        rich_help_panel=INPUT,
        autocompletion=bundle_names,
    ),
]
SeparateVocals = Annotated[
    bool, typer.Option("--separate-vocals", help="First take music and noise away.", rich_help_panel=INPUT)
]
VocalSeparator = Annotated[
    Path | None,
    typer.Option(
        metavar="KIM_VOCAL_2.onnx",
        help="The network for --separate-vocals.",
        rich_help_panel=INPUT,
        show_default="the bundle's",
    ),
]
Rights = Annotated[
    bool,
    typer.Option(
        "--i-have-the-rights",
        help="State that you have the right to the likenesses and the voices; asked once otherwise.",
        rich_help_panel=MARKS,
    ),
]
NoWatermark = Annotated[
    bool, typer.Option("--no-watermark", help="No invisible watermark; the tags record it.", rich_help_panel=MARKS)
]
NoCredentials = Annotated[
    bool, typer.Option("--no-credentials", help="No C2PA credentials; the tags record it.", rich_help_panel=MARKS)
]
Certificate = Annotated[
    Path | None,
    typer.Option(
        metavar="PEM",
        help="Certificates to sign the credentials with.",
        envvar="HALLO3_CERTIFICATE",
        rich_help_panel=MARKS,
        show_default="one made on this machine",
    ),
]
PrivateKey = Annotated[
    Path | None,
    typer.Option(
        metavar="PEM",
        help="The certificate's private key.",
        envvar="HALLO3_PRIVATE_KEY",
        rich_help_panel=MARKS,
        show_default=False,
    ),
]


def signing(
    context: typer.Context, without: bool, certificate: Path | None, private_key: Path | None
) -> dict[str, Any]:
    """Fields of `AnimationRequest` for the credentials. A certificate that the environment names, not the command line,
    gives way to --no-credentials.
    """
    sources = [context.get_parameter_source(name) for name in ("certificate", "private_key")]
    if without and not any(source is not None and source.name == "COMMANDLINE" for source in sources):
        certificate = private_key = None
    return {"credentials": not without, "certificate": certificate, "private_key": private_key}


Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=RUN)]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.", rich_help_panel=RUN)]
Strategy = Annotated[
    str,
    typer.Option(
        help="auto, resident, staged or streamed: what is in memory when; `hallo3 plan` shows.", rich_help_panel=RUN
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        help="auto, full, int8, fp8, fp8-compute (activations too; Ada and Hopper GPUs). 8 bits are approximate: "
        "auto takes them only where nothing exact fits.",
        rich_help_panel=RUN,
    ),
]
Decoding = Annotated[
    str, typer.Option(help="auto, whole or tiled: tiles take less memory and are approximate.", rich_help_panel=RUN)
]
Quality = Annotated[
    str,
    typer.Option(
        help="exact, high or draft: how much may be left out to be faster; docs/speed.md has what it costs.",
        rich_help_panel=LOOK,
    ),
]
SpeechScale = Annotated[
    float | None,
    typer.Option(
        help="Guidance by speech: higher follows the lips closer.",
        rich_help_panel=LOOK,
        show_default="the bundle's; published 3.5",
    ),
]
TextScale = Annotated[
    float | None,
    typer.Option(
        help="Guidance by the prompt: higher moves more.",
        rich_help_panel=LOOK,
        show_default="the bundle's; published 3.5",
    ),
]
ReferenceScale = Annotated[
    float | None,
    typer.Option(
        help="Guidance by the portrait: higher stays closer to it, and costs a branch.",
        rich_help_panel=LOOK,
        show_default="the bundle's; published 1",
    ),
]
Attention = Annotated[
    str,
    typer.Option(
        help="auto, native, cudnn, flash, flash3, flash3-hub, sage or sage-hub: hub ones are downloaded, sage is "
        "approximate. auto measures the exact ones that are here, once.",
        rich_help_panel=RUN,
    ),
]
Compiled = Annotated[
    bool,
    typer.Option(
        "--compile", help="Compile the layers: a minute at first, later starts are warm.", rich_help_panel=RUN
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.", rich_help_panel=RUN)]
Events = Annotated[bool, typer.Option("--json", help="One JSON event a line, for programs.", rich_help_panel=RUN)]
Host = Annotated[
    str, typer.Option(help="Address to listen at; beyond this machine it needs a token.", rich_help_panel=WHERE)
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one, and says which.", rich_help_panel=WHERE)]
Token = Annotated[
    str | None,
    typer.Option(
        help="What clients must know. Better by the variable: other users see the command line.",
        envvar="HALLO3_TOKEN",
        rich_help_panel=WHERE,
        show_default=False,
    ),
]
Queue = Annotated[int, typer.Option(min=1, help="Jobs that may wait.", rich_help_panel=LIMITS)]
MaxUpload = Annotated[float, typer.Option(min=0.001, help="MB of a portrait or a recording.", rich_help_panel=LIMITS)]
MaxSeconds = Annotated[float, typer.Option(min=0.2, max=7200, help="Seconds of speech.", rich_help_panel=LIMITS)]
MaxStored = Annotated[
    float, typer.Option(min=0.001, help="GB kept in all; above that no job is taken.", rich_help_panel=LIMITS)
]
Rate = Annotated[int, typer.Option(min=1, help="Jobs a minute of one client.", rich_help_panel=LIMITS)]
