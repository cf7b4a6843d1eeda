"""Inputs made of nothing but a number: the same target, series and index always give the same bytes.

Each input begins as one of the target's starting inputs, or at random, and is bent a few times: bits, interesting
numbers at every width, pieces cut, doubled, moved between two inputs, words of the format, and rarely blown up to a
megabyte, because what is slow or greedy is slow or greedy on long inputs only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from random import Random

from tests.fuzz.model import Target

SMALL_MAX = 4096
BIG_EVERY, HUGE_EVERY = 400, 8000
BIG_MAX, HUGE_MAX = 1 << 16, (1 << 20) - 1
"""Bytes; one input in so many is blown up so far."""

_NUMBERS = (0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 255, 256, 4095, 4096, 0x7FFF, 0x8000, 0xFFFF)
_WIDE = (0x10000, 0xFFFFFF, 0x1000000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFE, 0xFFFF_FFFF, (1 << 63) - 1, (1 << 64) - 1)
_TEXTS = (
    b"0", b"-1", b"1e999", b"NaN", b"0x", b"18446744073709551616", b"9" * 5000, b"\x00", b"\xff", b"\xed\xa0\x80",
    b"\xc3", b"\xef\xbb\xbf", b"\xe2\x80\xae", b"\xf0\x9f\x92\xa9", b"\\ud800", b"\\u0000", b"\r\n", b"\n", b"\t", b" ",
    b'"', b"'", b"\\", b"%", b"%00", b"../", b",", b":", b";", b"=", b"-", b"+", b".", b"/", b"@", b"[", b"]", b"{",
    b"}", b"(", b")", b"<", b"null", b"true", b"[]", b"{}", b'""', b"${A}", b"\xd9\xa3", b"\xc2\xb2",
)  # fmt: skip
_WORD = re.compile(rb"[A-Za-z_][A-Za-z0-9_.-]{2,40}|[0-9]{1,20}")


def mutated_input(target: Target, series: int, index: int) -> bytes:
    """Input number `index` of `target` in `series`; every series has other inputs."""
    rng = Random(f"{series}/{target.name}/{index}")
    data = bytearray(_beginning(target.starts, rng))
    if data[:1] in (b"{", b"[") and rng.random() < 0.5:
        data = bytearray(bend_json(bytes(data), rng))
        if rng.random() < 0.7:
            return bytes(data)
    for _ in range(min(int(rng.expovariate(0.7)), 12) + (index >= len(target.starts))):
        rng.choice(_CHANGES)(data, target.starts, rng)
    if index % HUGE_EVERY == HUGE_EVERY - 1:
        _blow_up(data, rng, HUGE_MAX)
    elif index % BIG_EVERY == BIG_EVERY - 1:
        _blow_up(data, rng, BIG_MAX)
    elif len(data) > (limit := SMALL_MAX + max(map(len, target.starts))):
        del data[limit:]
    if target.repair is not None and rng.random() < 0.6:
        target.repair(data)
    return bytes(data[: target.longest])


def _beginning(starts: Sequence[bytes], rng: Random) -> bytes:
    kind = rng.random()
    if kind < 0.05:
        return rng.randbytes(rng.choice((0, 1, 2, 3, 4, 8, 16, 33, 64, 300, 1000)))
    start = rng.choice(starts)
    if kind < 0.15:
        return start[: rng.randrange(len(start) + 1)]
    return start


Change = Callable[[bytearray, Sequence[bytes], Random], None]


def _flip_bit(data: bytearray, _: Sequence[bytes], rng: Random) -> None:
    if data:
        data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _set_byte(data: bytearray, _: Sequence[bytes], rng: Random) -> None:
    if data:
        data[_place(data, rng)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x20, rng.randrange(256)))


def _set_number(data: bytearray, _: Sequence[bytes], rng: Random) -> None:
    width = rng.choice((1, 2, 2, 4, 4, 4, 8))
    if len(data) < width:
        return
    place = _place(data, rng, width)
    if rng.random() < 0.5:
        place -= place % width
    number = rng.choice((*_NUMBERS, *_WIDE, len(data), len(data) - 1, len(data) + 1, len(data) - place))
    if rng.random() < 0.3:
        number += rng.choice((-1, 1, 4, -4))
    order = "big" if rng.random() < 0.3 else "little"
    data[place : place + width] = (number & ((1 << 8 * width) - 1)).to_bytes(width, order)  # type: ignore[arg-type]


def _step_number(data: bytearray, _: Sequence[bytes], rng: Random) -> None:
    width = rng.choice((1, 2, 4))
    if len(data) >= width:
        place = _place(data, rng, width)
        number = int.from_bytes(data[place : place + width], "little") + rng.choice((-16, -4, -1, 1, 2, 4, 16))
        data[place : place + width] = (number & ((1 << 8 * width) - 1)).to_bytes(width, "little")


def _cut_out(data: bytearray, _: Sequence[bytes], rng: Random) -> None:
    if data:
        place = _place(data, rng)
        del data[place : place + rng.choice((1, 2, 4, 16, 32, rng.randrange(1, len(data) + 1)))]


def _truncate(data: bytearray, _: Sequence[bytes], rng: Random) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _insert(data: bytearray, _: Sequence[bytes], rng: Random) -> None:
    place = rng.randrange(len(data) + 1)
    data[place:place] = rng.choice((rng.randbytes(rng.randrange(1, 9)), rng.choice(_TEXTS)))


def _overwrite(data: bytearray, _: Sequence[bytes], rng: Random) -> None:
    if data:
        place, piece = _place(data, rng), rng.randbytes(rng.randrange(1, 17))
        data[place : place + len(piece)] = piece[: len(data) - place]


def _double(data: bytearray, _: Sequence[bytes], rng: Random) -> None:
    if data:
        start = rng.randrange(len(data))
        piece = bytes(data[start : start + rng.choice((1, 4, 32, rng.randrange(1, len(data) + 1)))])
        place = rng.choice((start, rng.randrange(len(data) + 1)))
        data[place:place] = piece * rng.choice((1, 1, 2, 3, 20))


def _splice(data: bytearray, starts: Sequence[bytes], rng: Random) -> None:
    other = rng.choice(starts)
    if other:
        start = rng.randrange(len(other))
        piece = other[start : start + rng.choice((4, 32, len(other)))]
        place = rng.randrange(len(data) + 1)
        data[place : place + (len(piece) if rng.random() < 0.5 else 0)] = piece


def _word(data: bytearray, starts: Sequence[bytes], rng: Random) -> None:
    """Put a word in the place of another one: a known one of the format, or a text that readers stumble over."""
    found = list(_WORD.finditer(data)) if len(data) <= 2 * SMALL_MAX else []
    new = rng.choice(_TEXTS) if rng.random() < 0.6 else rng.choice(_words(tuple(starts)) or _TEXTS)
    if found:
        old = rng.choice(found)
        data[old.start() : old.end()] = new
    else:
        place = rng.randrange(len(data) + 1)
        data[place:place] = new


_CHANGES: tuple[Change, ...] = (
    _flip_bit, _set_byte, _set_number, _set_number, _set_number, _step_number, _cut_out, _truncate, _insert, _overwrite,
    _double, _splice, _word, _word,
)  # fmt: skip


_VALUES: tuple[object, ...] = (
    None, True, 0, -1, 1, 2**31, 2**53, 2**63, 2**64, 10**30, 10**400, 1.5, 1e300, "", "a", "0", "9" * 25, "x" * 300,
    "\ud800", "\0", "a\nb", "\u202e", "\u0663", [], [None], [[]], {}, {"": None}, {"a": {"b": [1]}},
)  # fmt: skip


def bend_json(data: bytes, rng: Random) -> bytes:
    """One value of a JSON document exchanged, left out, wrapped or nested deeply; other bytes come back as they are."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return data
    holders = [document]
    for holder in holders:
        inner = holder.values() if isinstance(holder, dict) else holder
        holders += [item for item in inner if isinstance(item, dict | list)]
    holder = rng.choice(holders)
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    if not keys:
        return data
    key = rng.choice(keys)
    match rng.randrange(6):
        case 0:
            del holder[key]
        case 1:
            holder[key] = [holder[key]] * rng.choice((1, 2, 60))
        case 2:
            depth = rng.choice((9, 500, 3000))
            return json.dumps(document).replace(json.dumps(holder[key]), "[" * depth + "]" * depth, 1).encode()
        case 3 if isinstance(holder, dict):
            holder[rng.choice(("", "id", "x" * 200, "\ud800"))] = rng.choice(_VALUES)
        case _:
            holder[key] = rng.choice(_VALUES)
    return json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


@cache
def _words(starts: tuple[bytes, ...]) -> tuple[bytes, ...]:
    return tuple(sorted({word for start in starts for word in _WORD.findall(start[:SMALL_MAX])}))


def _place(data: bytearray, rng: Random, width: int = 1) -> int:
    """A position, half of the time among the first 64 bytes, where headers are."""
    last = len(data) - width
    return rng.randint(0, min(last, 64)) if rng.random() < 0.5 else rng.randint(0, last)


def _blow_up(data: bytearray, rng: Random, limit: int) -> None:
    """Repeat one piece until the input has up to `limit` bytes, keeping what stands before and behind it."""
    size = rng.choice((limit, rng.randrange(limit)))
    if not data:
        data += rng.choice(_TEXTS)
    start = rng.randrange(len(data))
    piece = bytes(data[start : start + rng.choice((1, 1, 2, 4, 8, 32, 200, len(data)))])
    times = max(0, size - len(data)) // len(piece)
    data[start:start] = piece * times
    del data[limit:]
