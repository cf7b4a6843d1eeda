"""The firmware tag of Blynk: `blnkinf`, then pairs of key and value, anywhere in a file; found, read, written.

Two readers: `read_as_cloud` takes exactly what the vendor's tool takes, `find_tags` what a careful person would. Where
they differ, the file works here and is not recognised there, or the other way round, and `tag_findings` says so.
Source: docs/reference/blynk.md, "Firmware tag".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from flota.errors import Conflict, InvalidInput
from flota.images.model import Finding, ImageError

Buffer = bytes | memoryview

MAGIC: Final = b"blnkinf\0"
MAGIC_WORD: Final = MAGIC[:-1].decode("ascii")
TAG_MAX_BYTES: Final = 1024
KEY_MAX_BYTES: Final = 32
VALUE_MAX_BYTES: Final = 256
MAGICS_MAX: Final = 10_000
"""Places looked at in one file."""
TAGS_MAX: Final = 16
"""Tags read out of one file."""

MCU_KEY: Final = "mcu"
NCP_KEY: Final = "ncp"
TYPE_KEY: Final = "fw-type"
BUILD_KEY: Final = "build"
LIBRARY_KEY: Final = "blynk"
WRITTEN_ORDER: Final = (MCU_KEY, TYPE_KEY, BUILD_KEY, LIBRARY_KEY)

_ALLOWED: Final = rb"0-9A-Za-z_\x09\x0a\x0b\x0c\x0d\x20.,:\-()"
"""What the vendor's tool takes in keys and values."""

_ALLOWED_RUN: Final = re.compile(rb"[%s\x00]*" % _ALLOWED)
_FORBIDDEN: Final = re.compile(rb"[^%s]" % _ALLOWED)
_MAGIC: Final = re.compile(re.escape(MAGIC))
_TWO_NULS: Final = re.compile(rb"\0\0")
_BUILD: Final = re.compile(
    r"(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) ( [1-9]|[0-3]\d) \d{4} [0-2]\d:[0-5]\d:[0-6]\d\Z"
)


class BadTag(ImageError):
    """A tag cannot be written as asked."""

    code = "bad-tag"


class TagConflict(Conflict):
    """A file has a tag already, or something that hides another."""

    code = "tag-conflict"


@dataclass(frozen=True, slots=True)
class BlynkTag:
    """What a tag says: pairs in their order, unknown keys too. Of a key that is there twice the first value counts."""

    pairs: tuple[tuple[str, str], ...]

    def get(self, key: str) -> str | None:
        """Return the first value of a key, None without one."""
        return next((value for name, value in self.pairs if name == key), None)

    @property
    def version(self) -> str | None:
        """The firmware's version: of the MCU, else of the NCP."""
        return self.get(MCU_KEY) or self.get(NCP_KEY)

    @property
    def fw_type(self) -> str | None:
        """The firmware's type, normally a template's id."""
        return self.get(TYPE_KEY)

    @property
    def build(self) -> str | None:
        """When it was built: `Mmm dd yyyy HH:MM:SS`, without a zone."""
        return self.get(BUILD_KEY)

    @property
    def library(self) -> str | None:
        """The version of the vendor's library in it."""
        return self.get(LIBRARY_KEY)

    def as_dict(self) -> dict[str, str]:
        """Return key -> first value."""
        return dict(reversed(self.pairs))


@dataclass(frozen=True, slots=True)
class FoundTag:
    """A tag at `offset` bytes in the file (or in what was packed in it), `size` bytes long with its last NUL."""

    tag: BlynkTag
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class CloudTag:
    """What the vendor's tool finds: the raw bytes at `offset`, and the pairs that it makes of them, as bytes."""

    offset: int
    raw: bytes
    pairs: tuple[tuple[bytes, bytes], ...]

    def is_of(self, tag: BlynkTag) -> bool:
        """Whether it says the same."""
        return self.pairs == tuple((key.encode(), value.encode()) for key, value in tag.pairs)


def pack_tag(pairs: Iterable[tuple[str, str]]) -> bytes:
    """Return a tag that the vendor's tool recognises too.

    Raises `BadTag` for nothing, an empty key or value, a character that would hide the tag, and for what is too long:
    keys of 32, values of 256, a tag of 1024 bytes. A version has to be among the keys.
    """
    packed = bytearray(MAGIC)
    names = []
    for key, value in pairs:
        for what, text, limit in (("key", key, KEY_MAX_BYTES), (f"value of {key!r}", value, VALUE_MAX_BYTES)):
            packed += _packed_text(what, text, limit) + b"\0"
        names.append(key)
    if MCU_KEY not in names and NCP_KEY not in names:
        raise BadTag("a tag without a version says nothing", expected=f"{MCU_KEY} or {NCP_KEY}")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise BadTag("a key is there twice", found=doubled[0])
    packed += b"\0"
    if len(packed) > TAG_MAX_BYTES:
        raise BadTag("the tag is too long", expected=f"at most {TAG_MAX_BYTES} bytes", found=len(packed))
    return bytes(packed)


