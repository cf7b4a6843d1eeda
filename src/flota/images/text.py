"""The one cleaner of text that came out of a file: printable, capped, never raising."""

from __future__ import annotations

from typing import Final

TEXT_MAX_CHARS: Final = 64
"""Longer than every text field of the formats here (the longest, in the ESP app descriptor, has 32 bytes)."""

REPLACEMENT: Final = "\ufffd"


def cleaned_text(raw: bytes | memoryview | str, *, max_chars: int = TEXT_MAX_CHARS) -> str:
    """Return what a NUL-terminated text field says, fit for a terminal, a log line or a page.

    Bytes are read as UTF-8 up to the first NUL. What is not printable (control characters, direction overrides, broken
    UTF-8) becomes U+FFFD; white space at the ends goes; at most `max_chars` characters stay.
    """
    text = raw if isinstance(raw, str) else bytes(raw[: max_chars * 4]).split(b"\0", 1)[0].decode("utf-8", "replace")
    shown = "".join(char if char.isprintable() else REPLACEMENT for char in text[:max_chars])
    return shown.strip()
