"""SBOMs (software bills of materials): CycloneDX and SPDX as JSON; which of them, which version, how many components.

Only what is shown about an SBOM is read out of it; the file itself is kept as it came. What it claims about itself
decides, never its file name.

Source: docs/reference/sbom.md; CycloneDX/specification:schema/bom-1.6.schema.json;
spdx/spdx-spec:schemas/spdx-schema.json; spdx/spdx-3-model (the context and `@graph` of SPDX 3).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeVar

import msgspec

from flota.errors import InvalidInput, TooLarge
from flota.images.text import cleaned_text

Buffer = bytes | bytearray | memoryview

SBOM_MAX_BYTES: Final = 16 * 1024 * 1024
"""SBOMs of whole firmware builds, every source file listed, stay below 10 MB; most have less than one."""

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_CYCLONEDX_VERSION: Final = re.compile(r"1\.[0-9]{1,2}\Z")
_SPDX_2_VERSION: Final = re.compile(r"SPDX-(2\.[0-9]{1,2})\Z")
_SPDX_3_VERSION: Final = re.compile(r"3\.[0-9]{1,2}(?:\.[0-9]{1,2})?\Z")
_SPDX_3_CONTEXT: Final = "spdx.org/rdf/3."
_SPDX_3_PACKAGES: Final = ("software_Package", "/Package")
"""How the type of a package ends in SPDX 3: short by its context, or as the whole address."""

_EXPECTED: Final = "CycloneDX (1.2 or later) or SPDX (2.x, 3.x) as JSON"


class SbomFormat(enum.StrEnum):
    """Which of the two standards."""

    CYCLONEDX = "cyclonedx"
    SPDX = "spdx"

    @property
    def label(self) -> str:
        """Its name as people write it."""
        return {SbomFormat.CYCLONEDX: "CycloneDX", SbomFormat.SPDX: "SPDX"}[self]

    def media_type(self, spec_version: str) -> str:
        """Return the registered media type of a file of this format as JSON."""
        if self is SbomFormat.CYCLONEDX:
            return f"application/vnd.cyclonedx+json; version={spec_version}"
        return "application/spdx+json"


class BadSbom(InvalidInput):
    """The file says that it is an SBOM, but it is not a well-formed one."""

    code = "bad-sbom"


class UnknownSbomFormat(BadSbom):
    """The file is no SBOM in one of the formats that are read."""

    code = "unknown-sbom-format"


@dataclass(frozen=True, slots=True)
class Sbom:
    """What is shown about an SBOM. `component_count`: CycloneDX components, nested ones included; SPDX packages."""

    format: SbomFormat
    spec_version: str
    component_count: int


class _Named(msgspec.Struct, gc=False):
    name: str


class _Component(msgspec.Struct, gc=False):
    name: str
    components: list[_Component] | None = None  # no empty list each: a file can have a million of them


class _CycloneDx(msgspec.Struct):
    components: list[_Component] = []


class _Spdx2(msgspec.Struct):
    SPDXID: str
    packages: list[_Named] = []


class _Element(msgspec.Struct, gc=False):
    type: str = ""
    specVersion: str = ""  # noqa: N815 - the name in the file


class _Spdx3(msgspec.Struct):
    graph: list[_Element] = msgspec.field(name="@graph", default_factory=list)


class _Claims(msgspec.Struct):
    """What a file says it is, read before anything else of it."""

    bom_format: object = msgspec.field(name="bomFormat", default=None)
    spec_version: object = msgspec.field(name="specVersion", default=None)
    spdx_version: object = msgspec.field(name="spdxVersion", default=None)
    context: object = msgspec.field(name="@context", default=None)


_S = TypeVar("_S", bound=msgspec.Struct)

_OTHER_FORMS: Final = MappingProxyType(
    {
        b"<": "XML and RDF are not read: convert it to JSON, e.g. with `cyclonedx convert --output-format json`.",
        b"SPDXVersion:": "Tag-value SPDX is not read: convert it to JSON, e.g. with `pyspdxtools -i IN -o OUT.json`.",
        b"\xff\xfe": "Save it as UTF-8.",
        b"\xfe\xff": "Save it as UTF-8.",
    }
)
"""How files begin that people mistake for the right ones -> what to do about it."""

_ANY_OTHER: Final = "Most build and scan tools write one when asked: look for cyclonedx-json or spdx-json."


def parse_sbom(data: Buffer) -> Sbom:
    """Return what the SBOM in `data` (UTF-8, at most 16 MiB) says about itself.

    Raises `TooLarge`, `UnknownSbomFormat` for anything that is no CycloneDX or SPDX JSON, `BadSbom` for one that is
    not well formed.
    """
    if len(data) > SBOM_MAX_BYTES:
        raise TooLarge("the SBOM is too large", expected=f"at most {SBOM_MAX_BYTES} bytes", found=f"{len(data)} bytes")
    content = memoryview(data)
    if bytes(content[:3]) == _BYTE_ORDER_MARK:
        content = content[3:]
    _require_utf8(content)
    claims = _claims(content)
    said = [name for name in ("bom_format", "spdx_version", "context") if getattr(claims, name) is not None]
    if claims.bom_format == "CycloneDX" and "spdx_version" not in said:
        return _cyclonedx(content, claims)
    if claims.spdx_version is not None and claims.bom_format is None:
        return _spdx_2(content, claims)
    if claims.bom_format is None and _SPDX_3_CONTEXT in _context_text(claims.context):
        return _spdx_3(content)
    found = "both at once" if len(said) > 1 else _shown(getattr(claims, said[0])) if said else "JSON of another kind"
    raise UnknownSbomFormat("this is no SBOM that Flota reads", expected=_EXPECTED, found=found, hint=_ANY_OTHER)


def _require_utf8(content: memoryview) -> None:
    """Check all of it: the JSON reader passes over members that it is not asked for."""
    try:
        str(content, "utf-8")
    except UnicodeDecodeError as error:
        raise UnknownSbomFormat(
            "this is no SBOM that Flota reads",
            offset=error.start,
            expected="JSON in UTF-8",
            found=f"byte {content[error.start]:#04x}",
            hint=_hint(content),
        ) from error


def _claims(content: memoryview) -> _Claims:
    """Return what the file says it is. Raises `UnknownSbomFormat` for what is not JSON, or not an object."""
    try:
        return msgspec.json.decode(content, type=_Claims)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UnknownSbomFormat(
            "this is no SBOM that Flota reads",
            expected=_EXPECTED,
            found="an empty file" if not len(content) else _fault(error),
            hint=_hint(content),
        ) from error


def _hint(content: memoryview) -> str:
    start = bytes(content[:64]).lstrip()
    return next((advice for mark, advice in _OTHER_FORMS.items() if start.startswith(mark)), _ANY_OTHER)


def _cyclonedx(content: memoryview, claims: _Claims) -> Sbom:
    version = claims.spec_version
    if not isinstance(version, str) or not _CYCLONEDX_VERSION.match(version):
        raise BadSbom("the CycloneDX version is not one", expected="specVersion 1.2 or later", found=_shown(version))
    document = _decoded(content, _CycloneDx, "CycloneDX")
    return Sbom(SbomFormat.CYCLONEDX, version, _count(document.components))


def _spdx_2(content: memoryview, claims: _Claims) -> Sbom:
    version = _SPDX_2_VERSION.match(claims.spdx_version) if isinstance(claims.spdx_version, str) else None
    if version is None:
        raise BadSbom("the SPDX version is not one", expected="spdxVersion SPDX-2.x", found=_shown(claims.spdx_version))
    return Sbom(SbomFormat.SPDX, version[1], len(_decoded(content, _Spdx2, "SPDX").packages))


def _spdx_3(content: memoryview) -> Sbom:
    elements = _decoded(content, _Spdx3, "SPDX").graph
    version = next((element.specVersion for element in elements if element.specVersion), "")
    if not _SPDX_3_VERSION.match(version):
        raise BadSbom(
            "the SPDX version is not one", expected="a CreationInfo with specVersion 3.x", found=_shown(version)
        )
    return Sbom(SbomFormat.SPDX, version, sum(element.type.endswith(_SPDX_3_PACKAGES) for element in elements))


def _decoded(content: memoryview, kind: type[_S], title: str) -> _S:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadSbom(f"the {title} file is not well formed", found=_fault(error)) from error


def _count(components: Sequence[_Component]) -> int:
    count, waiting = 0, list(components)
    while waiting:
        component = waiting.pop()
        count += 1
        waiting += component.components or ()
    return count


def _context_text(context: object) -> str:
    """Return the JSON-LD context's addresses: it is one, or a list of several things."""
    parts = context if isinstance(context, list) else [context]
    return " ".join(part for part in parts if isinstance(part, str))


def _fault(error: Exception) -> str:
    return "JSON nested too deeply" if isinstance(error, RecursionError) else cleaned_text(str(error), max_chars=160)


def _shown(value: object) -> str:
    if isinstance(value, str):
        return repr(cleaned_text(value, max_chars=64)) if value else "none"
    return "none" if value is None else "no text"
