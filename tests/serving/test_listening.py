"""Where a server listens: every host that is none gets one line."""

import socket

import pytest

from hallo3.errors import UserError
from hallo3.serving.listening import listen


@pytest.mark.parametrize(
    "host", ["\udcff", "a\0b", "ö" * 100, "no.such.host.invalid", "256.1.1.1", "fe80::zz", "x" * 300]
)
def test_no_host(host: str) -> None:
    with pytest.raises(UserError, match="can't listen there") as caught:
        listen(host, 0)
    assert "while" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--host 127.0.0.1 --port {port}: .* \(address already in use\)"):
            listen("127.0.0.1", port)
