"""Counters of the whole server for Prometheus. No label ever names a device, a tenant or a path that a peer chose."""

from __future__ import annotations

import threading
import time
from collections import Counter as Tally
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from flota.server.sightings import SightingsWriter
    from flota.transports.mqtt_server import MqttEndpoint

GROUPS: Final = ("api", "artifacts", "update", "viam", "ddi", "healthz", "metrics", "other")
"""Values of the `group` label: which API a request went to."""

_NAMED_STATUSES: Final = frozenset({304, 401, 404, 429})

_FIRST_SEGMENTS: Final = frozenset(GROUPS) - {"ddi", "other"}
_DDI_SECOND_SEGMENT: Final = "controller"


def group_of(path: str) -> str:
    """Return the API that serves `path`, one of `GROUPS`."""
    first, _, rest = path[1:].partition("/")
    if first in _FIRST_SEGMENTS:
        return first
    return "ddi" if rest.partition("/")[0] == _DDI_SECOND_SEGMENT else "other"


class Metrics:
    """One registry per server, so that several in one process (tests) do not share counters."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._answers: dict[tuple[str, int], int] = {}
        """By group and status."""
        self._counting = threading.Lock()
        self.registry.register(_AnswersCollector(self._answers))
        self.running = 0
        running = Gauge("flota_http_requests_running", "Requests being answered.", registry=self.registry)
        running.set_function(lambda: self.running)
        self.channel_downloads = Counter(
            "flota_channel_downloads",
            "Images handed to update clients without an identity.",
            ["type"],  # types that exist, never what a peer wrote
            registry=self.registry,
        )
        self.crashes = Counter("flota_http_crashes", "Requests that ended in a bug of ours.", registry=self.registry)

    def watch_sightings(self, sightings: SightingsWriter) -> None:
        """Show how many device sightings wait to be written."""
        waiting = Gauge("flota_sightings_waiting", "Device sightings not yet in the database.", registry=self.registry)
        waiting.set_function(lambda: sightings.waiting)

    def watch_mqtt(self, endpoint: MqttEndpoint) -> None:
        """Show what the MQTT endpoint counts."""
        self.registry.register(_MqttCollector(endpoint))

    def answered(self, path: str, status: int) -> None:
        """Count one answer, in any thread."""
        key = (group_of(path), status)
        with self._counting:
            self._answers[key] = self._answers.get(key, 0) + 1

    def exposition(self) -> tuple[bytes, str]:
        """Return the text for Prometheus and its media type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class _AnswersCollector(Collector):
    """Sums up by class of status (`2xx`) when Prometheus asks; the few statuses that tell most are named."""

    def __init__(self, answers: Mapping[tuple[str, int], int]) -> None:
        self._answers = answers
        self._began_at = time.time()

    def collect(self) -> Iterator[Metric]:
        """Yield the one counter, by API and status."""
        totals: Tally[tuple[str, str]] = Tally()
        for (group, status), count in list(self._answers.items()):
            totals[group, str(status) if status in _NAMED_STATUSES else f"{status // 100}xx"] += count
        answers = CounterMetricFamily("flota_http_requests", "Requests answered.", labels=["group", "status"])
        for labels, count in totals.items():
            answers.add_metric(labels, count, created=self._began_at)
        yield answers


class _MqttCollector(Collector):
    """Reads the endpoint's counters when Prometheus asks."""

    def __init__(self, endpoint: MqttEndpoint) -> None:
        self._endpoint = endpoint

    def collect(self) -> Iterator[Metric]:
        """Yield gauges of what is there and counters of what happened."""
        endpoint, counters = self._endpoint, self._endpoint.counters
        yield GaugeMetricFamily("flota_mqtt_connections", "MQTT connections, all.", endpoint.connections)
        yield GaugeMetricFamily("flota_mqtt_clients", "MQTT clients that were let in.", endpoint.connected)
        yield GaugeMetricFamily("flota_mqtt_sessions", "MQTT sessions, kept ones included.", endpoint.core.sessions)
        outcomes = CounterMetricFamily(
            "flota_mqtt_connects", "MQTT connections by what became of them.", labels=["outcome"]
        )
        outcomes.add_metric(["admitted"], counters.admitted)
        outcomes.add_metric(["refused"], counters.refused)
        outcomes.add_metric(["turned-away"], counters.turned_away)
        outcomes.add_metric(["failed-handshake"], counters.failed_handshakes)
        yield outcomes
        ends = CounterMetricFamily("flota_mqtt_cut_off", "MQTT connections that this server ended.", labels=["reason"])
        ends.add_metric(["violation"], counters.violations)
        ends.add_metric(["silent"], counters.timed_out)
        ends.add_metric(["crash"], counters.crashes)
        yield ends
        yield CounterMetricFamily("flota_mqtt_received", "Messages that clients published.", counters.received)
        dropped = endpoint.core.dropped + counters.dropped_answers
        yield CounterMetricFamily("flota_mqtt_dropped", "Messages that a client did not get.", dropped)
