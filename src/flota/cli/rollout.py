"""`flota rollout`: offer a release to devices, watch it, stop it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flota.cli.connection import AsJson, CaCert, Server, Token, check_option, comma_list, connect, utc
from flota.cli.output import echo, echo_json, print_table

if TYPE_CHECKING:
    from flota.client.schemas import Rollout, Shipment

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Rollouts: create, watch, pause, cancel.")

Reference = Annotated[str, typer.Argument(metavar="ROLLOUT", help="Its number or name.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="For the audit trail.")]
Waves = Annotated[str, typer.Option("--waves", metavar="SIZES", help="Rising totals, counts or shares: 2,50%,100%.")]
AbortAfter = Annotated[
    int, typer.Option("--abort-after", min=1, metavar="N", help="Stop when this many devices have failed.")
]


@app.command("create")
def create(
    release: Annotated[
        str, typer.Option("--release", metavar="R", help="A published release: number or TYPE@VERSION.")
    ],
    devices: Annotated[
        str | None, typer.Option("--devices", metavar="A,B", help="These devices, in this order.")
    ] = None,
    select: Annotated[
        str | None,
        typer.Option("--select", metavar="EXPR", help="Those that match now: 'type=pump label.site=berlin'."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="N")] = None,
    waves: Waves = "100%",
    abort_after: AbortAfter = 1,
    silence_limit: Annotated[
        int | None,
        typer.Option("--silence-limit", min=1, metavar="SECONDS", help="A device silent for longer has timed out."),
    ] = None,
    attempts: Annotated[
        int | None, typer.Option("--attempts", min=1, help="Deliveries to a device that reports nothing.")
    ] = None,
    continuous: Annotated[
        bool,
        typer.Option("--continuous", help="Devices that --select picks later join; it ends when you cancel it."),
    ] = False,
    count_inferred: Annotated[
        bool | None,
        typer.Option("--count-inferred/--no-count-inferred", help="Let inferred outcomes count for --abort-after."),
    ] = None,
    urgency: Annotated[
        Literal["forced", "soft", "timeforced", "downloadonly"],
        typer.Option("--urgency", help="soft: devices may choose when; timeforced: until --forced-at; DDI only."),
    ] = "forced",
    forced_at: Annotated[
        datetime | None, typer.Option("--forced-at", help="From then on a timeforced update is forced; UTC.")
    ] = None,
    confirm: Annotated[
        bool | None,
        typer.Option("--confirm/--no-confirm", help="Ask devices first, whatever their type says (DDI)."),
    ] = None,
    maintenance: Annotated[
        str | None,
        typer.Option(
            "--maintenance", metavar="WINDOW", help="Instead of the type's: 'daily 02:00 3h UTC' (or local), or none."
        ),
    ] = None,
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Offer a published release to devices, in waves: the next opens when the last has succeeded.

    flota rollout create --release pump@2.0 --select type=pump --waves 2,50%,100% --abort-after 2

    flota rollout create --release 3 --devices pump-1,pump-2 --name try-it

    flota rollout create --release pump@2.0 --select type=pump --maintenance 'sat,sun 02:00 3h Europe/Berlin'
    """
    if (devices is None) == (select is None):
        raise typer.BadParameter("give either --devices A,B or --select EXPR")
    from flota.fleet.rollouts import check_waves

    check_option("--waves", check_waves, waves)
    with connect(server, token, cacert) as client:
        made = client.create_rollout(
            release,
            devices=comma_list(devices),
            select=select,
            name=name,
            waves=waves,
            abort_after=abort_after,
            silence_limit_s=silence_limit,
            attempts=attempts,
            count_inferred=count_inferred,
            continuous=continuous,
            urgency=urgency,
            forced_at=utc(forced_at),
            confirm=confirm,
            maintenance=maintenance,
        )
    _show(made, as_json)
    if not as_json:
        echo(f"next       flota rollout watch {made.id}")


