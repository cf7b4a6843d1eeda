"""The command line: one module a noun. Commands import what they need when they run, so that `--help` stays fast."""
