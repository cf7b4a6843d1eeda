"""The one cleaner of text that a peer sent: printable, on one line, capped. What is stored passes here first."""

from __future__ import annotations

from typing import Final

VERSION_LABEL_MAX_LEN: Final = 128
"""Characters kept of a version that a device claims; the longest that any route carries (flota.versions)."""

FREE_TEXT_MAX_LEN: Final = 256
"""Characters kept of one line of free text: status details, SDK versions, user agents."""

_ELLIPSIS: Final = "…"


def clean_text(text: str, *, max_len: int = FREE_TEXT_MAX_LEN) -> str:
    """Return `text` as one line of printable characters, at most `max_len` of them.

    White space of any kind becomes single blanks; every other character that is not printable (control characters,
    direction marks, lone surrogates, private use) is dropped. A text that is cut ends with an
    ellipsis. The result may be empty; cleaning it again changes nothing.
    """
    # Look at a bounded part only: what is dropped may be long.
    window = text[: 4 * max_len + 1]
    blanked = "".join(" " if character.isspace() else character for character in window)
    printable = "".join(character for character in blanked if character.isprintable())
    line = " ".join(printable.split())
    if len(line) > max_len:
        return line[: max_len - 1].rstrip() + _ELLIPSIS
    if len(window) < len(text) and not line.endswith(_ELLIPSIS):
        return line[: max_len - 1].rstrip() + _ELLIPSIS
    return line


def clean_bytes(raw: bytes, *, max_len: int = FREE_TEXT_MAX_LEN) -> str:
    """Return bytes that should be UTF-8 text as `clean_text` does; what is not UTF-8 becomes U+FFFD."""
    return clean_text(raw[: 16 * max_len].decode("utf-8", "replace"), max_len=max_len)
