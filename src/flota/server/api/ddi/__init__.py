"""hawkBit's Direct Device Integration API v1 for devices: `/{tenant}/controller/v1/{controllerId}/…`."""

from flota.server.api.ddi.controller import routes
from flota.server.api.ddi.poll import Polls

__all__ = ["Polls", "routes"]
