"""Which of two ESP-IDF versions is older, as far as it matters: release lines, not patches.

A boot loader starts apps of its own release line and of later ones; an app of an older line may find registers and
flash settings as it does not expect them. Source: docs/reference/esp-image.md.
"""

from __future__ import annotations

import re

_RELEASE = re.compile(r"v?(\d{1,4})\.(\d{1,4})(?![0-9])")


def idf_release(text: str) -> tuple[int, int] | None:
    """Return major and minor of what `git describe` said, e.g. `v5.2-dev-1-g0123`; None when it names no release."""
    match = _RELEASE.match(text)
    return (int(match.group(1)), int(match.group(2))) if match else None


def is_older_release(version: str, reference: str) -> bool:
    """Whether `version` is of an older release line than `reference`; False when either names none."""
    ours, theirs = idf_release(version), idf_release(reference)
    return ours is not None and theirs is not None and ours < theirs
