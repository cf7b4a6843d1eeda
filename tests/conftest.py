"""What holds for every test: how fast a property is found to hold says nothing about it."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("flota", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("flota")
