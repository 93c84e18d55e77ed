"""What the server measures of itself, for Prometheus."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .jobs import JobQueue
from .store import Job

_BUCKETS = (1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10_800, 36_000)


class Metrics:
    """Counts of one process, and the state of its queue at the moment it is asked."""

    def __init__(self, jobs: JobQueue) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "hallo3_requests", "Answers, by method and status.", ["method", "status"], registry=self.registry
        )
        self._ended = Counter("hallo3_jobs_ended", "Jobs ended by this process.", ["state"], registry=self.registry)
        self._took = Histogram("hallo3_job_seconds", "Time to make a video.", buckets=_BUCKETS, registry=self.registry)
        ProcessCollector(registry=self.registry)
        self.registry.register(_Queue(jobs))

    def answered(self, method: str, status: int) -> None:
        """An answer was given."""
        self._requests.labels(method if method in ("GET", "POST") else "other", str(status)).inc()

    def ended(self, job: Job, seconds: float) -> None:
        """A job ended after so many seconds; what `Worker.on_end` takes."""
        self._ended.labels(job.state).inc()
        if job.state == "done":
            self._took.observe(seconds)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)


class CountAnswers:
    """Counts every answer of the application behind it by its status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def seen(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.answered(scope["method"], message["status"])
            await send(message)

        try:
            await self._app(scope, receive, seen if scope["type"] == "http" else send)
        except Exception:  # answered further out
            self._metrics.answered(scope.get("method", ""), 500)
            raise


class _Queue(Collector):
    """The queue's state, read from its table."""

    def __init__(self, jobs: JobQueue) -> None:
        self._jobs = jobs

    def collect(self) -> Iterator[GaugeMetricFamily]:
        states = GaugeMetricFamily("hallo3_jobs", "Jobs in the table, by state.", labels=["state"])
        for state, count in self._jobs.store.counts().items():
            states.add_metric([state], count)
        yield states
        values: dict[str, tuple[str, Callable[[], float]]] = {
            "hallo3_queue_limit": ("Jobs that may wait.", lambda: self._jobs.limits.waiting),
            "hallo3_stored_bytes": ("Bytes of all jobs' files.", self._jobs.store.stored),
            "hallo3_stored_bytes_limit": ("Bytes that may be kept.", lambda: self._jobs.limits.stored_bytes),
        }
        for name, (meaning, value) in values.items():
            yield GaugeMetricFamily(name, meaning, value=value())
