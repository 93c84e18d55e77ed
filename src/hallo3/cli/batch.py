"""`hallo3 batch`: many videos from one file, with one model."""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..durations import clock
from ..errors import UserError
from .animate import require_rights
from .options import (
    FACE,
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
    Rights,
    SeparateVocals,
    Strategy,
    VocalSeparator,
    Weights,
    signing,
)

if TYPE_CHECKING:
    from ..batch import Outcome, Row

Event = dict[str, Any]


def command(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The rows: .csv, .jsonl or .txt.", show_default=False)],
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where the videos go; made if need be.", show_default=False)
    ],
    bundle: Bundle = "embedded",
    separate_vocals: SeparateVocals = False,
    vocal_separator: VocalSeparator = None,
    seed: Annotated[int, typer.Option(help="For rows that name none.", rich_help_panel=LOOK)] = 0,
    quality: Quality = "exact",
    steps: Annotated[
        int | None, typer.Option(help="For rows that name none.", rich_help_panel=LOOK, show_default="the bundle's")
    ] = None,
    crf: Annotated[int, typer.Option(help="For rows that name none: H.264 quality.", rich_help_panel=LOOK)] = 18,
    no_face: Annotated[
        bool,
        typer.Option("--no-face", help="For rows that say nothing of it: without identity.", rich_help_panel=FACE),
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
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make anew what is there already.", rich_help_panel=RUN)
    ] = False,
    quiet: Quiet = False,
    json_events: Events = False,
) -> None:
    """Make a video for every row of FILE, with one model.

    FILE is CSV with a heading, or JSONL: portrait, speech (paths from FILE's folder), perhaps name, prompt, seed,
    steps, …; or lines prompt@@portrait@@speech in a .txt. A row that can't be made is reported, and the rest goes on.
    Given again, finished videos stay and half ones go on. FOLDER/results.jsonl tells what became of each row.

    Exit code: 0 all rows are there, 1 some failed, 2 a mistake in the command or the file.
    """
    from ..animation import AnimationRequest, check_settings, load, missing_marks, signer_of
    from ..batch import read_rows, run_batch
    from .progress import listener

    if quiet and json_events:
        raise UserError("--quiet and --json: one of them, not both")
    common: dict[str, Any] = {
        "bundle": bundle,
        "separate_vocals": separate_vocals,
        "vocal_separator": vocal_separator,
        "watermark": not no_watermark,
        **signing(context, no_credentials, certificate, private_key),
    }
    defaults: dict[str, Any] = {"seed": seed, "quality": quality, "steps": steps, "crf": crf}
    defaults["no_face"] = no_face
    whole = AnimationRequest(Path(), Path(), Path(), **defaults, **common)
    check_settings(whole)
    signer_of(whole)
    rows, failed = read_rows(file, defaults)
    _require_rights(rows, rights)
    if quiet or json_events:  # otherwise they are among the notices
        for missing in missing_marks(whole):
            print(f"note: {missing}", file=sys.stderr, flush=True)
    how: dict[str, Any] = {"device": device, "dtype": dtype, "strategy": strategy, "weights": weights}
    how |= {"decoding": decoding, "attention": attention, "compiled": compiled}
    with listener(quiet=quiet, as_json=json_events) as listen:
        outcomes = run_batch(
            rows,
            out,
            load=lambda: load(bundle, **how),
            common=common,
            failed=failed,
            overwrite=overwrite,
            listen=_once(listen) if not json_events else listen,
        )
    some_failed = any(outcome.status == "failed" for outcome in outcomes)
    if quiet:
        for outcome in outcomes:
            if outcome.error:
                print(f"line {outcome.line}: {outcome.error}", file=sys.stderr)
    elif not json_events:
        _show(outcomes, out)
    raise typer.Exit(1 if some_failed else 0)


def _require_rights(rows: "list[Row]", given: bool) -> None:
    from .. import consent

    needing = next((row.portrait for row in rows if consent.needed(row.portrait)), None)
    if rows and (given or needing):
        require_rights(needing or rows[0].portrait, given)


def _once(listen: Callable[[Event], None]) -> Callable[[Event], None]:
    """Says each notice once, not with every video."""
    said: set[str] = set()

    def hear(event: Event) -> None:
        if event["event"] == "notice":
            if event["message"] in said:
                return
            said.add(event["message"])
        listen(event)

    return hear


def _show(outcomes: "list[Outcome]", folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..batch import RESULTS

    console = Console(width=None if Console().is_terminal else 1000, highlight=False, markup=False)
    table = Table("line", "state", "video", "length", "made in", "")
    for one in outcomes:
        made = one.status == "done"
        length, took = (f"{one.seconds:.1f} s", clock(one.took)) if made else ("", "")
        table.add_row(str(one.line), one.status, one.output or "", length, took, one.error or "")
    console.print(table)
    counts = Counter(one.status for one in outcomes)
    told = ", ".join(f"{counts[status]} {status}" for status in ("done", "kept", "failed") if counts[status])
    console.print(f"{told}; {folder / RESULTS}")
