"""Many jobs from one file: its rows read and checked, one model for all, and a record of what became of each."""

import csv
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from .animation import AnimationRequest, Event, Listener, animate, begun, check_request, is_result_of
from .errors import UserError, in_one_line, show_bug
from .media.files import replace_file, require_file, safe_name, writing
from .settings import Settings, read_settings

if TYPE_CHECKING:
    from .pipeline import Hallo3Pipeline

RESULTS = "results.jsonl"
FORMATS = (".csv", ".jsonl", ".txt")
INPUTS = ("portrait", "speech", "name")


@dataclass(frozen=True)
class Row:
    """One video to make: the line of the file that asks for it, from 1, the inputs, and the result's name."""

    line: int
    portrait: Path
    speech: Path
    name: str
    settings: Settings


@dataclass(frozen=True)
class Outcome:
    """What became of a row.

    status: `done`, `kept` (made by an earlier run) or `failed`. output: the result's name in the folder. error: one
    line, for a failed row. frames, seconds: of the video; took: seconds that it took; 0 for a row that was not made.
    """

    line: int
    status: str
    output: str | None = None
    error: str | None = None
    frames: int = 0
    seconds: float = 0.0
    took: float = 0.0


# ------------------------------------------------------------------------------------------------------------ the file


def read_rows(file: Path, defaults: Mapping[str, Any] | None = None) -> tuple[list[Row], list[Outcome]]:
    """The rows of a batch and the failures of those that can't be read.

    file: CSV with a heading, JSONL (one object a line), or the published lines `prompt@@portrait@@speech` in a .txt.
    Rows have `portrait` and `speech`, paths relative to the file's folder, perhaps a `name` for the result, and any of
    `Settings`. defaults: settings for rows that don't name them.

    Raises UserError for a file that can't be read as a whole, and one without rows.
    """
    kind = file.suffix.lower()
    if kind not in FORMATS:
        raise UserError(
            f"{file}: the batch must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}; name it by its kind"
        )
    try:
        text = require_file(file, "batch").read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    entries = {".csv": _from_csv, ".jsonl": _from_jsonl, ".txt": _from_lines}[kind](file, text)
    rows: list[Row] = []
    failed: list[Outcome] = []
    names = _Names()
    for line, found in entries:
        try:
            rows.append(_row(line, found, file.parent, defaults or {}, names))
        except UserError as error:
            failed.append(Outcome(line, "failed", error=str(error)))
    if not rows and not failed:
        raise UserError(f"{file}: has no rows; each asks for one video")
    return rows, failed


Entry = tuple[int, dict[str, Any] | UserError]


def _from_csv(file: Path, text: str) -> Iterator[Entry]:
    reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
    known = {*INPUTS, *Settings.model_fields}
    try:
        heading = [name.strip() for name in reader.fieldnames or ()]
        lacking = [name for name in INPUTS[:2] if name not in heading]
        if lacking:
            raise UserError(f"{file}: the heading lacks {' and '.join(lacking)}; name its columns, separated by commas")
        odd = [name for name in heading if name not in known or heading.count(name) > 1]
        if odd:
            raise UserError(
                f"{file}: column {odd[0][:40]!r} is unknown or there twice; there are {', '.join(sorted(known))}"
            )
        reader.fieldnames = heading
        for values in reader:
            if None in values or None in values.values():
                yield (
                    reader.line_num,
                    UserError(f"has not {len(heading)} cells as the heading; quote cells with commas"),
                )
            else:
                yield reader.line_num, {name: cell.strip() for name, cell in values.items() if cell.strip()}
    except csv.Error as error:
        raise UserError(f"{file}: line {reader.line_num}: is no CSV ({error}); check the quotes") from None


def _from_jsonl(file: Path, text: str) -> Iterator[Entry]:
    for line, words in _filled_lines(text):
        try:
            values = json.loads(words)
        except (ValueError, RecursionError) as error:
            yield line, UserError(f"is no JSON ({' '.join(str(error).split())}); write one object on one line")
            continue
        whole = isinstance(values, dict)
        yield line, values if whole else UserError('is no JSON object; write {"portrait": …, "speech": …}')


def _from_lines(file: Path, text: str) -> Iterator[Entry]:
    for line, words in _filled_lines(text):
        parts = [part.strip() for part in words.rsplit("@@", 2)]
        if len(parts) == 3:
            yield line, {"prompt": parts[0], "portrait": parts[1], "speech": parts[2]}
        else:
            yield line, UserError("must be prompt@@portrait@@speech")


def _filled_lines(text: str) -> Iterator[tuple[int, str]]:
    # Not splitlines: JSON may hold other separators of lines in its strings.
    return ((line, words) for line, words in enumerate(text.split("\n"), 1) if words.strip())


def _row(
    line: int, found: dict[str, Any] | UserError, folder: Path, defaults: Mapping[str, Any], names: "_Names"
) -> Row:
    if isinstance(found, UserError):
        raise found
    for name in INPUTS:
        if not isinstance(found.get(name, "" if name == "name" else None), str):
            raise UserError(
                f"{name}: is missing or no text; give {'a name' if name == 'name' else 'the path of a file'}"
            )
    settings = read_settings({**defaults, **{name: value for name, value in found.items() if name not in INPUTS}})
    portrait, speech = (folder / found[name] for name in INPUTS[:2])
    name = names.take(line, found.get("name", ""), f"{portrait.stem}_{speech.stem}")
    return Row(line, portrait, speech, name, settings)


