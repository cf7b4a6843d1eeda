"""Who says so: signing keys, signatures with a threshold, the signed release manifest, and what a device refuses."""
