"""What is over is settled, whatever has become of its files, and of every other job too."""

import io
from pathlib import Path

import pytest

from hallo3.serving.jobs import RESULT, Busy, JobQueue, Limits
from hallo3.settings import Settings


def test_a_result_that_is_gone_is_settled(tmp_path: Path, tiny_bundle: Path, sent: dict[str, bytes]) -> None:
    """Deleted in the moment in which its video was done, or by hand: the jobs after it are settled all the same."""
    jobs = JobQueue(tmp_path / "data", Limits(), common={"bundle": str(tiny_bundle)})
    names = []
    for size in (None, 5):
        job = jobs.submit(io.BytesIO(sent["portrait"]), io.BytesIO(sent["speech"]), Settings(no_face=True), rights=True)
        assert jobs.store.claim("worker-1") is not None
        if size is not None:
            (jobs.place(job.id) / RESULT).write_bytes(bytes(size))
        assert jobs.store.finish(job.id, "worker-1", "done", bytes=9)
        names.append(job.id)
    jobs.settle()
    assert jobs.store.unsettled() == [] and jobs.store.stored() == 5
    assert [path.name for name in names for path in jobs.place(name).iterdir()] == [RESULT]
    jobs.tidy()
    jobs.close()


def test_what_is_counted_is_named(tmp_path: Path, tiny_bundle: Path) -> None:
    jobs = JobQueue(tmp_path / "data", Limits(per_minute=1), common={"bundle": str(tiny_bundle)})
    jobs.admit("me")
    with pytest.raises(Busy, match="rate: 1 jobs a minute are the limit"):
        jobs.admit("me")
    jobs.close()
