"""The one course by which a command has a certificate made and hands out what goes into the device.

`device add --certificate`, `device certificate issue|rotate` and `device claim create` differ in what they ask the
server for. The private key is written before that, so that no certificate is made whose key nobody can keep.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from flota.cli.connection import connect
from flota.cli.output import echo, echo_json, print_table
from flota.cli.thing_files import (
    ThingOptions,
    as_plain,
    credentials_directory,
    credentials_of,
    endpoint_of,
    give_credentials,
    key_and_request,
    write_credentials,
)
from flota.errors import WrongUse

if TYPE_CHECKING:
    from flota.client.management import ManagementClient
    from flota.client.thing_schemas import ThingCertificate


@dataclass(frozen=True, slots=True)
class Issued:
    """What the server made: for `--json` its whole `answer`, for people a line `about` whom the certificate is for."""

    certificate: ThingCertificate
    type_name: str
    answer: dict[str, Any]
    about: str | None = None


Issue = Callable[[str], Issued]
"""Has a certificate made for a request (PEM)."""


def issue_credentials(
    name: str,
    options: ThingOptions,
    prepare: Callable[[ManagementClient], Issue],
    *,
    as_json: bool,
    server: str | None,
    token: str | None,
    cacert: str | None,
) -> None:
    """Make a key (or take the given request), have a certificate made for `name`, write or print the credentials.

    `prepare` looks up what must exist before a file is written. Raises `WrongUse` for options that contradict each
    other, and what the steps raise.
    """
    if options.csr is not None and options.key_type != "p256":
        raise WrongUse("--key-type is for a key that is made here", hint="Leave it out with --csr.")
    keys = key_and_request(options, name)
    with connect(server, token, cacert) as client:
        where = endpoint_of(client, options)
        issue = prepare(client)
        with credentials_directory(options.output, keys):
            made = issue(keys.csr)
        credentials = credentials_of(
            client, options, keys, made.certificate, where, name=name, type_name=made.type_name
        )
    if as_json:
        if options.output is not None:
            write_credentials(credentials, options.output)
        echo_json({**made.answer, "credentials": as_plain(credentials)})
        return
    if made.about is not None:
        echo(made.about)
    echo(describe(made.certificate))
    give_credentials(credentials, options.output)


def describe(one: ThingCertificate) -> str:
    """Return the line that tells which certificate was made."""
    return f"certificate {one.fingerprint}, {one.subject}, until {one.not_after.date()}"


def show_certificates(found: list[ThingCertificate], as_json: bool) -> None:
    """Print a listing of certificates."""
    if as_json:
        echo_json([one.as_dict() for one in found])
        return
    now = datetime.now(UTC)
    print_table(
        ["fingerprint", "of", "state", "issued", "until", "subject"],
        [
            (
                one.fingerprint[:16],
                one.device or one.template,
                one.state_in_words(now=now),
                "here" if one.issued_here else "elsewhere",
                one.not_after.date().isoformat(),
                one.subject,
            )
            for one in found
        ],
    )
