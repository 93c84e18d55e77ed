"""Where a server listens: opened before a model is loaded, so that a port in use costs one line and no wait."""

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from uvicorn import Server


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises UserError where that can't be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, TypeError, ValueError) as error:  # the last two: what can be no address
        reason = (getattr(error, "strerror", None) or "no name of a machine").partition(" (while ")[0].lower()
        raise UserError(f"--host {host} --port {port}: can't listen there ({reason}); choose others") from None


def address_of(listening: socket.socket, host: str) -> str:
    """The address to open, of a socket that listens at `host`."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listening.getsockname()[1]}"


def run_server(server: "Server", listening: socket.socket, announce: Callable[[], None]) -> None:
    """Announces a server and runs it until a signal ends it, which the handlers of before then hear of.

    Signals are the server's from before the announcement on: within its event loop, which passes on KeyboardInterrupt
    and SystemExit alone, whatever else a handler of before raises is lost, and the server would go on for ever.
    """
    with server.capture_signals():
        announce()
        server.run(sockets=[listening])
