"""deploymentBase and cancelAction: what to install, and what to stop."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from flota.protocols.ddi.addresses import parse_action_id
from flota.protocols.ddi.reading import decode
from flota.protocols.malformed import MalformedMessage

_HEX_LEN: Final = {"sha1": 40, "md5": 32, "sha256": 64}
_HEX = re.compile(r"[0-9a-f]*\Z")

SIZE_MAX_BYTES: Final = (1 << 63) - 1


class Handling(enum.StrEnum):
    """How urgently to download or install."""

    SKIP = "skip"
    ATTEMPT = "attempt"
    FORCED = "forced"


class MaintenanceWindow(enum.StrEnum):
    """Whether the maintenance window is open; absent when the action has none."""

    AVAILABLE = "available"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class DdiArtifact:
    """One file: size in bytes, lower-case hex digests, absolute links.

    `download` and `md5sum` are given when the server has a TLS endpoint, `download_http` and `md5sum_http` always.
    """

    filename: str
    size: int
    sha256: str
    sha1: str
    md5: str
    download_http: str | None = None
    md5sum_http: str | None = None
    download: str | None = None
    md5sum: str | None = None

    def __post_init__(self) -> None:
        for name, length in _HEX_LEN.items():
            digest = getattr(self, name)
            if len(digest) != length or not _HEX.match(digest):
                raise MalformedMessage(
                    f"not a {name}", expected=f"{length} lower-case hex digits", found=repr(digest[:80])
                )
        if not 0 <= self.size <= SIZE_MAX_BYTES:
            raise MalformedMessage("not a file size", found=self.size)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A software module. `part` is its type as clients know it, e.g. `bApp`, `os`, `firmware`."""

    part: str
    name: str
    version: str
    artifacts: tuple[DdiArtifact, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ActionHistory:
    """The action's state in the server's words, and messages, newest first."""

    status: str
    messages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Deployment:
    """One action: what to install."""

    action_id: int
    download: Handling
    update: Handling
    chunks: tuple[Chunk, ...]
    maintenance_window: MaintenanceWindow | None = None
    history: ActionHistory | None = None


def pack_deployment(deployment: Deployment, *, member: str = "deployment") -> bytes:
    """Return the compact JSON of a deployment, members in the order that hawkBit writes them.

    `member` is `confirmation` where the same is asked about instead of told.
    """
    body: dict[str, object] = {"download": deployment.download.value, "update": deployment.update.value}
    if deployment.maintenance_window is not None:
        body["maintenanceWindow"] = deployment.maintenance_window.value
    body["chunks"] = [_chunk_as_json(chunk) for chunk in deployment.chunks]
    message: dict[str, object] = {"id": str(deployment.action_id), member: body}
    if deployment.history is not None:
        message["actionHistory"] = {"status": deployment.history.status, "messages": list(deployment.history.messages)}
    return msgspec.json.encode(message)


def _chunk_as_json(chunk: Chunk) -> dict[str, object]:
    message: dict[str, object] = {
        "part": chunk.part,
        "version": chunk.version,
        "name": chunk.name,
        "artifacts": [artifact_as_json(artifact) for artifact in chunk.artifacts],
    }
    if chunk.metadata:
        message["metadata"] = [{"key": key, "value": value} for key, value in chunk.metadata.items()]
    return message


_ARTIFACT_RELATIONS: Final = (
    ("download", "download"),
    ("md5sum", "md5sum"),
    ("download-http", "download_http"),
    ("md5sum-http", "md5sum_http"),
)


def artifact_as_json(artifact: DdiArtifact) -> dict[str, object]:
    """Return the JSON form of one artifact, which the list of a module's artifacts uses too."""
    links = {
        relation: {"href": href}
        for relation, name in _ARTIFACT_RELATIONS
        if (href := getattr(artifact, name)) is not None
    }
    return {
        "filename": artifact.filename,
        "hashes": {"sha1": artifact.sha1, "md5": artifact.md5, "sha256": artifact.sha256},
        "size": artifact.size,
        "_links": links,
    }


class _Link(msgspec.Struct):
    href: str


class _ArtifactLinks(msgspec.Struct):
    download: _Link | None = None
    md5sum: _Link | None = None
    download_http: _Link | None = msgspec.field(default=None, name="download-http")
    md5sum_http: _Link | None = msgspec.field(default=None, name="md5sum-http")


class _Hashes(msgspec.Struct):
    sha1: str
    md5: str
    sha256: str


class _Artifact(msgspec.Struct):
    filename: str
    hashes: _Hashes
    size: int
    links: _ArtifactLinks = msgspec.field(default_factory=_ArtifactLinks, name="_links")


class _Metadata(msgspec.Struct):
    key: str
    value: str


class _Chunk(msgspec.Struct):
    part: str
    version: str
    name: str
    artifacts: list[_Artifact] = []
    metadata: list[_Metadata] = []


class _Deployment(msgspec.Struct):
    download: Handling
    update: Handling
    chunks: list[_Chunk]
    maintenance_window: MaintenanceWindow | None = msgspec.field(default=None, name="maintenanceWindow")


class _History(msgspec.Struct):
    status: str
    messages: list[str] = []


class _Message(msgspec.Struct):
    id: str
    deployment: _Deployment
    history: _History | None = msgspec.field(default=None, name="actionHistory")


class _AskedMessage(msgspec.Struct):
    id: str
    deployment: _Deployment = msgspec.field(name="confirmation")
    history: _History | None = msgspec.field(default=None, name="actionHistory")


class _Cancel(msgspec.Struct):
    stop_id: str = msgspec.field(name="stopId")


class _CancelMessage(msgspec.Struct):
    id: str
    cancel_action: _Cancel = msgspec.field(name="cancelAction")


_DEPLOYMENT_DECODERS: Final[dict[str, msgspec.json.Decoder[_Message] | msgspec.json.Decoder[_AskedMessage]]] = {
    "deployment": msgspec.json.Decoder(_Message),
    "confirmation": msgspec.json.Decoder(_AskedMessage),
}
_CANCEL_DECODER = msgspec.json.Decoder(_CancelMessage)


def parse_deployment(body: bytes) -> Deployment:
    """Return the deployment that a server offers. Unknown members are ignored; raises `MalformedMessage`."""
    return parse_deployment_like(body, member="deployment")


def parse_deployment_like(body: bytes, *, member: str) -> Deployment:
    """Return what stands in `member`: a `deployment`, or a `confirmation` that asks about one."""
    decoder: msgspec.json.Decoder[Any] = _DEPLOYMENT_DECODERS[member]
    message: _Message | _AskedMessage = decode(decoder, body, member)
    history = message.history
    return Deployment(
        action_id=parse_action_id(message.id),
        download=message.deployment.download,
        update=message.deployment.update,
        chunks=tuple(_chunk(chunk) for chunk in message.deployment.chunks),
        maintenance_window=message.deployment.maintenance_window,
        history=ActionHistory(history.status, tuple(history.messages)) if history else None,
    )


def _chunk(chunk: _Chunk) -> Chunk:
    return Chunk(
        part=chunk.part,
        name=chunk.name,
        version=chunk.version,
        artifacts=tuple(_artifact(artifact) for artifact in chunk.artifacts),
        metadata={entry.key: entry.value for entry in chunk.metadata},
    )


def _artifact(artifact: _Artifact) -> DdiArtifact:
    hrefs = {name: link.href for _, name in _ARTIFACT_RELATIONS if (link := getattr(artifact.links, name)) is not None}
    return DdiArtifact(
        filename=artifact.filename,
        size=artifact.size,
        sha256=artifact.hashes.sha256,
        sha1=artifact.hashes.sha1,
        md5=artifact.hashes.md5,
        **hrefs,
    )


@dataclass(frozen=True, slots=True)
class CancelAction:
    """The action `stop_id` shall be stopped; `action_id` is the same in hawkBit."""

    action_id: int
    stop_id: int


def pack_cancel_action(cancel: CancelAction) -> bytes:
    """Return the compact JSON of a cancellation; both ids are strings."""
    return msgspec.json.encode({"id": str(cancel.action_id), "cancelAction": {"stopId": str(cancel.stop_id)}})


def parse_cancel_action(body: bytes) -> CancelAction:
    """Return which action a server wants stopped. Raises `MalformedMessage`."""
    message = decode(_CANCEL_DECODER, body, "cancel action")
    return CancelAction(parse_action_id(message.id), parse_action_id(message.cancel_action.stop_id))
