"""A gateway's counters for Prometheus. No label ever names a device or holds text of a peer."""

from __future__ import annotations

import threading
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest, start_http_server

from flota.gateway.artifact_cache import ArtifactCache
from flota.gateway.sightings import SightingBook


class GatewayMetrics:
    """One registry per gateway."""

    def __init__(self) -> None:
        self.registry: Final = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.polls = Counter("flota_gateway_polls", "Polls by how they ended.", ["end"], registry=self.registry)
        self.decisions = Counter(
            "flota_gateway_decisions", "What was decided for devices.", ["decision"], registry=self.registry
        )
        self.verdicts = Counter(
            "flota_gateway_verdicts", "Updates that ended.", ["outcome", "basis"], registry=self.registry
        )
        self.pushed_bytes = Counter("flota_gateway_pushed_bytes", "Bytes given to devices.", registry=self.registry)
        self.devices = Gauge("flota_gateway_devices", "Devices that are served.", registry=self.registry)
        self.pushing = Gauge("flota_gateway_pushes_running", "Pushes under way.", registry=self.registry)

    def watch(self, cache: ArtifactCache, book: SightingBook) -> None:
        """Show what cache and book of sightings hold."""
        gauges = {
            "cache_hits": ("Files that were in the cache.", lambda: cache.counts.hits),
            "cache_downloads": ("Downloads from the server.", lambda: cache.counts.downloads),
            "cache_downloaded_bytes": ("Bytes fetched from the server.", lambda: cache.counts.downloaded_bytes),
            "cache_evicted": ("Files that had to go.", lambda: cache.counts.evicted),
            "addresses_heard": ("Addresses that boards were heard from.", lambda: len(book)),
        }
        for name, (text, value) in gauges.items():
            Gauge(f"flota_gateway_{name}", text, registry=self.registry).set_function(value)

    def exposition(self) -> bytes:
        """Return the text for Prometheus."""
        return generate_latest(self.registry)

    def serve(self, host: str, port: int) -> tuple[int, threading.Thread]:
        """Answer `GET /metrics` from a thread of its own; returns the port and the thread. Raises `OSError`."""
        server, thread = start_http_server(port, host, self.registry)
        return server.server_port, thread
