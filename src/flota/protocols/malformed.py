"""The one error of everything that cannot be read off the wire."""

from __future__ import annotations

from flota.errors import InvalidInput


class MalformedMessage(InvalidInput):
    """A peer's message does not have the shape that its protocol asks for; nothing of it was used."""

    code = "malformed-message"
