"""`python -m flota` is the same as `flota`."""

from flota.cli.app import main

main()
