"""`flota viam`: updates of Viam's micro-RDK: the configuration it needs, printed or set through Viam's cloud."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from flota.cli.connection import AsJson, CaCert, Server, Token, connect
from flota.cli.output import EXIT_DONE, EXIT_FAILED, echo, echo_json, print_table, warn
from flota.errors import Conflict, FlotaError, WrongUse

if TYPE_CHECKING:
    from flota.client.management import ManagementClient
    from flota.client.schemas import Execution, ViamLink, ViamLinks
    from flota.transports.viam_cloud import CloudCredentials

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Viam's micro-RDK: its configuration, evidence.")

PART_LABEL: Final = "viam-part"
"""Label of a device that names its machine part in Viam's cloud."""

KEY_VARIABLE: Final = "VIAM_API_KEY"
KEY_ID_VARIABLE: Final = "VIAM_API_KEY_ID"
CLOUD_VARIABLE: Final = "VIAM_CLOUD"

Release = Annotated[str | None, typer.Argument(metavar="[RELEASE]", help="Its number or TYPE@VERSION.")]
OneDevice = Annotated[str | None, typer.Option("--device", metavar="D", help="For this device only.")]
InRollout = Annotated[
    str | None, typer.Option("--rollout", metavar="R", help="For every device with an open execution in this rollout.")
]
BaseUrl = Annotated[
    str | None,
    typer.Option("--url", metavar="BASE", help="The address that devices shall use, e.g. http://10.0.0.5:8080"),
]
PartId = Annotated[
    str | None, typer.Option("--part-id", metavar="ID", help=f"The machine part in Viam's cloud [label {PART_LABEL}].")
]


