"""hawkBit's Direct Device Integration API v1 for devices: `/{tenant}/controller/v1/{controllerId}/…`."""

from flota.server.api.ddi.controller import routes

__all__ = ["routes"]
