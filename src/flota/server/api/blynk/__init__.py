"""Blynk's device API (MQTT and files), and its uploads and shipments.

Source: docs/reference/blynk.md, "Cloud link" and "Shipments".
"""

from flota.server.api.blynk.dialect import BlynkDialect, BlynkIdentity
from flota.server.api.blynk.files import BlynkFiles

__all__ = ["BlynkDialect", "BlynkFiles", "BlynkIdentity"]