class _Names:
    """Names of results: none that leads out of the folder, and no two that one file system takes for the same."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}

    def take(self, line: int, given: str, otherwise: str) -> str:
        """The name for a row: the given one, which must be free, else one from its inputs, numbered if need be."""
        name = safe_name(given.removesuffix(".mp4") or otherwise)
        if given and name.casefold() in self._taken:
            raise UserError(f"name: {name} is taken by line {self._taken[name.casefold()]}; choose another")
        number, free = 1, name
        while free.casefold() in self._taken:
            number += 1
            free = f"{name}_{number}"
        self._taken[free.casefold()] = line
        return free


# ------------------------------------------------------------------------------------------------------------ the work


def run_batch(
    rows: Iterable[Row],
    folder: Path,
    *,
    load: Callable[[], "Hallo3Pipeline"],
    common: Mapping[str, Any],
    failed: Iterable[Outcome] = (),
    overwrite: bool = False,
    listen: Listener = lambda event: None,
) -> list[Outcome]:
    """Makes every row's video in `folder`, which is made if need be. Returns what became of each, by line.

    load: gives the model; called once, when the first video is to be made. common: fields of `AnimationRequest` that
    all rows share. failed: rows that could not be read. overwrite: makes anew what is there already; otherwise finished
    results of the same inputs and settings stay, and half ones go on. listen: called with the events of `animate`, and
    `row` before each and `failed`, all with the row's `line`.

    After each row `results.jsonl` in the folder says what became of those so far, one object a line.
    Raises UserError for a folder that can't be written, or where another batch is at work, and what `load` raises.
    """
    with _alone(folder):
        results = _Results(folder / RESULTS, listen)
        for outcome in failed:
            results.add(outcome)
        planned = []
        for row in rows:  # All that can be known before the model is loaded is said before.
            found = _planned(row, folder, common, overwrite)
            if isinstance(found, Outcome):
                results.add(found)
            else:
                planned.append((row, found))
        pipeline = load() if planned else None
        for number, (row, request) in enumerate(planned, 1):
            where = {"portrait": str(row.portrait), "speech": str(row.speech), "output": str(request.output)}
            listen({"event": "row", "line": row.line, "number": number, "rows": len(planned), **where})
            results.add(_make(row, request, pipeline, listen))
        return results.sorted()


def _planned(row: Row, folder: Path, common: Mapping[str, Any], overwrite: bool) -> AnimationRequest | Outcome:
    """The request of a row that is to be made; else what became of it."""
    output = folder / f"{row.name}.mp4"
    try:
        return _checked(row, output, common, overwrite)
    except Exception as error:  # Whatever befalls one row, the others are made.
        show_bug(error)
        return Outcome(row.line, "failed", error=in_one_line(error))


def _checked(row: Row, output: Path, common: Mapping[str, Any], overwrite: bool) -> AnimationRequest | Outcome:
    """As `_planned`. Raises UserError."""
    request = row.settings.request(row.portrait, row.speech, output, overwrite=overwrite, **common)
    require_file(row.portrait, "portrait")
    require_file(row.speech, "speech")
    if not overwrite and output.exists():
        if not is_result_of(request):
            raise UserError(
                f"{output}: is there already, of other inputs or settings; name this row otherwise, or --overwrite"
            )
        for left in (".part.state", ".part"):  # by a run that was killed just when it had finished
            output.with_name(output.name + left).unlink(missing_ok=True)
        return Outcome(row.line, "kept", output.name)
    request = replace(request, resume=begun(output) and not overwrite)
    check_request(request)
    return request


def _make(row: Row, request: AnimationRequest, pipeline: "Hallo3Pipeline | None", listen: Listener) -> Outcome:
    done: Event = {}

    def hear(event: Event) -> None:
        if event["event"] == "done":
            done.update(event)
        listen({**event, "line": row.line})

    began = time.monotonic()
    try:
        animate(request, pipeline=pipeline, listen=hear)
    except Exception as error:  # Whatever befalls one row, the others are made.
        show_bug(error)
        return Outcome(
            row.line, "failed", error=_for_batches(in_one_line(error)), took=round(time.monotonic() - began, 3)
        )
    facts = {name: done[name] for name in ("frames", "seconds")}
    return Outcome(row.line, "done", request.output.name, took=round(done["took"], 3), **facts)


def _for_batches(line: str) -> str:
    """A row has no --resume: the whole batch, given again, goes on with what is half done."""
    line = line.replace("go on with --resume", "give the same command again")
    return line.replace("goes on with --resume", "goes on when the same command is given again")


class _Results:
    """What became of the rows so far, on the disk after each."""

    def __init__(self, path: Path, listen: Listener) -> None:
        self._path, self._listen = path, listen
        self._outcomes: list[Outcome] = []

    def add(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        lines = [json.dumps(asdict(one)) for one in self.sorted()]
        with writing(self._path, "make room, then give the same command again"):
            replace_file(self._path, "".join(f"{line}\n" for line in lines).encode())
        if outcome.status == "failed":
            self._listen({"event": "failed", "line": outcome.line, "message": outcome.error})

    def sorted(self) -> list[Outcome]:
        return sorted(self._outcomes, key=lambda outcome: outcome.line)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / ".batch.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder}: another batch is writing here; wait for it, or choose another --out") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{folder}: cannot be written ({reason}); choose another --out") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
