"""How a gateway's verdict is known: one line among the details of the feedback that closes an action.

DDI has no field for it. A gateway that saw a device come back has concluded that its update succeeded; one to which the
app told its version has heard it. Whoever keeps the outcome has to be able to tell the two apart.
Source: docs/reference/gateway.md, "What counts as a sign of life"; docs/reference/executions.md, "Basis".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

PREFIX: Final = "basis: "
ANNOUNCEMENT: Final = "announcement"
STATE_POST: Final = "state-post"
CHECK_IN: Final = "check-in"

INFERRED: Final = frozenset({ANNOUNCEMENT, STATE_POST})
"""Signs of life that say that a device is there, not what it runs."""


def basis_line(basis: str) -> str:
    """Return the line of the details."""
    return f"{PREFIX}{basis}"


def is_inferred(details: Sequence[str]) -> bool:
    """Return whether the details say that the outcome was concluded from a device's coming back."""
    return any(line.removeprefix(PREFIX).strip() in INFERRED for line in details if line.startswith(PREFIX))
