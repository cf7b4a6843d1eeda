"""Writing one string into NVS as ESP-IDF does: append, then strike out the old entry; compact when a page is full.

A write is a list of flash operations in the order in which a device makes them, so that it can be cut between any two:
the string then reads as the old one or the new one. `write_string` applies them all.

Source: docs/reference/esp-nvs.md; espressif/esp-idf:components/nvs_flash/src/nvs_page.cpp, nvs_pagemanager.cpp and
nvs_storage.cpp.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from flota.images.esp_nvs import NvsItem, NvsPage, NvsPartition, parse_nvs, readable_nvs
from flota.images.esp_nvs_format import (
    BITMAP_OFFSET,
    BITMAP_SIZE,
    ENTRIES_OFFSET,
    ENTRIES_PER_PAGE,
    ENTRY_HEADER,
    ENTRY_SIZE,
    NAMESPACES_INDEX,
    NAMESPACES_MAX,
    PAGE_HEADER,
    PAGE_SIZE,
    PAGES_MAX,
    STRING_DATA,
    STRING_MAX_BYTES,
    VERSION_2,
    Buffer,
    EntryState,
    ItemType,
    NvsBadValue,
    NvsError,
    NvsFull,
    NvsWrongType,
    PageState,
    entry_crc,
    entry_states,
    is_blank,
    key_bytes,
    page_crc,
)

PAGES_MIN: Final = 3
"""Below that ESP-IDF mounts a partition only for reading."""
_CHUNK_NONE: Final = 0xFF
_WORD: Final = 4
"""ESP-IDF writes the bitmap in words of four bytes."""


@dataclass(frozen=True, slots=True)
class Program:
    """Write `data` at byte `offset` of the partition; flash can only clear bits."""

    offset: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ErasePage:
    """Set the 0x1000 bytes at byte `offset` of the partition to 0xFF."""

    offset: int


FlashOperation = Program | ErasePage


def create_nvs(size: int, strings: Mapping[str, Mapping[str, str]] | None = None) -> bytes:
    """Return an NVS partition of `size` bytes with the given strings (namespace -> key -> value), all else erased.

    Raises `NvsError` for a size that is no multiple of 0x1000 or below 0x3000, and what `write_string` raises.
    """
    if size % PAGE_SIZE or not PAGES_MIN <= size // PAGE_SIZE <= PAGES_MAX:
        raise NvsError(
            "not a size for an NVS partition",
            expected=f"a multiple of {PAGE_SIZE:#x} from {PAGES_MIN * PAGE_SIZE:#x}",
            found=f"{size:#x}",
        )
    partition = b"\xff" * size
    for namespace, values in (strings or {}).items():
        for key, value in values.items():
            partition = write_string(partition, namespace, key, value)
    return partition


def write_string(partition: Buffer, namespace: str, key: str, value: str) -> bytes:
    """Return the partition after `value` was written to `key`; the namespace is made when it is not there.

    Raises what `plan_string_write` raises.
    """
    return apply_operations(partition, plan_string_write(partition, namespace, key, value))


def plan_string_write(partition: Buffer, namespace: str, key: str, value: str) -> tuple[FlashOperation, ...]:
    """Return the flash operations, in order, that make `key` hold `value`; none when it does already.

    What an earlier power cut left behind is cleared up first. Raises `NvsBadKey`, `NvsBadValue` (too long, or with a
    NUL), `NvsWrongType` (the key holds something else), `NvsUnreadable` (encrypted), `NvsFull`, or `NvsError` (no NVS,
    below three pages).
    """
    content = _stored(value)
    found = readable_nvs(partition).find(namespace, key)
    if found is not None and found.type != ItemType.STRING:
        raise NvsWrongType(f"the NVS key {found.name!r} holds no string", expected="string", found=found.type_name)
    if found is not None and found.content == content:
        return ()
    writer = _Writer(partition)
    writer.clear_up()
    index = writer.namespace_index(namespace)
    writer.append(index, ItemType.STRING, key_bytes(key, "key"), content)
    writer.strike_out_older(index, key_bytes(key, "key"))
    return tuple(writer.operations)


def apply_operations(partition: Buffer, operations: Iterable[FlashOperation]) -> bytes:
    """Return the partition after the operations, on flash where programming only clears bits."""
    flash = bytearray(partition)
    for operation in operations:
        _apply(flash, operation)
    return bytes(flash)


def _apply(flash: bytearray, operation: FlashOperation) -> None:
    start = operation.offset
    if isinstance(operation, ErasePage):
        flash[start : start + PAGE_SIZE] = b"\xff" * PAGE_SIZE
        return
    end = start + len(operation.data)
    held = int.from_bytes(flash[start:end], "little") & int.from_bytes(operation.data, "little")
    flash[start:end] = held.to_bytes(end - start, "little")


def _stored(value: str) -> bytes:
    """Return the string as it is stored, with NUL."""
    try:
        content = value.encode("utf-8") + b"\0"
    except UnicodeEncodeError:
        raise NvsBadValue("the value is no text that UTF-8 can hold") from None
    if len(content) > STRING_MAX_BYTES:
        raise NvsBadValue(
            "the value is too long for NVS",
            expected=f"at most {STRING_MAX_BYTES - 1} bytes",
            found=f"{len(content) - 1} bytes",
        )
    if b"\0" in content[:-1]:
        raise NvsBadValue("the value has a NUL in it, where NVS ends a string")
    return content


class _Writer:
    """A copy of the partition that notes every change as a flash operation."""

    def __init__(self, partition: Buffer) -> None:
        self._flash = bytearray(partition)
        self.operations: list[FlashOperation] = []
        self._page_count = len(parse_nvs(partition).pages)
        if self._page_count < PAGES_MIN:
            raise NvsError(
                "the NVS partition is too small to be written",
                expected=f"{PAGES_MIN} pages or more",
                found=self._page_count,
            )

    @property
    def _now(self) -> NvsPartition:
        return parse_nvs(self._flash)

    def clear_up(self) -> None:
        """Do what ESP-IDF does when it mounts: strike out what is superseded or torn, finish a compaction.

        The copy of a page that is being freed may be incomplete, so it is made again. What a later item supersedes is
        struck out before: moved to a new page it would become the later one.
        """
        live = self._now.live_pages
        freeing = [page.index for page in live if page.state == PageState.FREEING]
        if freeing and live[-1].state == PageState.ACTIVE:
            self._do(ErasePage(live[-1].index * PAGE_SIZE))
        self._strike_out_superseded()
        for index in freeing:
            self._move(self._now.pages[index])
        for page in self._now.live_pages:
            if page.state == PageState.ACTIVE:
                self._strike_out_torn(page)

    def namespace_index(self, namespace: str) -> int:
        """Return the index of the namespace, making it when it is not there."""
        name, known = key_bytes(namespace, "namespace"), self._now.namespaces
        if name in known:
            return known[name]
        taken = set(known.values())
        index = next((number for number in range(1, NAMESPACES_MAX + 1) if number not in taken), None)
        if index is None:
            raise NvsFull("NVS holds no more namespaces", expected=f"at most {NAMESPACES_MAX}", found=len(known))
        self.append(NAMESPACES_INDEX, ItemType.U8, name, bytes([index]))
        return index

    def append(self, namespace_index: int, kind: ItemType, key: bytes, content: bytes) -> None:
        """Write an item behind all others, in a new page when the active one has no room. Raises `NvsFull`."""
        following = content if kind == ItemType.STRING else b""
        span = 1 + -(-len(following) // ENTRY_SIZE)
        data = STRING_DATA.pack(len(content), 0xFFFF, zlib.crc32(content, 0xFFFF_FFFF)) if following else content
        entry = bytearray(ENTRY_HEADER.pack(namespace_index, kind, span, _CHUNK_NONE, 0, key, data.ljust(8, b"\xff")))
        entry[4:8] = entry_crc(entry).to_bytes(4, "little")
        page = self._page_with_room(span)
        first = self._next_free(page)
        self._write_entries(page, first, bytes(entry))
        if following:
            self._write_entries(page, first + 1, following.ljust((span - 1) * ENTRY_SIZE, b"\xff"))

    def strike_out_older(self, namespace_index: int, key: bytes) -> None:
        """Mark every string of that key but the newest as erased."""
        same = [
            item
            for item in self._now.items
            if (item.namespace_index, item.type, item.key) == (namespace_index, ItemType.STRING, key)
        ]
        for item in same[:-1]:
            self._strike_out(item)

    # --- pages ---------------------------------------------------------------------------------------------------

    def _page_with_room(self, span: int) -> int:
        """Return the index of the active page once `span` entries fit into it."""
        live = self._now.live_pages
        active = live[-1].index if live and live[-1].state == PageState.ACTIVE else None
        if active is not None and self._next_free(active) + span <= ENTRIES_PER_PAGE:
            return active
        if active is not None:
            self._do(Program(active * PAGE_SIZE, _state_word(PageState.FULL)))
        page = self._new_page()
        if self._next_free(page) + span > ENTRIES_PER_PAGE:
            raise _full(span)
        return page

    def _new_page(self) -> int:
        """Return a page to write to: a free one when two are left, else the fullest-of-waste one, compacted."""
        now = self._now
        if len(now.pages) - len(now.live_pages) >= 2:
            return self._activate()
        wasteful = min(now.live_pages, key=lambda page: page.used, default=None)
        if wasteful is None or wasteful.used == ENTRIES_PER_PAGE:
            raise _full(1)
        self._do(Program(wasteful.index * PAGE_SIZE, _state_word(PageState.FREEING)))
        return self._move(wasteful)

    def _activate(self) -> int:
        """Begin the first free page; returns its index."""
        now = self._now
        free = next((page for page in now.pages if not page.live), None)
        if free is None:
            raise NvsFull("NVS has no free page, so ESP-IDF refuses it", expected="1 or more", found=0)
        if not free.blank:
            self._do(ErasePage(free.index * PAGE_SIZE))
        seq = 1 + max((page.seq for page in now.live_pages), default=-1)
        if seq >= 0xFFFF_FFFF:
            raise NvsError("the page numbers of NVS are used up", found=seq)
        header = bytearray(PAGE_HEADER.pack(PageState.ACTIVE, seq, VERSION_2, b"\xff" * 19, 0))
        header[28:32] = page_crc(header[4:28]).to_bytes(4, "little")
        self._do(Program(free.index * PAGE_SIZE, bytes(header)))
        return free.index

    def _move(self, page: NvsPage) -> int:
        """Copy the items of `page` to a new page, then erase it; returns the new page's index."""
        target = self._activate()
        for item in page.items:
            start = page.index * PAGE_SIZE + ENTRIES_OFFSET + item.entry * ENTRY_SIZE
            for number in range(item.span):
                entry = bytes(self._flash[start + number * ENTRY_SIZE : start + (number + 1) * ENTRY_SIZE])
                self._write_entries(target, self._next_written(target), entry)
        self._do(ErasePage(page.index * PAGE_SIZE))
        return target

    # --- entries -------------------------------------------------------------------------------------------------

    def _next_free(self, page: int) -> int:
        """Return the first entry behind everything that was ever written to, torn writes included."""
        states = self._states(page)
        start = page * PAGE_SIZE + ENTRIES_OFFSET
        for entry in range(ENTRIES_PER_PAGE, 0, -1):
            at = start + (entry - 1) * ENTRY_SIZE
            if states[entry - 1] != EntryState.EMPTY or not is_blank(self._flash[at : at + ENTRY_SIZE]):
                return entry
        return 0

    def _next_written(self, page: int) -> int:
        """Return the first entry that the bitmap calls empty: in a page that is being filled, the next one."""
        return self._states(page).index(EntryState.EMPTY)

    def _states(self, page: int) -> tuple[int, ...]:
        start = page * PAGE_SIZE + BITMAP_OFFSET
        return entry_states(self._flash[start : start + BITMAP_SIZE])

    def _write_entries(self, page: int, first: int, content: bytes) -> None:
        """Write whole entries, then say in the bitmap that they are written."""
        self._do(Program(page * PAGE_SIZE + ENTRIES_OFFSET + first * ENTRY_SIZE, content))
        self._set_states(page, range(first, first + len(content) // ENTRY_SIZE), EntryState.WRITTEN)

    def _strike_out_superseded(self) -> None:
        """Mark every item as erased that a later one of the same namespace, type, key and chunk replaces."""
        latest: dict[tuple[int, int, bytes, int], NvsItem] = {}
        for item in self._now.items:
            identity = (item.namespace_index, item.type, item.key, item.chunk)
            if identity in latest:
                self._strike_out(latest[identity])
            latest[identity] = item

    def _strike_out_torn(self, page: NvsPage) -> None:
        """Mark entries as erased that have bytes, but belong to no whole item.

        The written ones first: a cut in the middle of turning an empty entry into an erased one can leave it written,
        which must not make an item whole.
        """
        held = {entry for item in page.items for entry in range(item.entry, item.entry + item.span)}
        torn = [
            entry
            for entry in range(self._next_free(page.index))
            if entry not in held and page.entry_states[entry] != EntryState.ERASED
        ]
        written = [entry for entry in torn if page.entry_states[entry] == EntryState.WRITTEN]
        self._set_states(page.index, written, EntryState.ERASED)
        self._set_states(page.index, torn, EntryState.ERASED)

    def _strike_out(self, item: NvsItem) -> None:
        self._set_states(item.page, range(item.entry, item.entry + item.span), EntryState.ERASED)

    def _set_states(self, page: int, entries: Iterable[int], state: EntryState) -> None:
        """Program the bitmap, word by word from the end, as ESP-IDF does."""
        start = page * PAGE_SIZE + BITMAP_OFFSET
        wanted = int.from_bytes(self._flash[start : start + BITMAP_SIZE], "little")
        for entry in entries:
            wanted &= ~(3 << 2 * entry) | state << 2 * entry
        bitmap = wanted.to_bytes(BITMAP_SIZE, "little")
        for at in range(BITMAP_SIZE - _WORD, -1, -_WORD):
            word = bitmap[at : at + _WORD]
            if word != self._flash[start + at : start + at + _WORD]:
                self._do(Program(start + at, word))

    def _do(self, operation: FlashOperation) -> None:
        _apply(self._flash, operation)
        self.operations.append(operation)


def _state_word(state: PageState) -> bytes:
    return int(state).to_bytes(4, "little")


def _full(span: int) -> NvsFull:
    return NvsFull(
        "NVS is full",
        expected=f"{span} free entries in one page",
        found="less, even after compaction",
        hint="Erase keys that are not needed, or make the partition larger.",
    )
