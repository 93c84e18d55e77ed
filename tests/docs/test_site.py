"""The site of the documents: builds without warnings and network, and its pages fetch nothing from elsewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("material", reason="needs the extra `docs`")
ROOT = Path(__file__).parents[2]
OFFLINE = """
import socket, sys
def refuse(*_): raise OSError("no network here")
socket.socket.connect = socket.getaddrinfo = refuse
from mkdocs.__main__ import cli
cli(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-c", OFFLINE, "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    """Scripts, styles, fonts and pictures are the site's own; only links that a reader follows lead away."""
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|iframe|source)[^>]+src="?(?:https?:)?//[^">]+', text), page
        assert not re.findall(r'<link[^>]+href="?(?:https?:)?//[^">]+', text), page
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import\s*)[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.slow
def test_the_reference_comes_from_the_code(site: Path) -> None:
    commands = (site / "reference" / "command-line" / "index.html").read_text(encoding="utf-8")
    for words in ("hallo3 animate", "hallo3 studio import", "--speech-scale", "published 3.5"):
        assert words in commands
    python = (site / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    for name in ("hallo3.pipeline.Hallo3Pipeline.stream", "hallo3.animation.AnimationRequest"):
        assert f'id="{name}"' in python
    assert "Yields frames clip by clip" in python
