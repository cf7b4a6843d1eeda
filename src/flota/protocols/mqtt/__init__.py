"""MQTT 3.1.1, sans-IO: packets, topic filters, and the server's side of a session.

Source: docs/reference/mqtt.md; OASIS MQTT Version 3.1.1 (29 October 2014), section numbers in the modules.
"""