def _packed_text(what: str, text: str, limit: int) -> bytes:
    encoded = text.encode("utf-8", "replace")
    wrong = _FORBIDDEN.search(encoded)
    shown = ascii(text[:64])
    if not encoded:
        raise BadTag(f"the {ascii(what)[1:-1]} is empty", hint="Readers end a tag at an empty value.")
    if wrong:
        character = encoded[wrong.start() :].decode("utf-8", "replace")[:1]
        raise BadTag(
            f"a character in {shown} hides the whole tag from the vendor's cloud",
            offset=wrong.start(),
            expected="letters, digits, white space, _ . , : - ( )",
            found=ascii(character),
            hint="Semantic versions with build metadata (+) are the usual case: leave it out."
            if character == "+"
            else None,
        )
    if len(encoded) > limit:
        raise BadTag(f"{shown} is too long", expected=f"at most {limit} bytes", found=len(encoded))
    return encoded


def parse_tag(data: Buffer, offset: int = 0) -> FoundTag:
    """Return the tag whose magic is at `offset`. Raises `BadTag`: truncated, too long, not text, no version."""
    raw = bytes(data[offset : offset + TAG_MAX_BYTES])
    if not raw.startswith(MAGIC):
        raise BadTag(
            "no tag begins here", offset=offset, expected=MAGIC.hex(), found=raw[: len(MAGIC)].hex() or "nothing"
        )
    position = len(MAGIC)
    pairs: list[tuple[str, str]] = []
    while True:
        key, position = _text(raw, position, offset)
        if not key:
            break
        if key == MAGIC_WORD:
            raise BadTag("another tag begins inside", offset=offset + position - len(MAGIC))
        value, position = _text(raw, position, offset)
        pairs.append((key, value))
    tag = BlynkTag(tuple(pairs))
    if not tag.version:
        raise BadTag("a tag without a version", offset=offset, expected=f"{MCU_KEY} or {NCP_KEY}")
    return FoundTag(tag, offset, position)


def _text(raw: bytes, position: int, offset: int) -> tuple[str, int]:
    end = raw.find(0, position)
    if end < 0:
        where = offset + position
        if len(raw) == TAG_MAX_BYTES:
            raise BadTag("the tag is too long", offset=where, expected=f"at most {TAG_MAX_BYTES} bytes")
        raise BadTag("the file ends inside the tag", offset=where)
    try:
        text = raw[position:end].decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadTag("not text", offset=offset + position + error.start) from error
    if not all(character.isprintable() or character in "\t\n\v\f\r" for character in text):
        raise BadTag("not printable text", offset=offset + position)
    return text, end + 1


def _magics(data: Buffer) -> Iterator[int]:
    """Yield where the magic stands; `bytes.find` is several times as fast as a search in other buffers."""
    if not isinstance(data, bytes):
        yield from (found.start() for found in _MAGIC.finditer(data))
        return
    place = data.find(MAGIC)
    while place >= 0:
        yield place
        place = data.find(MAGIC, place + len(MAGIC))


def may_hold_tag(data: Buffer) -> bool:
    """Return whether the magic stands anywhere: backwards, which takes three quarters of the time."""
    return not isinstance(data, bytes) or data.rfind(MAGIC) >= 0


def find_tags(data: Buffer) -> tuple[FoundTag, ...]:
    """Return the tags in the raw bytes, in order; at most 16. The first is the one that counts."""
    found: list[FoundTag] = []
    behind = 0
    for number, place in enumerate(_magics(data)):
        if number >= MAGICS_MAX or len(found) >= TAGS_MAX:
            break
        if place < behind:
            continue  # a value that looks like a magic
        try:
            one = parse_tag(data, place)
        except BadTag:
            continue
        found.append(one)
        behind = one.offset + one.size
    return tuple(found)


def read_as_cloud(data: Buffer) -> CloudTag | None:
    """Return what the vendor's tool takes for the tag, nonsense included; None when it finds nothing.

    The first place where the magic is followed by the shortest run of allowed bytes that two NULs follow.
    """
    allowed_to = double_nul = -1
    for place in _magics(data):
        begin = place + len(MAGIC)
        if allowed_to < begin:  # what was found for an earlier magic holds for one that lies before its end
            run = _ALLOWED_RUN.match(data, begin)
            assert run is not None
            allowed_to = run.end()
        if double_nul < begin:
            nuls = _TWO_NULS.search(data, begin)
            if nuls is None:
                return None
            double_nul = nuls.start()
        if double_nul + 2 <= allowed_to:
            raw = bytes(data[place : double_nul + 2])
            texts = raw.split(b"\0")[1:-2]
            return CloudTag(place, raw, tuple(zip(texts[::2], texts[1::2], strict=False)))
    return None