@app.command("list")
def list_rollouts(
    open_only: Annotated[bool, typer.Option("--open", help="Only those that have not ended.")] = False,
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """List rollouts, oldest first.

    flota rollout list --open
    """
    from flota.cli.watching import one_line

    with connect(server, token, cacert) as client:
        found = client.list_rollouts(open_only=open_only)
    if as_json:
        echo_json([one.as_dict() for one in found])
        return
    print_table(
        ["id", "name", "type", "version", "state", "devices", "progress", "reason"],
        [
            (one.id, one.name, one.type, one.version, one.state, one.devices, one_line(one), one.reason or "-")
            for one in found
        ],
    )


@app.command("show")
def show(
    rollout: Reference,
    shown_as: Annotated[
        Literal["rollout", "shipment"],
        typer.Option("--as", help="shipment: with the statuses and counters of Blynk's console."),
    ] = "rollout",
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Show a rollout: its waves, and how each device fares.

    flota rollout show pump-2.0

    flota rollout show pump-2.0 --as shipment
    """
    with connect(server, token, cacert) as client:
        if shown_as == "shipment":
            _show_shipment(client.shipment(rollout), as_json)
            return
        found = client.rollout(rollout)
        executions = client.executions(found.id)
    if as_json:
        echo_json({**found.as_dict(), "executions": [one.as_dict() for one in executions]})
        return
    _show(found, as_json)
    if executions:
        print_table(
            ["execution", "device", "wave", "state", "basis", "changed"],
            [
                (one.id, one.device, one.wave, one.state, one.basis, one.changed_at.isoformat(" ", "seconds"))
                for one in executions
            ],
        )


@app.command("watch")
def watch_rollout(rollout: Reference, server: Server = None, token: Token = None, cacert: CaCert = None) -> None:
    """Follow a rollout until it has ended; exit status 1 if it did not succeed.

    flota rollout watch pump-2.0
    """
    from flota.cli.watching import watch

    with connect(server, token, cacert) as client:
        found = client.rollout(rollout)
        after = client.last_audit_sequence() if not found.is_final else 0
        status = watch(client, found, after=after)
    raise typer.Exit(status)


@app.command("pause")
def pause(
    rollout: Reference,
    reason: Reason = "",
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Offer nothing more; devices that have started go on.

    flota rollout pause pump-2.0
    """
    with connect(server, token, cacert) as client:
        _show(client.pause(rollout, reason=reason), as_json)


@app.command("resume")
def resume(
    rollout: Reference, as_json: AsJson = False, server: Server = None, token: Token = None, cacert: CaCert = None
) -> None:
    """Go on with a paused rollout.

    flota rollout resume pump-2.0
    """
    with connect(server, token, cacert) as client:
        _show(client.resume(rollout), as_json)


@app.command("cancel")
def cancel(
    rollout: Reference,
    reason: Reason = "",
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """End a rollout: what waits is canceled, what runs is asked to stop.

    flota rollout cancel pump-2.0 --reason "wrong customers"
    """
    with connect(server, token, cacert) as client:
        _show(client.cancel(rollout, reason=reason), as_json)


def _show_shipment(one: Shipment, as_json: bool) -> None:
    if as_json:
        echo_json(one.as_dict())
        return
    echo(f"shipment   {one.title} ({one.id}), {one.type} {one.version}: {one.status}, {len(one.devices)} devices")
    checks = "any firmware type" if one.skip_type_check else "same firmware type"
    counted = f"{one.attempts_limit} attempts" + (f" in {_span(one.attempt_period_s)}" if one.attempt_period_s else "")
    when = one.maintenance or "whenever the type allows"
    echo(f"conditions {one.compare_field}, {checks}, {counted}, {when}")
    counted = ", ".join(f"{count} {name}" for name, count in one.progress.items() if count)
    echo(f"progress   {counted or 'nothing yet'}")
    if one.devices:
        print_table(
            ["device", "status", "execution", "changed", "reason"],
            [
                (
                    device.device,
                    device.status,
                    device.execution or "-",
                    device.changed_at.isoformat(" ", "seconds") if device.changed_at else "-",
                    device.reason or "-",
                )
                for device in one.devices
            ],
        )


def _span(seconds: int) -> str:
    """Return a time that can be read: `24 h`, `90 s`."""
    return f"{seconds // 3600} h" if seconds % 3600 == 0 else f"{seconds} s"


def _show(one: Rollout, as_json: bool) -> None:
    if as_json:
        echo_json(one.as_dict())
        return
    from flota.cli.watching import one_line

    echo(f"rollout    {one.name} ({one.id}), {one.type} {one.version}: {one.state}, {one_line(one)}")
    if one.reason:
        echo(f"reason     {one.reason}")
    for wave in one.waves:
        counts = ", ".join(f"{count} {state}" for state, count in wave.counts.items())
        echo(f"wave {wave.number:<5} {wave.state}, {wave.size} devices" + (f": {counts}" if counts else ""))
