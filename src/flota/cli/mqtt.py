"""`flota mqtt`: what another MQTT broker needs to know, so that devices update over it."""

from __future__ import annotations

from enum import StrEnum

import typer

from flota.cli.output import echo

app = typer.Typer(add_completion=False, no_args_is_help=True, help="What another MQTT broker needs to know.")


class BrokerKind(StrEnum):
    """Whose rules to print."""

    MOSQUITTO = "mosquitto"
    EMQX = "emqx"


class ThingIs(StrEnum):
    """What a broker knows a thing by."""

    USER = "user"
    CLIENT_ID = "client-id"


@app.callback()
def mqtt() -> None:
    """Work with a broker that is not Flota's own."""


@app.command("acl")
def acl(
    kind: BrokerKind = typer.Option(BrokerKind.MOSQUITTO, "--for", help="Whose format."),
    responder: str = typer.Option("flota", "--responder", metavar="USER", help="The user of flota up --mqtt-broker."),
    thing_is: ThingIs = typer.Option(ThingIs.USER, "--thing-is", help="What names the thing: user or client id."),
    no_own_topics: bool = typer.Option(False, "--no-own-topics", help="Without NAME/# for each thing."),
) -> None:
    """Print the rules that let each thing reach its own topics only, and Flota's responder all of them.

    With certificates, let mosquitto take the user name from them: use_identity_as_username true.

    Examples:
        flota mqtt acl > /etc/mosquitto/flota.acl

        flota mqtt acl --for emqx --thing-is client-id
    """
    from flota.protocols.aws_broker_rules import emqx_acl, mosquitto_acl

    make = mosquitto_acl if kind is BrokerKind.MOSQUITTO else emqx_acl
    echo(make(responder, thing_is=thing_is.value, own_topics=not no_own_topics).rstrip())
