"""What `inspect()` says about an NVS partition: pages, namespaces, key names and types. Never a value.

Source: docs/reference/esp-nvs.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from flota.images.esp_nvs import NvsPage, NvsPartition, parse_nvs
from flota.images.esp_nvs_format import NAMESPACES_INDEX, PAGE_SIZE, Buffer, NvsError, PageState
from flota.images.model import Finding, ImageFormat, Inspection, Property, Region
from flota.images.text import cleaned_text

KEYS_SHOWN_MAX: Final = 200
"""Key names shown for one namespace; more are counted."""


def inspect_nvs(data: Buffer) -> Inspection:
    """Return what the NVS partition `data` (see `looks_like_nvs`) holds, without any value."""
    try:
        partition = parse_nvs(data)
    except NvsError as error:
        finding = Finding("error", error.code, error.message, error.offset, str(error.expected), str(error.found))
        return _inspection(data, findings=(finding,))
    return _inspection(
        data,
        properties=tuple(_properties(partition)),
        regions=tuple(_region(page) for page in partition.pages),
        findings=tuple(_findings(partition)),
    )


def _inspection(
    data: Buffer,
    *,
    properties: tuple[Property, ...] = (),
    regions: tuple[Region, ...] = (),
    findings: tuple[Finding, ...] = (),
) -> Inspection:
    size = len(data)
    return Inspection(ImageFormat.ESP_NVS, size, size, properties=properties, regions=regions, findings=findings)


def _properties(partition: NvsPartition) -> Iterator[Property]:
    counted = Counter(_state_name(page) for page in partition.pages)
    yield Property("pages", ", ".join(f"{count} {state}" for state, count in counted.items()))
    for name, index in partition.namespaces.items():
        yield Property(f"namespace {cleaned_text(name)}", _keys(partition, index))


def _keys(partition: NvsPartition, index: int) -> str:
    """Return the key names and types of a namespace."""
    held = {item.name: item.type_name for item in partition.items if item.namespace_index == index}
    shown = [f"{name} ({kind})" for name, kind in list(held.items())[:KEYS_SHOWN_MAX]]
    if len(held) > KEYS_SHOWN_MAX:
        shown.append(f"and {len(held) - KEYS_SHOWN_MAX} more")
    return ", ".join(shown) or "no keys"


def _findings(partition: NvsPartition) -> Iterator[Finding]:
    if any(item.namespace_index != NAMESPACES_INDEX for item in partition.items):
        yield Finding(
            "note", "nvs-values", "it holds settings of one device, credentials perhaps: values are not shown"
        )
    if partition.unreadable:
        yield Finding("warning", "nvs-unreadable", "no entry is sound: the partition is encrypted, or wrecked")
        return
    for page in partition.pages:
        if not page.live and not page.blank:
            yield Finding(
                "warning", "nvs-page", f"page {page.index} is damaged: the device erases it", page.index * PAGE_SIZE
            )
        elif page.damaged:
            text = f"page {page.index} has {len(page.damaged)} damaged entries: the device drops them"
            yield Finding("warning", "nvs-entries", text, page.index * PAGE_SIZE)
    if all(page.live for page in partition.pages):
        yield Finding("warning", "nvs-full", "no page is free: the device can only read it", None, "1 or more", "0")


def _region(page: NvsPage) -> Region:
    kind = "padding" if page.blank else "nvs"
    return Region(f"page {page.index} ({_state_name(page)})", page.index * PAGE_SIZE, PAGE_SIZE, kind)


def _state_name(page: NvsPage) -> str:
    if page.blank:
        return "empty"
    return PageState(page.state).name.lower() if page.live else "damaged"
