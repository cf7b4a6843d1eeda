"""Our values in DDI's words: links, deployments, histories."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from flota.fleet.executions import Execution
from flota.fleet.maintenance_windows import SLEEP_PARTS, sleep_before_window
from flota.fleet.releases import Release
from flota.fleet.storage import ExecutionEvent
from flota.fleet.update_rules import Showing, Stage, Window
from flota.protocols.ddi import (
    ActionHistory,
    Chunk,
    DdiAddresses,
    DdiArtifact,
    Deployment,
    Handling,
    MaintenanceWindow,
)
from flota.server.api.ddi.reports import OWN_MESSAGE, WAIT_FOR_CONFIRMATION, action_status
from flota.server.updates import Assignment, is_canceling
from flota.trust.signatures import Signature, signatures_as_json

if TYPE_CHECKING:
    from flota.server.api.ddi.caller import Caller
    from flota.server.context import ServerContext

PART: Final = "bApp"
"""The module type that hawkBit writes for applications; old Zephyr takes no other."""

MANIFEST_KEY: Final = "flota.manifest"
SIGNATURES_KEY: Final = "flota.signatures"
"""Chunk metadata: the signed manifest's bytes in base64, its signatures as JSON (docs/reference/manifest.md)."""

HREF_PATH_MAX_LEN: Final = 199
"""Characters of a download link from the tenant on: old Zephyr's buffer."""

SHORT_NAME_LEN: Final = 8
"""With a device name of 128 plain characters, the longest link then has 197."""

HISTORY_MAX: Final = 100
"""Messages in an action history, however many are asked for."""


_WINDOWS: Final = {
    Window.NONE: None,
    Window.OPEN: MaintenanceWindow.AVAILABLE,
    Window.CLOSED: MaintenanceWindow.UNAVAILABLE,
}


@dataclass(frozen=True, slots=True)
class ActionLink:
    """The one link of a poll that says what is to be done: `relation` is a field of `PollAnswer`."""

    relation: str
    href: str


def action_link(assignment: Assignment, addresses: DdiAddresses) -> ActionLink | None:
    """Return the link to show for what is the device's turn; None while its maintenance window is closed.

    What it returns holds until `assignment.showing.valid_until`, if nothing else happens.
    """
    execution, showing = assignment.execution, assignment.showing
    change = change_number(assignment)
    if assignment.cancel_requested:
        return ActionLink("cancel_action", addresses.cancel_action(execution.id, change))
    if showing.stage is Stage.ASK:
        return ActionLink("confirmation_base", addresses.confirmation_base(execution.id, change))
    if showing.stage is Stage.TELL:
        return ActionLink("deployment_base", addresses.deployment_base(execution.id, change))
    return None


@dataclass(frozen=True, slots=True)
class PollSleep:
    """When a device is to come back (seconds), and until when that answer may be given again (None: for good)."""

    seconds: int
    valid_until: datetime | None = None


def poll_sleep(assignment: Assignment | None, interval_s: int, *, now: datetime) -> PollSleep:
    """Return when a device is to come back: sooner than usual when the maintenance window it waits for is near."""
    opens_at = None if assignment is None or assignment.cancel_requested else assignment.showing.opens_at
    if opens_at is None:
        return PollSleep(interval_s)
    shrinks_at = opens_at - timedelta(seconds=SLEEP_PARTS * interval_s)
    return PollSleep(sleep_before_window(opens_at, now=now, interval_s=interval_s), max(shrinks_at, now))


def change_number(assignment: Assignment) -> int:
    """Return the signed 32-bit `c` of an action's links: it changes when what the device shall do changes.

    That is: its release, its cancellation, how urgent it is, whether its maintenance window is open or it is asked.
    """
    execution, showing = assignment.execution, assignment.showing
    told = (showing.stage, showing.download, showing.update, showing.window)
    text = f"{execution.id}/{execution.release_id}/{is_canceling(execution)}/" + "/".join(one.value for one in told)
    unsigned = zlib.crc32(text.encode())
    return unsigned - (1 << 32) if unsigned >= 1 << 31 else unsigned


def deployment_of(
    execution: Execution,
    release: Release,
    addresses: DdiAddresses,
    *,
    showing: Showing | None = None,
    history: ActionHistory | None = None,
) -> Deployment:
    """Return the execution as a deployment of one chunk with one artifact: what every client can take.

    It is forced where `showing` does not say otherwise.
    """
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
        download=Handling.FORCED if showing is None else Handling(showing.download.value),
        update=Handling.FORCED if showing is None else Handling(showing.update.value),
        chunks=(chunk,),
        maintenance_window=None if showing is None else _WINDOWS[showing.window],
        history=history,
    )


def artifact_of(release: Release, addresses: DdiAddresses) -> DdiArtifact:
    """Return the release's artifact with its links: `download-http` always, `download` too when the device uses TLS.

    A device that came without TLS is not sent to it: it has not shown that it trusts the server's certificate, and most
    clients prefer `download` when it is there.
    """
    artifact = release.artifact
    name = link_name(release, addresses)
    href = addresses.artifact(release.id, name)
    md5sum = addresses.artifact_md5sum(release.id, name)
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


def link_name(release: Release, addresses: DdiAddresses) -> str:
    """Return what the file is called in its link: its name, or a short one where the link would be too long."""
    path = addresses.artifact(release.id, release.filename).removeprefix(addresses.server)
    return release.filename if len(path) <= HREF_PATH_MAX_LEN else short_name(release)


def short_name(release: Release) -> str:
    """Return the name under which a file can be had too: the first digits of its SHA-256."""
    return release.artifact.digests.sha256[:SHORT_NAME_LEN]


def signatures_of(release: Release) -> str:
    """Return the release's signatures in the JSON form that travels beside a manifest."""
    return signatures_as_json(
        [Signature(one.key_id, one.algorithm, base64.b64decode(one.signature)) for one in release.signatures]
    )


async def history_wanted(
    context: ServerContext, caller: Caller, execution: Execution, *, waits: bool = False
) -> ActionHistory | None:
    """Return the history that a request asks for with `actionHistory=N`; None when it asks for none.

    0 is the default and what no number means; negative is all. `waits`: the device is being asked.
    """
    text = caller.request.query_params.get("actionHistory", "0")
    wanted = int(text) if len(text) <= 10 and text.isascii() and text.removeprefix("-").isdecimal() else 0
    if not wanted:
        return None
    async with context.storage.reading() as transaction:
        events = await transaction.execution_events(caller.scope, execution.id)
    history = history_of(execution, events, wanted)
    return replace(history, status=WAIT_FOR_CONFIRMATION) if waits else history


def history_of(execution: Execution, events: Sequence[ExecutionEvent], count: int) -> ActionHistory:
    """Return the action's status and its newest `count` messages (all if negative), newest first, ours left out."""
    told = (event.message for event in reversed(events))
    messages = [message for message in told if message and not message.startswith(OWN_MESSAGE)]
    kept = HISTORY_MAX if count < 0 else min(count, HISTORY_MAX)
    return ActionHistory(action_status(execution), tuple(messages[:kept]))
