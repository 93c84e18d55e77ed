"""What the door says names the thing that was sent, its own limit, and what would help."""

from collections.abc import Callable
from typing import Any

import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("gradio", reason="needs the extra `web`")


def test_what_is_too_large(site: Any, start: Callable[..., Any]) -> None:
    """The site's limit of files is 0.3 MB."""
    with httpx.Client(base_url=site.url, timeout=60, trust_env=False) as client:
        client.get("/")
        answer = client.post("/gradio_api/upload", files={"files": ("large.wav", bytes(2_000_000))})
        assert "file: is larger than 0.3 MB, the limit; make it smaller" in answer.text
        answer = client.post("/gradio_api/run/predict", content=b" " * 1_100_000)
        assert answer.text == "event: is larger than 1 MB, the limit; make it smaller"
    answer = httpx.post(start(token="s3cret").url + "enter", content=b" " * 11_000, timeout=60, trust_env=False)
    assert answer.text == "token: is larger than 0.01 MB, the limit; make it smaller"


def test_what_comes_too_often_and_from_elsewhere(start: Callable[..., Any]) -> None:
    site = start(token="s3cret", per_minute=1)
    with httpx.Client(base_url=site.url, timeout=60, trust_env=False) as client:
        assert client.post("/enter", data={"token": "s3cret"}).status_code == 303
        answer = client.post("/enter", data={"token": "wrong"})
        assert answer.status_code == 429 and answer.text == "rate: 1 tokens a minute are the limit; wait"
        sent = [client.post("/gradio_api/upload", files={"files": ("a.png", b"x")}) for _ in range(5)]
        assert [one.status_code for one in sent] == [200] * 4 + [429]
        assert sent[-1].text == "rate: 4 files a minute are the limit; wait"
        # As behind a proxy that asks under its own name.
        answer = client.get("/", headers={"Host": "10.0.0.7:7860", "Origin": "https://hallo3.example"})
        assert answer.status_code == 403 and "a proxy" in answer.text and "`Host`" in answer.text
        assert "--token" not in answer.text
