"""What ships: one module a format, bytes <-> frozen value; `inspect()` tells which it is."""
