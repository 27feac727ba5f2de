"""Numbers of the gateway in Prometheus' text format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bedplate.serve.gateway import Gateway

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """What is counted here; what generators count themselves is asked for when it is read."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("bedplate_requests", "Requests by route and status", ("route", "status"), registry=self.registry)
        what = "From a request to the last byte of its answer"
        self.seconds = Histogram("bedplate_request_seconds", what, ("route",), buckets=SECONDS, registry=self.registry)
        self.first = Histogram("bedplate_first_piece_seconds", "From a question to the first piece of its answer", buckets=SECONDS, registry=self.registry)
        self.refused = Counter("bedplate_refused", "Requests refused, by reason", ("reason",), registry=self.registry)
        self.left = Counter("bedplate_left", "Answers that were cancelled, by reason", ("reason",), registry=self.registry)
        self.tokens = Counter("bedplate_tokens", "Tokens by model and kind", ("model", "kind"), registry=self.registry)

    def count_tokens(self, model: str, prompt: int, cached: int, completion: int) -> None:
        """Tokens of an answer that has ended."""
        for kind, amount in (("prompt", prompt), ("cached", cached), ("completion", completion)):
            if amount:
                self.tokens.labels(model, kind).inc(amount)

    def watch(self, gateway: Gateway) -> None:
        """Tell of a gateway and its generators, too."""
        self.registry.register(_Now(gateway))

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self.registry)


class _Now(Collector):
    """What is true at the moment."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        gateway = self._gateway
        yield GaugeMetricFamily("bedplate_exchanges", "Answers under way", value=len(gateway.exchanges))
        yield GaugeMetricFamily("bedplate_draining", "1 while no new requests are taken", value=float(gateway.draining))
        yield CounterMetricFamily("bedplate_bridge_wakes", "Times that the event loop was woken by generators", value=gateway.bridge.wakes)
        yield CounterMetricFamily("bedplate_bridge_pieces", "Pieces carried to the event loop", value=gateway.bridge.carried)
        if gateway.audit is not None:
            yield GaugeMetricFamily("bedplate_audit_unwritten", "Records that wait for the disk", value=gateway.audit.unwritten)
        running = GaugeMetricFamily("bedplate_generator_running", "Answers that a generator works on", labels=("model",))
        waiting = GaugeMetricFamily("bedplate_generator_waiting", "Questions that wait", labels=("model",))
        cache = GaugeMetricFamily("bedplate_generator_cache_used", "Share of the cache in use", labels=("model",))
        speed = GaugeMetricFamily("bedplate_generator_tokens_per_second", "Said in the last seconds", labels=("model",))
        counted = CounterMetricFamily("bedplate_generator_counted", "What a generator counts", labels=("model", "what"))
        for name, generator in gateway.models.generators.items():
            load = generator.load()
            running.add_metric((name,), load.running)
            waiting.add_metric((name,), load.waiting)
            cache.add_metric((name,), load.cache_used)
            speed.add_metric((name,), load.tokens_per_s)
            for what, value in load.counters.items():
                counted.add_metric((name, what), value)
        yield from (running, waiting, cache, speed, counted)
