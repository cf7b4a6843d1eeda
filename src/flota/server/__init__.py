"""The cloud side: listeners, APIs in the dialects of devices, the management API, the rollout engine.

APIs translate; they decide nothing.
"""
