"""Tests. A package, so that no other distribution of this name (gmqtt brings one) can stand in its place."""
