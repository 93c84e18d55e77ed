"""The `hallo3` application: its commands, and the one place where errors become one line and an exit code."""

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from io import TextIOWrapper

import typer

from .. import several
from ..errors import Ended, Stopped, UserError, hush_libraries, in_one_line, show_bug, users_to_mend
from ..version import __version__
from . import (
    ablate,
    animate,
    batch,
    bench,
    bundles,
    convert,
    doctor,
    download,
    inspect,
    plan,
    serve,
    studio,
    train,
    verify,
    web,
)  # fmt: skip

app = typer.Typer(
    name="hallo3",
    help="Make a portrait speak: an image, a recording of speech and a line of text in, a video out.",
    epilog="Start with:  hallo3 animate portrait.jpg speech.wav --prompt 'A woman talks by the sea' -o out.mp4",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("animate")(animate.command)
app.command("batch")(batch.command)
app.command("convert")(convert.command)
app.command("verify")(verify.command)
app.command("download")(download.command)
app.command("bundles")(bundles.command)
app.command("plan")(plan.command)
app.command("inspect")(inspect.command)
app.command("bench")(bench.command)
app.command("doctor")(doctor.command)
app.command("serve")(serve.command)
app.command("web")(web.command)
app.command("train")(train.command)
app.command("ablate")(ablate.command)
app.add_typer(studio.app, name="studio")

TOGETHER = ("animate", "batch", "bench", "serve")  # which the processes that `torchrun` starts run as one
STOPPED = 130  # what the parser returns, too, when it meets a Ctrl-C


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hallo3 {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def _report(message: str) -> None:
    print(f"hallo3: error: {' '.join(message.split())}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 failed check or a bug, 2 the user's to mend, 130 stopped.

    arguments: the words after `hallo3`; those of the process by default.
    """
    hush_libraries()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names of files may hold what its encoding has not
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = partial(_command, words)
    if words and words[0] in TOGETHER:
        return _code_of(partial(several.run, partial(_code_of, command)))
    return _code_of(command)


def _command(words: list[str]) -> int:
    result = app(args=words, prog_name="hallo3", standalone_mode=False)
    if result == STOPPED:
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def _code_of(work: Callable[[], int]) -> int:
    """The exit code of what `work` does; an error is reported here."""
    try:
        return work()
    except UserError as error:
        _report(str(error))
        return 2
    except Stopped as stop:
        _report(str(stop))
        return STOPPED
    except Ended as ended:
        if ended.line is not None:
            _report(ended.line)
        return ended.code
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    except typer.Exit as error:
        code = error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _unexpected(error)
    if code == STOPPED:
        _report("stopped; what was finished is kept: animate goes on with --resume, other commands when given again")
    return code


EXTRAS = {
    **{"numba": "train", "scipy": "train", "skimage": "evaluate"},
    **dict.fromkeys(("fastapi", "uvicorn", "python_multipart", "prometheus_client"), "serve"),
    "gradio": "web",
}  # what a base install lacks, and who brings it


def _unexpected(error: Exception) -> int:
    if isinstance(error, ModuleNotFoundError) and (lacking := (error.name or "").split(".")[0]) in EXTRAS:
        _report(f"{lacking} is not installed, which this command needs; pip install 'hallo3[{EXTRAS[lacking]}]'")
        return 2
    usage = getattr(error, "format_message", None)
    if usage is not None:  # a wrong option or argument, in the words of the parser; none where it has shown the help
        if words := usage():
            _report(f"{words} See `hallo3 {_command_in(error)}--help`.")
        return 2
    show_bug(error)
    _report(in_one_line(error))
    return 2 if users_to_mend(error) else 1


def _command_in(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return "" if context is None else f"{context.command_path.removeprefix('hallo3').strip()} ".lstrip()
