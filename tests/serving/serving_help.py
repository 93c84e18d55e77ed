"""What is sent to the server, and waiting for what comes of it."""

from typing import Any

from waiting import PATIENCE, until

SETTINGS = '{"no_face": true}'


def submission(sent: dict[str, bytes], **fields: str) -> dict[str, Any]:
    """What httpx posts: the two files, the statement of rights, and fields."""
    files = {"portrait": ("anna.png", sent["portrait"]), "speech": ("hello.wav", sent["speech"])}
    return {"files": files, "data": {"rights": "true", "settings": SETTINGS, **fields}}


def wait_until(client: Any, job: str, *states: str, seconds: float = PATIENCE) -> dict[str, Any]:
    """Polls a job until it is in one of these states."""

    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = client.get(f"/v1/jobs/{job}").json()
        if found["state"] in states:
            return found
        assert found["state"] in ("queued", "running"), found
        return None

    return until(look, seconds)
