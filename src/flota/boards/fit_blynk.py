"""The part of the fit check that belongs to a primary MCU behind an NCP: its firmware tag is what it will report.

An image without a tag, or whose tag says something else than the release, could never be seen to have arrived: the MCU
reports what the tag says. Source: docs/reference/blynk.md, "Firmware tag".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from flota.boards.model import BOOT_DUAL_BANK, BOOT_NCP_ASSISTED, TypeProfile, Unfit
from flota.images.blynk_tag import BUILD_KEY, MCU_KEY, NCP_KEY, TYPE_KEY
from flota.images.model import Inspection

BLYNK_BOOTS: Final = frozenset({BOOT_DUAL_BANK, BOOT_NCP_ASSISTED})
TEMPLATE_PREFIX: Final = "TMPL"
"""How the ids of templates begin, which are the usual firmware types."""

_TAG_HINT: Final = "Put a tag into the firmware, or at its end: flota image blynk-tag FILE --mcu V --fw-type T -o OUT"


def blynk_reasons(profile: TypeProfile, inspection: Inspection, version: str) -> Iterator[Unfit]:
    """Yield why the file's tag does not suit the release; nothing for boards without an NCP."""
    if profile.board.boot not in BLYNK_BOOTS:
        return
    tag = inspection.firmware_tag
    if not tag:
        yield Unfit("no-tag", "the file has no firmware tag", None, "blnkinf", "none", _TAG_HINT)
        return
    if MCU_KEY not in tag:
        yield Unfit("tag-of-ncp", "the firmware tag is that of an NCP", None, MCU_KEY, NCP_KEY, _TAG_HINT)
        return
    if tag[MCU_KEY] != version:
        yield Unfit(
            "version",
            "the MCU will report the version in its firmware tag, and the release says another",
            None,
            tag[MCU_KEY],
            version,
            f"Release it as {tag[MCU_KEY]}, or build it with the right version.",
        )
    if not tag.get(TYPE_KEY):
        yield Unfit("no-fw-type", "the firmware tag has no type", None, TYPE_KEY, "none", _TAG_HINT)
    elif profile.firmware_type is not None and tag[TYPE_KEY] != profile.firmware_type:
        yield Unfit(
            "fw-type",
            "the firmware is of another type than the devices",
            None,
            profile.firmware_type,
            tag[TYPE_KEY],
            "Choose the device type that it was built for.",
        )
    if not tag.get(BUILD_KEY):
        yield Unfit("no-build-time", "the firmware tag has no build time", None, BUILD_KEY, "none", blocking=False)


def firmware_type_of(type_name: str) -> str | None:
    """Return the firmware type that devices of a type take, None for any: a type called like a template has its own."""
    return type_name if type_name.startswith(TEMPLATE_PREFIX) else None
