"""The version of a Nuvoton application: three numbers, one word, and the suffix that people put into file names.

No header carries it. The application has it compiled in (`APP_VERSION_MAJOR`, `_MINOR`, `_BUILD`) and reports it as
one word; the vendor's guide renames the file by hand after each build.
Source: docs/reference/nuvoton.md, "Versions".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from flota.images.model import ImageError

_TEXT = re.compile(r"(\d{1,3})\.(\d{1,3})\.(\d{1,5})\Z", re.ASCII)
_IN_NAME = re.compile(r"_V(\d{1,3}\.\d{1,3}\.\d{1,5})(?:\.[A-Za-z0-9]{1,8})?\Z", re.ASCII | re.IGNORECASE)
NAME_TAIL_CHARS: Final = 64
"""How much of a file name is looked at, from its end."""


@dataclass(frozen=True, slots=True, order=True)
class AppVersion:
    """`major.minor.build`, in the order in which the agent compares: u8, u8, u16."""

    major: int
    minor: int = 0
    build: int = 0

    def __post_init__(self) -> None:
        for name, limit in (("major", 0xFF), ("minor", 0xFF), ("build", 0xFFFF)):
            value = getattr(self, name)
            if not 0 <= value <= limit:
                raise ImageError(f"the version's {name} number is out of range", expected=f"0 to {limit}", found=value)

    @classmethod
    def parse(cls, text: str) -> AppVersion:
        """Return the version that `1.0.1` says. Raises `ImageError`."""
        match = _TEXT.match(text[:NAME_TAIL_CHARS])
        if match is None:
            raise ImageError(
                "not a version of a Nuvoton application", expected="major.minor.build", found=ascii(text[:32])
            )
        return cls(*(int(part) for part in match.groups()))

    @classmethod
    def from_word(cls, word: int) -> AppVersion:
        """Return the version in a word as jobs carry it (`updatedBy`). Raises `ImageError` above 32 bits."""
        return cls(word >> 24, word >> 16 & 0xFF, word & 0xFFFF)

    @property
    def word(self) -> int:
        """The version as the agent reports it: 1.0.0 is 0x01000000."""
        return self.major << 24 | self.minor << 16 | self.build

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.build}"


def version_in_name(name: str) -> str | None:
    """Return the version that a file name ends with, such as `1.0.1` of `app_V1.0.1.bin`; None without one.

    It is a habit of the vendor's guide, not a fact about the bytes.
    """
    match = _IN_NAME.search(name[-NAME_TAIL_CHARS:])
    if match is None:
        return None
    try:
        return str(AppVersion.parse(match.group(1)))
    except ImageError:
        return None
