"""Proof: fleets of virtual devices, power cuts, sample firmware."""
