"""`flota audit`: who did what to which subject, when."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from flota.cli.connection import AsJson, CaCert, Server, Token, connect
from flota.cli.output import echo, echo_json, print_table

if TYPE_CHECKING:
    from flota.client.schemas import AuditEntry

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The audit trail.")

PAGE = 1000


@app.callback()
def audit() -> None:
    """Read the audit trail."""


@app.command("list")
def list_entries(
    after: Annotated[
        int | None, typer.Option("--after", min=0, metavar="N", help="Only entries with a higher sequence number.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="How many; the newest ones unless --after is given.")
    ] = 100,
    follow: Annotated[bool, typer.Option("--follow", help="Go on printing entries as they come.")] = False,
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Show the audit trail, oldest entry first.

    flota audit list --limit 20

    flota audit list --after 0 --limit 100000 --json

    flota audit list --follow
    """
    with connect(server, token, cacert) as client:
        start = max(0, client.last_audit_sequence() - limit) if after is None else after
        found: list[AuditEntry] = []
        while len(found) < limit:
            page = client.audit(after=found[-1].sequence if found else start, limit=min(PAGE, limit - len(found)))
            found.extend(page)
            if not page:
                break
        if not follow:
            _show(found, as_json)
            return
        last = start
        for one in found:
            _show_line(one, as_json)
            last = one.sequence
        for one in client.follow_events(last):
            _show_line(one, as_json)


def _show(entries: list[AuditEntry], as_json: bool) -> None:
    if as_json:
        echo_json([one.as_dict() for one in entries])
        return
    print_table(
        ["sequence", "at", "actor", "action", "subject", "details"],
        [
            (one.sequence, one.at.isoformat(" ", "seconds"), one.actor, one.action, one.subject, _details(one))
            for one in entries
        ],
    )


def _show_line(one: AuditEntry, as_json: bool) -> None:
    if as_json:
        echo(json.dumps(one.as_dict(), ensure_ascii=False))
    else:
        echo(f"{one.sequence}  {one.at:%H:%M:%S}  {one.actor}  {one.action}  {one.subject}  {_details(one)}")


def _details(one: AuditEntry) -> str:
    return json.dumps(one.details, ensure_ascii=False)
