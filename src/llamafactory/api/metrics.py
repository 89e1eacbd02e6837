"""Counters for Prometheus: requests, times, tokens, and what the engine is doing."""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send


if TYPE_CHECKING:
    from ..chat.base_engine import BaseEngine

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/score/evaluation", "/v1/models", "/health", "/metrics")
CLIENT_LEFT = 499  # no answer was sent, as nobody was there any more


class Metrics:
    """The counters of one server."""

    def __init__(self, engine: "BaseEngine") -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "llamafactory_requests", "Requests answered.", ("path", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "llamafactory_request_seconds", "Whole requests.", ("path",), registry=self.registry, buckets=SECONDS
        )
        self.first_token = Histogram(
            "llamafactory_first_token_seconds",
            "From a streamed request to its first text.",
            registry=self.registry,
            buckets=SECONDS,
        )
        self.registry.register(EngineCollector(engine))

    def text(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self.registry)


class EngineCollector:
    """Reads the engine's own counters when they are asked for."""

    def __init__(self, engine: "BaseEngine") -> None:
        self.engine = engine

    def describe(self) -> Iterable[Metric]:
        """Say nothing in advance; the names below are nobody else's."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Return the engine's counters of now."""
        stats = self.engine.stats()
        gauges = {
            "running_answers": ("Answers being written.", stats.num_running),
            "waiting_answers": ("Answers waiting for their turn.", stats.num_waiting),
            "max_running_answers": ("Answers that can be written at once.", stats.max_running),
            "max_waiting_answers": ("Answers that may wait.", stats.max_waiting),
        }
        counters = {
            "accepted_requests": ("Requests the engine took.", stats.num_requests),
            "refused_requests": ("Requests refused, as the queue was full.", stats.num_refused),
            "cancelled_answers": ("Answers whose reader left.", stats.num_cancelled),
            "prompt_tokens": ("Tokens of prompts.", stats.num_prompt_tokens),
            "cached_prompt_tokens": ("Those that did not have to be computed.", stats.num_cached_tokens),
            "answer_tokens": ("Tokens written.", stats.num_answer_tokens),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"llamafactory_{name}", text, value=value)
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"llamafactory_{name}", text, value=value)


class Measured:
    """Counts and times every request."""

    def __init__(self, app: ASGIApp, metrics: Metrics, root_path: str = "") -> None:
        self.app = app
        self.metrics = metrics
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request and note what became of it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = CLIENT_LEFT

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        start = time.perf_counter()
        path = scope["path"].removeprefix(self.root_path)
        path = path if path in PATHS else "other"
        try:
            await self.app(scope, receive, send_noted)
        finally:
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)