@app.command("config")
def config(
    release: Release = None,
    device: OneDevice = None,
    rollout: InRollout = None,
    url: BaseUrl = None,
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Print the entry for the array `services` of a machine's configuration in Viam's app.

    A device's own link needs an open execution, so make a rollout first. Without --device and --rollout the link is
    shared: every device may use it, and no device's progress can be told. With --json and --rollout: one line of JSON
    for each device.

    flota viam config esp32@2.0 --device pump-1

    flota viam config --rollout esp32-2.0 --json

    flota viam config esp32@2.0 --url http://192.168.1.5:8080
    """
    with connect(server, token, cacert) as client:
        made = _links(client, release, device, rollout, url)
    for note in made.warnings:
        warn(f"note: {note}")
    if as_json and rollout is not None:
        import json

        for one in made.items:
            echo(json.dumps({"device": one.device, "execution": one.execution, "service": one.service}))
        return
    for one in made.items:
        if len(made.items) > 1:
            echo(f"# {one.device}, execution {one.execution}")
        echo_json(one.service)


@app.command("apply")
def apply(
    release: Release = None,
    device: OneDevice = None,
    rollout: InRollout = None,
    part_id: PartId = None,
    url: BaseUrl = None,
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Set the configuration of machines in Viam's cloud; the devices update within seconds.

    Needs the extra `viam` (pip install 'flota[viam]') and an API key in VIAM_API_KEY_ID and VIAM_API_KEY. Only the
    update service changes, and what the cloud has afterwards is read back.

    flota viam apply esp32@2.0 --device pump-1 --part-id 1f0c…

    flota viam apply --rollout esp32-2.0
    """
    if device is None and rollout is None:
        raise WrongUse("no device is named", expected="--device or --rollout", hint="A shared link is set by hand.")
    if part_id is not None and device is None:
        raise WrongUse("--part-id is for one device", expected="--device too")
    credentials = _credentials()
    with connect(server, token, cacert) as client:
        made = _links(client, release, device, rollout, url)
    for note in made.warnings:
        warn(f"note: {note}")
    results = asyncio.run(_apply_all(credentials, made.items, part_id))
    if as_json:
        echo_json([{"device": name, "part": part, "result": result} for name, part, result in results])
    else:
        print_table(["device", "part", "result"], results)
    raise typer.Exit(EXIT_DONE if all(result in _APPLIED for _, _, result in results) else EXIT_FAILED)


@app.command("evidence")
def evidence(
    rollout: Annotated[str, typer.Option("--rollout", metavar="R", help="The rollout's number or name.")],
    device: OneDevice = None,
    part_id: PartId = None,
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Ask Viam's cloud when devices were last online, and turn inferred outcomes into reported ones.

    A device that was online after its success had been inferred has come back. Needs what `flota viam apply` needs.

    flota viam evidence --rollout esp32-2.0
    """
    if part_id is not None and device is None:
        raise WrongUse("--part-id is for one device", expected="--device too")
    credentials = _credentials()
    with connect(server, token, cacert) as client:
        found = [
            one
            for one in client.executions(client.rollout(rollout).id)
            if one.basis == "inferred" and one.state == "SUCCEEDED" and device in (None, one.device)
        ]
        parts = {one.id: part_id or client.device(one.device).labels.get(PART_LABEL) for one in found}
        seen = asyncio.run(_last_online(credentials, parts))
        rows = [(one.device, *_confirm(client, one, seen[one.id])) for one in found]
    if as_json:
        echo_json([{"device": name, "basis": basis, "note": note} for name, basis, note in rows])
    elif rows:
        print_table(["device", "basis", "note"], rows)
    else:
        echo("no outcome of this rollout waits for evidence")


_APPLIED: Final = ("set", "was set already")


def _links(
    client: ManagementClient, release: str | None, device: str | None, rollout: str | None, url: str | None
) -> ViamLinks:
    if release is None and rollout is None:
        raise WrongUse("nothing is named", expected="a release or --rollout")
    return client.viam_links(release, device=device, rollout=rollout, base_url=url)


def _credentials() -> CloudCredentials:
    from flota.transports.viam_cloud import CloudCredentials

    key_id, key = os.environ.get(KEY_ID_VARIABLE, ""), os.environ.get(KEY_VARIABLE, "")
    if not key_id or not key:
        missing = " and ".join(name for name, value in ((KEY_ID_VARIABLE, key_id), (KEY_VARIABLE, key)) if not value)
        raise WrongUse(
            "no credentials for Viam's cloud",
            expected=f"{KEY_ID_VARIABLE} and {KEY_VARIABLE}",
            found=f"{missing} not set",
            hint="Make an API key in the machine's or organisation's settings in Viam's app.",
        )
    return CloudCredentials(key_id, key)


async def _apply_all(
    credentials: CloudCredentials, links: Sequence[ViamLink], part_id: str | None
) -> list[tuple[str, str, str]]:
    """Set one machine after the other; returns device, part and result of each, and goes on after a failure."""
    from flota.transports.viam_cloud import DEFAULT_CLOUD, apply_service, open_viam_cloud

    results = []
    async with open_viam_cloud(credentials, url=os.environ.get(CLOUD_VARIABLE) or DEFAULT_CLOUD) as cloud:
        for link in links:
            part = part_id or link.labels.get(PART_LABEL)
            if part is None:
                results.append((str(link.device), "-", f"no part known: give --part-id or the label {PART_LABEL}"))
                continue
            try:
                changed = await apply_service(cloud, part, link.service)
                results.append((str(link.device), part, "set" if changed else "was set already"))
            except FlotaError as error:
                results.append((str(link.device), part, f"failed: {error}"))
    return results


async def _last_online(credentials: CloudCredentials, parts: dict[int, str | None]) -> dict[int, datetime | str]:
    """Return by execution when its machine part was last online, or why that is not known."""
    from flota.transports.viam_cloud import DEFAULT_CLOUD, open_viam_cloud

    seen: dict[int, datetime | str] = {}
    async with open_viam_cloud(credentials, url=os.environ.get(CLOUD_VARIABLE) or DEFAULT_CLOUD) as cloud:
        for execution_id, part in parts.items():
            if part is None:
                seen[execution_id] = f"no part known: give --part-id or the label {PART_LABEL}"
                continue
            try:
                seen[execution_id] = (await cloud.part(part)).last_online_at or "never online"
            except FlotaError as error:
                seen[execution_id] = str(error)
    return seen


def _confirm(client: ManagementClient, execution: Execution, seen: datetime | str) -> tuple[str, str]:
    """Return the basis afterwards and a note."""
    if isinstance(seen, str):
        return "inferred", seen
    try:
        client.add_evidence(execution.id, last_online_at=seen, source="viam")
    except Conflict as conflict:
        return "inferred", str(conflict)
    return "reported", f"online at {seen.isoformat(' ', 'seconds')}"
