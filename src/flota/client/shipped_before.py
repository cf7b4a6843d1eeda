"""What an earlier `flota ship` of the same release to the same selection has begun or done already."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from flota.client.management import ManagementClient
from flota.client.schemas import Device, Release, Rollout
from flota.errors import Conflict
from flota.versions import version_order

NAMES_SHOWN: Final = 10
ROUTE_OF_REPORTS: Final = "ddi"
"""Devices of this route say how an update ended; what else they say about themselves is told seldom, in any words."""

_MORE = re.compile(r" and (\d+) more\Z")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which devices are meant: names, or a selector. Exactly one is given."""

    devices: Sequence[str] | None = None
    select: str | None = None


def rollout_to_reuse(
    client: ManagementClient,
    release: Release,
    selection: Selection,
    *,
    name: str | None = None,
    say: Callable[[str], None],
) -> Rollout | None:
    """Return the rollout that makes another one needless: open and of the same, or done with every device up to date.

    `name`, if given, has to be the rollout's name as well: another name asks for another rollout. Returns None when a
    new rollout is needed; `say` then gets the reason, if there was an earlier one. Raises `Conflict` if an open rollout
    may be of the same devices and nobody can tell.
    """
    rollouts = client.list_rollouts()
    candidates = [
        one
        for one in rollouts
        if one.release == release.id and (name is None or one.name == name) and _may_be_of(one, selection)
    ]
    for one in reversed(candidates):
        if not one.is_final and _is_certainly_of(client, one, selection):
            return one
    ended = [one for one in candidates if one.is_final]
    if not ended:
        return None
    last = ended[-1]
    if last.state != "succeeded":
        say(f"before     rollout {last.name} ({last.id}) ended {last.state}: it is tried again")
        return None
    chosen = _chosen(client, release, selection)
    behind = _behind(client, release, chosen, [one for one in rollouts if one.type == release.type])
    if chosen and not behind:
        say(f"done       rollout {last.name} ({last.id}) succeeded, all selected devices run {release.version} already")
        return last
    if behind:
        say(
            f"before     rollout {last.name} ({last.id}) succeeded, but {len(behind)} of {len(chosen)} selected "
            f"devices are not known to run {release.version}: {_shortened(behind)}"
        )
    return None


def _may_be_of(rollout: Rollout, selection: Selection) -> bool:
    """Whether what a rollout shows of its selection agrees with `selection`."""
    if selection.devices is None:
        return rollout.selector.split() == (selection.select or "").split()
    if rollout.devices != len(selection.devices):
        return False
    if _MORE.search(rollout.selector):
        return rollout.selector == _shortened(selection.devices)
    return set(rollout.selector.split(", ")) == set(selection.devices)


def _is_certainly_of(client: ManagementClient, rollout: Rollout, selection: Selection) -> bool:
    """Whether an open rollout that may be of `selection` is; a long list of names is shown cut off."""
    if selection.devices is None or not _MORE.search(rollout.selector):
        return True
    seen = {one.device for one in client.executions(rollout.id)}
    if not seen <= set(selection.devices):
        return False
    if len(seen) == rollout.devices:
        return True
    raise Conflict(
        f"rollout {rollout.name} of this release is open, and may be of the same devices",
        found=f"{rollout.selector}; its later waves are not open yet",
        hint=f"Follow it with `flota rollout watch {rollout.id}`, or begin another with --name NAME.",
    )


def _chosen(client: ManagementClient, release: Release, selection: Selection) -> list[Device]:
    """Return the accepted devices that the selection means now; empty when a named one cannot take part."""
    listed = client.list_devices(type_name=None if selection.select else release.type, select=selection.select)
    able = [one for one in listed if one.type == release.type and one.state == "accepted"]
    if selection.devices is None:
        return able
    named = [one for one in able if one.name in set(selection.devices)]
    return named if len(named) == len(set(selection.devices)) else []


def _behind(
    client: ManagementClient, release: Release, devices: Iterable[Device], rollouts: Sequence[Rollout]
) -> list[str]:
    """Return the names of the devices that are not known to run the release."""
    first = min((one.id for one in rollouts if one.release == release.id), default=0)
    newest = {
        execution.device: execution
        for one in sorted(rollouts, key=lambda rollout: rollout.id)
        if one.id >= first
        for execution in client.executions(one.id)
    }
    updated = {name for name, last in newest.items() if last.release == release.id and last.state == "SUCCEEDED"}
    return [one.name for one in devices if not _runs(one, release, updated=one.name in updated)]


def _runs(device: Device, release: Release, *, updated: bool) -> bool:
    """Whether a device runs a release, by what it says of itself, else by how its newest update ended (`updated`)."""
    artifact = release.artifact
    same = (
        device.running_version is not None and version_order(device.running_version) == version_order(release.version),
        device.running_md5 == artifact.md5,
        device.running_hash is not None and device.running_hash in (artifact.sha256, artifact.validation_hash),
    )
    told = (device.running_version, device.running_md5, device.running_hash)
    if device.last_route == ROUTE_OF_REPORTS or not any(told):
        return updated
    return any(same)


def _shortened(names: Sequence[str]) -> str:
    """Return names as the server shortens them in a rollout's `selector`."""
    shown = ", ".join(names[:NAMES_SHOWN])
    return f"{shown} and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else shown
