"""Options that several commands share: the same name, words and default wherever they stand."""

from pathlib import Path
from typing import Annotated

import typer

INPUT, LOOK, FACE, RUN, MARKS = "What to animate", "How it looks", "Which face", "How it runs", "Rights and marks"

Bundle = Annotated[
    str,
    typer.Option(help="Model: `embedded`, a folder, or a name that `hallo3 bundles` lists.", rich_help_panel=INPUT),
]
SeparateVocals = Annotated[
    bool, typer.Option("--separate-vocals", help="First take music and noise away.", rich_help_panel=INPUT)
]
VocalSeparator = Annotated[
    Path | None,
    typer.Option(
        metavar="KIM_VOCAL_2.onnx",
        help="The network for --separate-vocals. [default: the bundle's]",
        rich_help_panel=INPUT,
        show_default=False,
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
        help="Certificates to sign the credentials with. [default: one made on this machine]",
        envvar="HALLO3_CERTIFICATE",
        rich_help_panel=MARKS,
        show_default=False,
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
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.", rich_help_panel=RUN)]
Events = Annotated[bool, typer.Option("--json", help="One JSON event a line, for programs.", rich_help_panel=RUN)]
