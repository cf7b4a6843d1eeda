"""NVS, the key-value store of ESP-IDF in a flash partition: pages, entries, their checks, and how a string is read.

Values in NVS are credentials more often than not: no `repr`, no error and no inspection of ours carries one.
Writing is in `esp_nvs_writing`. Encrypted NVS is not read: its entries look damaged.

Source: docs/reference/esp-nvs.md; espressif/esp-idf:components/nvs_flash/src/nvs_page.cpp and nvs_pagemanager.cpp.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from flota.images.esp_nvs_format import (
    BITMAP_OFFSET,
    BITMAP_SIZE,
    ENTRIES_OFFSET,
    ENTRIES_PER_PAGE,
    ENTRY_CRC,
    ENTRY_HEADER,
    ENTRY_SIZE,
    NAMESPACES_INDEX,
    PAGE_HEADER,
    PAGE_SIZE,
    PAGES_MAX,
    STRING_DATA,
    VERSION_1,
    VERSION_2,
    Buffer,
    EntryState,
    ItemType,
    NvsBadValue,
    NvsError,
    NvsMissing,
    NvsUnreadable,
    NvsWrongType,
    PageState,
    entry_crc,
    entry_states,
    is_blank,
    key_bytes,
    page_crc,
)
from flota.images.text import cleaned_text

VIAM_NAMESPACE: Final = "VIAM_NS"
VIAM_VERSION_KEY: Final = "OTA_VERSION"
"""The one value in VIAM_NS that is no secret: viamrobotics/micro-rdk:micro-rdk/src/esp32/nvs_storage.rs."""

_SPANNING: Final = (ItemType.STRING, ItemType.BLOB, ItemType.BLOB_DATA)
"""Types whose bytes follow in further entries."""
_LIVE_STATES: Final = (PageState.ACTIVE, PageState.FULL, PageState.FREEING)


@dataclass(frozen=True, slots=True)
class NvsItem:
    """A whole item whose checks passed: where it lies, and its bytes (never in a `repr`).

    `page` and `entry` count from 0; `content` is the 8 data bytes of a number, or the bytes of a string (with NUL) or
    blob.
    """

    page: int
    entry: int
    namespace_index: int
    type: int
    span: int
    chunk: int
    key: bytes
    content: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """The key, cleaned for showing."""
        return cleaned_text(self.key)

    @property
    def type_name(self) -> str:
        """The type in words, or its number in hex."""
        try:
            return ItemType(self.type).name.lower().replace("_", " ")
        except ValueError:
            return f"type {self.type:#04x}"


@dataclass(frozen=True, slots=True)
class NvsPage:
    """One page. `items` are its sound items in order; `damaged` are entries (counted from 0) whose checks failed.

    `blank`: every byte is 0xFF. `crc_ok`: that of the header. Only a `live` page has items.
    """

    index: int
    state: int
    seq: int
    version: int
    crc_ok: bool
    blank: bool
    entry_states: tuple[int, ...] = field(repr=False)
    items: tuple[NvsItem, ...] = ()
    damaged: tuple[int, ...] = ()

    @property
    def live(self) -> bool:
        """Whether ESP-IDF reads items from it."""
        return _is_live(self.state, self.version, crc_ok=self.crc_ok)

    @property
    def used(self) -> int:
        """Number of entries in use."""
        return self.entry_states.count(EntryState.WRITTEN)


@dataclass(frozen=True, slots=True)
class NvsPartition:
    """All pages in flash order."""

    pages: tuple[NvsPage, ...]

    @property
    def live_pages(self) -> tuple[NvsPage, ...]:
        """The pages with items, oldest first."""
        return tuple(sorted((page for page in self.pages if page.live), key=lambda page: page.seq))

    @property
    def items(self) -> tuple[NvsItem, ...]:
        """Every sound item, oldest first, namespaces included. Of two with one key the later one counts."""
        return tuple(item for page in self.live_pages for item in page.items)

    @property
    def unreadable(self) -> bool:
        """Whether entries are written and none is sound, as in an encrypted partition.

        A single one may be the first namespace, torn by a power cut; a partition in use has two or more.
        """
        return not self.items and sum(len(page.damaged) for page in self.live_pages) > 1

    @property
    def namespaces(self) -> dict[bytes, int]:
        """The namespaces and their indices."""
        return {
            item.key: item.content[0]
            for item in self.items
            if item.namespace_index == NAMESPACES_INDEX and item.type == ItemType.U8
        }

    def find(self, namespace: str, key: str) -> NvsItem | None:
        """Return what `key` holds now, of whatever type; None when it is not there.

        Raises `NvsBadKey` for a name that NVS cannot hold.
        """
        index = self.namespaces.get(key_bytes(namespace, "namespace"))
        wanted = key_bytes(key, "key")
        matching = (item for item in self.items if item.namespace_index == index and item.key == wanted)
        return None if index is None else max(matching, key=lambda item: self._age(item), default=None)

    def _age(self, item: NvsItem) -> tuple[int, int]:
        return self.pages[item.page].seq, item.entry


def parse_nvs(data: Buffer) -> NvsPartition:
    """Return the pages of an NVS partition; damaged pages and entries are part of the value.

    Raises `NvsError` when `data` is not a number of whole pages, has more than `PAGES_MAX`, or was written by a newer
    version of NVS than 2.
    """
    count, rest = divmod(len(data), PAGE_SIZE)
    if rest or not 1 <= count <= PAGES_MAX:
        raise NvsError(
            "not a number of whole NVS pages", expected=f"1 to {PAGES_MAX} x {PAGE_SIZE} bytes", found=len(data)
        )
    view = memoryview(data)
    return NvsPartition(tuple(_parse_page(view[i * PAGE_SIZE : (i + 1) * PAGE_SIZE], i) for i in range(count)))


def readable_nvs(data: Buffer) -> NvsPartition:
    """Return what `parse_nvs` returns. Raises `NvsUnreadable` when no entry is sound, and what `parse_nvs` raises."""
    partition = parse_nvs(data)
    if partition.unreadable:
        damaged = sum(len(page.damaged) for page in partition.live_pages)
        raise NvsUnreadable(
            "no entry of the NVS partition is sound",
            expected="entries with the right CRC",
            found=f"{damaged} damaged",
            hint="Encrypted NVS cannot be read without the device's keys.",
        )
    return partition


def read_string(data: Buffer, namespace: str, key: str) -> str:
    """Return the string that `key` holds in `namespace`.

    Raises `NvsMissing` when there is none, `NvsWrongType` when the key holds something else, `NvsBadValue` when the
    bytes are no text, `NvsUnreadable` when the partition is encrypted, `NvsError` when `data` is no NVS partition. No
    error carries the value.
    """
    partition = readable_nvs(data)
    item = partition.find(namespace, key)
    if item is None:
        raise NvsMissing(f"no key {key!r} in the NVS namespace {namespace!r}")
    return string_of(item)


def string_of(item: NvsItem) -> str:
    """Return the text of a string item. Raises `NvsWrongType` for another type, `NvsBadValue` when it is no text."""
    offset = item.page * PAGE_SIZE + ENTRIES_OFFSET + item.entry * ENTRY_SIZE
    if item.type != ItemType.STRING:
        raise NvsWrongType(
            f"the NVS key {item.name!r} holds no string", offset=offset, expected="string", found=item.type_name
        )
    text, nul, rest = item.content.partition(b"\0")
    try:
        if nul and not rest:
            return text.decode("utf-8")
    except UnicodeDecodeError:
        pass
    raise NvsBadValue(
        f"the NVS key {item.name!r} holds bytes that are no text", offset=offset, expected="UTF-8 and one final NUL"
    )


def looks_like_nvs(data: Buffer) -> bool:
    """Whether `data` is a dump of an NVS partition: whole pages, each blank or with a sound header, one not blank."""
    count, rest = divmod(len(data), PAGE_SIZE)
    if rest or not 1 <= count <= PAGES_MAX:
        return False
    view, written = memoryview(data), 0
    for start in range(0, len(data), PAGE_SIZE):
        state, _, version, unused, crc = PAGE_HEADER.unpack_from(view, start)
        if state == PageState.EMPTY and is_blank(view[start : start + PAGE_SIZE]):
            continue
        if unused.count(0xFF) != len(unused) or crc != page_crc(view[start + 4 : start + 28]):
            return False
        if state not in iter(PageState) or version not in (VERSION_1, VERSION_2):
            return False
        written += 1
    return written > 0


def _is_live(state: int, version: int, *, crc_ok: bool) -> bool:
    return crc_ok and state in _LIVE_STATES and version in (VERSION_1, VERSION_2)


def _parse_page(page: memoryview, index: int) -> NvsPage:
    state, seq, version, _, crc = PAGE_HEADER.unpack_from(page)
    if state == PageState.EMPTY and is_blank(page):
        return NvsPage(index, state, seq, version, False, True, (EntryState.EMPTY,) * ENTRIES_PER_PAGE)
    crc_ok = crc == page_crc(page[4:28])
    if crc_ok and state in _LIVE_STATES and version < VERSION_2:
        raise NvsError(
            "an NVS page of a newer version",
            offset=index * PAGE_SIZE + 8,
            expected=f"{VERSION_2:#04x} or {VERSION_1:#04x}",
            found=f"{version:#04x}",
        )
    states = entry_states(page[BITMAP_OFFSET : BITMAP_OFFSET + BITMAP_SIZE])
    if not _is_live(state, version, crc_ok=crc_ok):
        return NvsPage(index, state, seq, version, crc_ok, False, states)
    items, damaged = [], []
    for entry, item in _walk(page, index, states):
        if item is None:
            damaged.append(entry)
        else:
            items.append(item)
    return NvsPage(index, state, seq, version, crc_ok, False, states, tuple(items), tuple(damaged))


def _walk(page: memoryview, page_index: int, states: tuple[int, ...]) -> Iterator[tuple[int, NvsItem | None]]:
    """Yield each written entry that begins an item, with the item or None when its checks fail."""
    entry = 0
    while entry < ENTRIES_PER_PAGE:
        span = 1
        if states[entry] == EntryState.WRITTEN:
            start = ENTRIES_OFFSET + entry * ENTRY_SIZE
            raw = page[start : start + ENTRY_SIZE]
            if raw[2] and entry + raw[2] <= ENTRIES_PER_PAGE and ENTRY_CRC.unpack_from(raw, 4)[0] == entry_crc(raw):
                span = raw[2]
                yield entry, _parse_item(page, page_index, entry, states)
            else:
                yield entry, None
        entry += span


def _parse_item(page: memoryview, page_index: int, entry: int, states: tuple[int, ...]) -> NvsItem | None:
    """Return the item whose sound header is at `entry`; None when it was not written to its end, or wrongly."""
    start = ENTRIES_OFFSET + entry * ENTRY_SIZE
    namespace, kind, span, chunk, _, key, content = ENTRY_HEADER.unpack_from(page, start)
    if kind in _SPANNING:
        size, _, data_crc = STRING_DATA.unpack(content)
        if span != 1 + -(-size // ENTRY_SIZE) or any(s != EntryState.WRITTEN for s in states[entry : entry + span]):
            return None
        content = bytes(page[start + ENTRY_SIZE : start + ENTRY_SIZE + size])
        if data_crc != zlib.crc32(content, 0xFFFF_FFFF):
            return None
    elif span != 1:
        return None
    return NvsItem(page_index, entry, namespace, kind, span, chunk, key.split(b"\0", 1)[0], content)
