"""`hallo3 download`: the published files from the hub, as a bundle."""

from pathlib import Path
from typing import Annotated

import typer

from .convert import Dtype


def command(
    name: Annotated[
        str, typer.Argument(help="hallo3, cogvideox-5b-i2v, or OWNER/REPOSITORY on the hub.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The bundle's folder.", show_default="known by its name to all commands"),
    ] = None,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit of the repository.")] = "main",
    dtype: Annotated[Dtype, typer.Option(help="Number format of the weights.")] = Dtype.bf16,
    max_shard_size: Annotated[str, typer.Option(help="Most bytes of one file.")] = "5GB",
    keep_files: Annotated[
        bool, typer.Option("--keep-files", help="Keep the downloaded files beside the bundle made of them.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Download published weights and convert them into a bundle.

    An interrupted download goes on where it was when the same command is given again. Every file's hash is compared
    with the hub's before it is used.
    """
    from ..bundles.convert import DTYPES
    from ..bundles.download import download
    from .transfers import transfers

    with transfers("downloading", "writing", quiet=quiet) as (fetching, writing):
        folder, report = download(
            name,
            out,
            revision=revision,
            dtype=DTYPES[dtype.value],
            max_shard_size=max_shard_size,
            keep_files=keep_files,
            on_download=fetching,
            on_convert=writing,
        )
    if quiet:
        return
    print(f"{folder}: complete" if not report.missing else f"{folder}: lacks {', '.join(report.missing)}")
    if out is None:
        print(f"use it with --bundle {folder.name}")
