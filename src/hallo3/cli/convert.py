"""`hallo3 convert`: published files → a bundle."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

PARTS, FORM = "Parts, any choice of them", "What is written"


class Dtype(StrEnum):
    """Number formats of the weights; `keep` leaves each as it is stored."""

    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"
    keep = "keep"


def command(
    out: Annotated[Path, typer.Option(help="The bundle's folder; parts are added to a bundle.", show_default=False)],
    published: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Everything in a copy of the hub's repository.", rich_help_panel=PARTS),
    ] = None,
    denoiser: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Hallo3 (`latest`), or CogVideoX-5B-I2V in either layout.", rich_help_panel=PARTS
        ),
    ] = None,
    vae: Annotated[
        Path | None, typer.Option(metavar="FILE", help="3d-vae.pt, or diffusers' folder.", rich_help_panel=PARTS)
    ] = None,
    text_encoder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="T5 v1.1 XXL; only its encoder is kept.", rich_help_panel=PARTS)
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="T5's tokenizer.", rich_help_panel=PARTS)
    ] = None,
    speech_encoder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="wav2vec2-base-960h.", rich_help_panel=PARTS)
    ] = None,
    face_encoder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="face_analysis: .onnx and .task files.", rich_help_panel=PARTS)
    ] = None,
    vocal_separator: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Kim_Vocal_2.onnx.", rich_help_panel=PARTS)
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Number format of the weights.", rich_help_panel=FORM)] = Dtype.bf16,
    max_shard_size: Annotated[str, typer.Option(help="Most bytes of one file.", rich_help_panel=FORM)] = "5GB",
    height: Annotated[
        int | None, typer.Option(min=16, help="Pixels trained for.", rich_help_panel=FORM, show_default="480")
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=16, help="Pixels trained for.", rich_help_panel=FORM, show_default="720")
    ] = None,
    text_length: Annotated[
        int | None, typer.Option(min=1, help="Text tokens trained for.", rich_help_panel=FORM, show_default="226")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Convert published weights into a bundle.

    Any choice of parts makes a bundle; it lists what it lacks, and a later call with the same --out adds it. Tensors
    are checked before anything is written, and the bundle appears only when it is complete.
    """
    from dataclasses import replace

    from ..bundles.convert import DTYPES, ConversionError, Sources, convert, published_sources
    from ..errors import UserError
    from .transfers import transfers

    if published is not None and not published_sources(published).given():
        raise UserError(f"{published}: holds none of the published files; give a copy of the hub's repository")
    found = published_sources(published) if published else Sources()
    own = Sources(denoiser, vae, text_encoder, tokenizer, speech_encoder, face_encoder, vocal_separator)
    config = {"sample_height": height, "sample_width": width, "text_length": text_length}
    try:
        with transfers("writing", quiet=quiet) as (on_progress,):
            report = convert(
                replace(found, **own.given()),
                out,
                dtype=DTYPES[dtype.value],
                max_shard_size=max_shard_size,
                config={name: value for name, value in config.items() if value is not None},
                on_progress=on_progress,
            )
    except ConversionError as error:
        print("\n".join(error.problems), file=sys.stderr)
        raise
    if quiet:
        return
    for notice in report.notices:
        print(f"note: {notice}", file=sys.stderr)
    print(f"{out}: {', '.join(report.parts)} ({report.size / 1e9:.2f} GB)")
    if report.missing:
        print(f"still missing: {', '.join(report.missing)}")