def tag_findings(data: Buffer, found: Sequence[FoundTag]) -> Iterator[Finding]:
    """Yield what is to be said about the tags in a file's raw bytes."""
    cloud = read_as_cloud(data)
    if not found:
        if cloud is not None and cloud.pairs:
            text = "the vendor's tool takes other text for a firmware tag"
            yield Finding("note", "tag-nonsense", text, cloud.offset)
        return
    first = found[0]
    if cloud is None:
        wrong = _first_forbidden(bytes(data[first.offset : first.offset + first.size]))
        yield Finding(
            "warning",
            "tag-hidden",
            "the vendor's cloud does not recognise the firmware tag: build it without that character",
            first.offset if wrong is None else first.offset + wrong[0],
            "letters, digits, white space, _ . , : - ( )",
            None if wrong is None else wrong[1],
        )
    elif cloud.offset != first.offset or not cloud.is_of(first.tag):
        text = "the vendor's cloud reads another tag out of this file, or less of it"
        yield Finding(
            "warning",
            "tag-read-otherwise",
            text,
            cloud.offset,
            f"{len(first.tag.pairs)} pairs at {first.offset:#x}",
            f"{len(cloud.pairs)} pairs at {cloud.offset:#x}",
        )
    keys = [key for key, _ in first.tag.pairs]
    doubled = sorted({key for key in keys if keys.count(key) > 1})
    if doubled:
        yield Finding("warning", "tag-key-twice", f"the tag has {doubled[0]!a} twice: the first counts", first.offset)
    others = [one for one in found[1:] if one.tag != first.tag]
    if others:
        yield Finding(
            "warning",
            "several-tags",
            "the file has several firmware tags that differ: the first counts",
            others[0].offset,
            first.tag.version,
            others[0].tag.version,
        )
    build = first.tag.build
    if build and not _BUILD.match(build):
        text = "the build time in the tag is not as compilers write it"
        yield Finding("note", "tag-build-time", text, first.offset, "Mmm dd yyyy HH:MM:SS", ascii(build[:32]))


def _first_forbidden(raw: bytes) -> tuple[int, str] | None:
    """Return where in a tag a character stands that the vendor's tool does not take, and which."""
    wrong = _FORBIDDEN.search(raw.replace(b"\0", b"_"))
    if wrong is None:
        return None
    return wrong.start(), ascii(raw[wrong.start() :].decode("utf-8", "replace")[:1])


def append_tag(data: bytes, tag: bytes, *, replace: bool = False) -> bytes:
    """Return the file with the tag at its end; with `replace` in place of the first one that it has.

    Raises `TagConflict` when there is one already, when it is too short to be replaced, or when something in the file
    would be taken for the tag before it.
    """
    found = find_tags(data)
    if found and not replace:
        raise TagConflict(
            "the file has a firmware tag already",
            offset=found[0].offset,
            found=ascii(found[0].tag.version or "")[:80],
            hint="--replace writes over it.",
        )
    if found:
        first = found[0]
        room = _room(data, first)
        if len(tag) > room:
            raise TagConflict(
                "the new tag is longer than the one in the file",
                offset=first.offset,
                expected=f"at most {room} bytes",
                found=len(tag),
                hint="What lies behind it cannot move: build the file again with the new tag.",
            )
        size = max(first.size, len(tag))
        result = data[: first.offset] + tag.ljust(size, b"\0") + data[first.offset + size :]
    else:
        result = data + tag
    _refuse_hidden(result, tag)
    return result


def _room(data: bytes, found: FoundTag) -> int:
    """Return how long a tag may be at the place of another: with the NUL of a C text literal, if there is one."""
    behind = found.offset + found.size
    return found.size + (data[behind : behind + 1] == b"\0")


def _refuse_hidden(data: bytes, tag: bytes) -> None:
    cloud, found = read_as_cloud(data), find_tags(data)
    wanted = parse_tag(tag).tag
    if cloud is not None and cloud.is_of(wanted) and found and found[0].tag == wanted:
        return
    place = cloud.offset if cloud is not None else found[0].offset if found else None
    raise TagConflict(
        "something in the file would be taken for the tag before it",
        offset=place,
        hint="The file has the letters blnkinf and a NUL there; build it without.",
    )


def written_pairs(
    *, mcu: str, fw_type: str, build: str | None = None, library: str | None = None
) -> tuple[tuple[str, str], ...]:
    """Return the pairs of an MCU's tag in the order of the vendor's tool; what is None is left out."""
    given: Mapping[str, str | None] = {MCU_KEY: mcu, TYPE_KEY: fw_type, BUILD_KEY: build, LIBRARY_KEY: library}
    return tuple((key, value) for key in WRITTEN_ORDER if (value := given[key]) is not None)


def parse_build_time(text: str) -> str:
    """Return a build time as compilers write it, the day padded with a blank or a zero. Raises `InvalidInput`."""
    if not _BUILD.match(text):
        raise InvalidInput("not a build time", expected="such as Nov 16 2023 20:35:55", found=ascii(text[:40]))
    return text
