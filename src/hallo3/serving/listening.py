"""Where a server listens: opened before a model is loaded, so that a port in use costs one line and no wait."""

import socket

from ..errors import UserError


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
