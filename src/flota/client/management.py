"""A typed, synchronous client of the management API; its operations stand in one module a subject."""

from __future__ import annotations

from flota.client.artifacts import ArtifactCalls, Progress
from flota.client.audit_and_tokens import AuditAndTokenCalls
from flota.client.device_types import DeviceTypeCalls
from flota.client.devices import DeviceCalls
from flota.client.releases import ReleaseCalls
from flota.client.rollouts import RolloutCalls
from flota.client.schemas import WhoAmI
from flota.client.things import ThingCalls

__all__ = ["ManagementClient", "Progress"]


class ManagementClient(
    ArtifactCalls, DeviceTypeCalls, ReleaseCalls, DeviceCalls, ThingCalls, RolloutCalls, AuditAndTokenCalls
):
    """One server, one token. Use as a context manager, or call `close()`; see `WireClient`."""

    def whoami(self) -> WhoAmI:
        """Return whose token this is, and the server's version."""
        return self._ask("GET", "/whoami", WhoAmI)
