"""Whatever is sent, the server answers as its description says, and never with its own failure."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from serving_help import submission

hypothesis = pytest.importorskip("hypothesis", reason="needs the extra `dev`")
schemathesis = pytest.importorskip("schemathesis", reason="needs the extra `dev`")

requests = pytest.importorskip("requests", reason="needs the extra `dev`")

# Other inputs are tried with others of these, as by HALLO3_FUZZ_SEED=7 HALLO3_FUZZ_EXAMPLES=1000.
SEED = int(os.environ.get("HALLO3_FUZZ_SEED", 1))
EXAMPLES = int(os.environ.get("HALLO3_FUZZ_EXAMPLES", 100))  # of each operation


def fuzz(operation: Any, call: Callable[[Any], Any], checks: list[Any], answered: set[int], known: str) -> None:
    """Calls an operation with made-up input, once for the job that is there; collects the statuses of the answers."""

    @hypothesis.seed(SEED)
    @hypothesis.given(case=operation.as_strategy())
    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def try_out(case: Any) -> None:
        if len(answered) == 1 and case.path_parameters:
            case.path_parameters["name"] = known
        answer = call(case)
        answered.add(answer.status_code)
        case.validate_response(answer, checks=checks)

    try_out()


@pytest.mark.slow
def test_no_input_is_the_servers_failure(serve: Callable[..., Any], sent: dict[str, bytes]) -> None:
    """Every operation of /openapi.json with made-up input: no 5xx, known statuses, answers of the stated shape."""
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

    client = serve(waiting=100_000, per_minute=100_000, keep_seconds=600.0)
    known = client.post("/v1/jobs", **submission(sent)).json()["id"]
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    statuses: dict[str, set[int]] = {}
    session = requests.Session()
    session.trust_env = False  # no proxy for what is on this machine

    for result in schema.get_all_operations():
        operation = result.ok()
        checks = [not_a_server_error, status_code_conformance]
        if not operation.path.endswith(("/events", "/result", "/metrics")):  # no JSON
            checks.append(response_schema_conformance)
        answered = statuses.setdefault(operation.label, set())

        call = partial(schemathesis.Case.call, base_url=str(client.base_url), session=session, timeout=120)
        fuzz(operation, call, checks, answered, known)
    assert set(statuses) >= {"POST /v1/jobs", "GET /v1/jobs/{name}", "GET /v1/jobs/{name}/result", "GET /health"}
    assert not [status for found in statuses.values() for status in found if status >= 500], statuses
    assert client.get("/health").json()["status"] == "ok", "the worker outlived it"


def test_made_up_bytes_as_uploads(serve: Callable[..., Any], sent: dict[str, bytes]) -> None:
    """Real files, damaged in many ways: taken or refused in one line."""
    from media.media_samples import damaged

    client = serve(working=False, waiting=100_000, per_minute=100_000)
    seen = set()
    for name in ("portrait", "speech"):
        for copy in damaged(sent[name], 40, seed=1):
            answer = client.post("/v1/jobs", **submission({**sent, name: copy}))
            seen.add(answer.status_code)
            assert answer.status_code in (202, 400), answer.text
    assert 400 in seen
