"""Blynk.NCP: updates for a primary MCU behind a network co-processor, over a UART. Both roles, no IO, no clock.

`frames` and `driver_frames` read the line, `values`, `messages` and `catalogue` say what is on it, `rpc` is one end of
it; `ncp` and `mcu` are the two machines, each with its update in a module of its own.
Source: docs/reference/blynk.md.
"""
