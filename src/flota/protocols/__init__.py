"""How it travels: sans-IO protocol modules, both roles of one protocol in one place. No IO, no clock, no randomness."""
