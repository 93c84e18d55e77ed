"""Puts commands and options, as typer describes them, into the page of the command line (a hook of MkDocs)."""

import html
import re
from typing import Any

PAGE, MARK = "reference/command-line.md", "<!-- commands -->"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by MkDocs with the text of every page."""
    return markdown.replace(MARK, commands()) if page.file.src_uri == PAGE else markdown


def commands() -> str:
    """All commands, each with usage, arguments and options, in Markdown; headings start at the second level."""
    import typer
    from typer.cli import get_docs_for_click

    from hallo3.cli.app import app

    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="hallo3", indent=1)
    text = re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+", "", text)  # cut short, and each follows in full
    text = text.replace("* `--help`: Show this message and exit.\n", "")
    return "\n".join(_plain(line) if line.startswith("* ") else line for line in html.unescape(text).splitlines())


def _plain(line: str) -> str:
    """An option's line, whose brackets are no links."""
    return line.replace("[", r"\[").replace("]", r"\]")
