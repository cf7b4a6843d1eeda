"""The last hop, for devices that cannot fetch for themselves."""
