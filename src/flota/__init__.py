"""Flota: self-hosted over-the-air firmware updates for microcontroller fleets."""

__version__ = "0.1.0"
