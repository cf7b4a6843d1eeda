"""What all devices of a gateway share: journal, cache, trusted signers, metrics, patience, clocks."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from flota.gateway.artifact_cache import ArtifactCache
from flota.gateway.configuration import Patience
from flota.gateway.journal import Journal
from flota.gateway.metrics import GatewayMetrics
from flota.gateway.ready_images import ReadyImages
from flota.trust.trust_file import TrustedSigners


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class Workshop:
    """What the workers are given. `now` is the wall clock (signatures expire), `clock` the monotonic one."""

    journal: Journal
    cache: ArtifactCache
    signers: Sequence[TrustedSigners]
    metrics: GatewayMetrics
    patience: Patience
    pushes: asyncio.Semaphore
    server: str
    shelf: ReadyImages = field(default_factory=ReadyImages)
    rng: random.Random = field(default_factory=random.Random)
    now: Callable[[], datetime] = _utc_now
    clock: Callable[[], float] = time.monotonic
