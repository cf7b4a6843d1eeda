"""Our values in DDI's words: links, deployments, histories."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import Final

from flota.fleet.executions import Execution
from flota.fleet.releases import Release
from flota.fleet.storage import ExecutionEvent
from flota.protocols.ddi import ActionHistory, Chunk, DdiAddresses, DdiArtifact, Deployment, Handling
from flota.server.api.ddi.reports import OWN_MESSAGE, action_status
from flota.server.updates import is_canceling
from flota.trust.signatures import Signature, signatures_as_json

PART: Final = "bApp"
"""The module type that hawkBit writes for applications; old Zephyr takes no other."""

MANIFEST_KEY: Final = "flota.manifest"
SIGNATURES_KEY: Final = "flota.signatures"
"""Chunk metadata: the signed manifest's bytes in base64, its signatures as JSON (docs/reference/manifest.md)."""

HISTORY_MAX: Final = 100
"""Messages in an action history, however many are asked for."""


def change_number(execution: Execution) -> int:
    """Return the signed 32-bit `c` of an action's links: it changes when what the device shall do changes."""
    text = f"{execution.id}/{execution.release_id}/{is_canceling(execution)}"
    unsigned = zlib.crc32(text.encode())
    return unsigned - (1 << 32) if unsigned >= 1 << 31 else unsigned


def deployment_of(
    execution: Execution,
    release: Release,
    addresses: DdiAddresses,
    *,
    history: ActionHistory | None = None,
) -> Deployment:
    """Return the execution as a forced deployment of one chunk with one artifact: what every client can take."""
    chunk = Chunk(
        part=PART,
        name=release.type_name,
        version=release.version,
        artifacts=(artifact_of(release, addresses),),
        metadata={
            MANIFEST_KEY: base64.b64encode(release.manifest).decode(),
            SIGNATURES_KEY: signatures_of(release),
        },
    )
    return Deployment(
        action_id=execution.id,
        download=Handling.FORCED,
        update=Handling.FORCED,
        chunks=(chunk,),
        history=history,
    )


def artifact_of(release: Release, addresses: DdiAddresses) -> DdiArtifact:
    """Return the release's artifact with its links: `download-http` always, `download` too when the device uses TLS.

    A device that came without TLS is not sent to it: it has not shown that it trusts the server's certificate, and most
    clients prefer `download` when it is there.
    """
    artifact = release.artifact
    href = addresses.artifact(release.id, release.filename)
    md5sum = addresses.artifact_md5sum(release.id, release.filename)
    is_tls = addresses.server.startswith("https://")
    return DdiArtifact(
        filename=release.filename,
        size=artifact.digests.size,
        sha256=artifact.digests.sha256,
        sha1=artifact.digests.sha1,
        md5=artifact.digests.md5,
        download_http=href,
        md5sum_http=md5sum,
        download=href if is_tls else None,
        md5sum=md5sum if is_tls else None,
    )


def signatures_of(release: Release) -> str:
    """Return the release's signatures in the JSON form that travels beside a manifest."""
    return signatures_as_json(
        [Signature(one.key_id, one.algorithm, base64.b64decode(one.signature)) for one in release.signatures]
    )


def history_of(execution: Execution, events: Sequence[ExecutionEvent], count: int) -> ActionHistory:
    """Return the action's status and its newest `count` messages (all if negative), newest first, ours left out."""
    told = (event.message for event in reversed(events))
    messages = [message for message in told if message and not message.startswith(OWN_MESSAGE)]
    kept = HISTORY_MAX if count < 0 else min(count, HISTORY_MAX)
    return ActionHistory(action_status(execution), tuple(messages[:kept]))
