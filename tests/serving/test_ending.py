"""A server that is asked to end the moment its event loop begins, before the server itself listens to signals."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")

SIGNALLED = """
import asyncio, os, signal, sys
import uvicorn
from hallo3.cli import main

serve = uvicorn.Server.serve

async def signalled(self, sockets=None):
    asyncio.get_running_loop().call_soon(signal.raise_signal, int(os.environ["TEST_SIGNAL"]))
    await asyncio.sleep(0)  # what the handler raises, it raises in the loop, as of a signal from outside
    await serve(self, sockets)

uvicorn.Server.serve = signalled
sys.exit(main(sys.argv[1:]))
"""


def end_at_once(number: signal.Signals, folder: Path, *words: str, processes: int = 1) -> tuple[int, str, str]:
    """Runs a server that gets this signal when it begins. Returns its exit code and what it said."""
    (folder / "signalled.py").write_text(SIGNALLED)
    (folder / "temporary").mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), "signalled.py", *words, "--port", "0"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "TEST_SIGNAL": str(int(number)), "TMPDIR": str(folder / "temporary")},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # a test run under nohup ignores it
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_page(number: signal.Signals, tiny_bundle: Path, tmp_path: Path) -> None:
    """It ends as SIGTERM ends a process, and what it kept is deleted."""
    pytest.importorskip("gradio", reason="needs the extra `web`")
    code, said, errors = end_at_once(number, tmp_path, "web", "--bundle", str(tiny_bundle))
    assert code == -signal.SIGTERM and "open http://" in said and "Traceback" not in errors, errors
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_a_server_of_several_processes(tiny_bundle: Path, tmp_path: Path) -> None:
    """torchrun's SIGTERM, when another process has ended, or torchrun itself is stopped."""
    words = ["serve", "--bundle", str(tiny_bundle), "--data", str(tmp_path / "data")]
    code, said, errors = end_at_once(signal.SIGTERM, tmp_path, *words, processes=2)
    ours = [line for line in errors.splitlines() if line.startswith("hallo3: error:")]
    assert code != 0 and said.startswith("serving") and len(ours) == 1 and "another process" in ours[0], errors
