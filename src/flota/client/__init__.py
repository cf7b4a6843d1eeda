"""Our own management API, typed: what the command line, the lab and other people's scripts use."""
