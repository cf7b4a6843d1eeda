"""The agent of a virtual device that speaks AWS IoT, from its description: credentials, data path, platform."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final, Self

import httpx

from flota.errors import InvalidInput
from flota.protocols.aws_jobs import is_thing_name
from flota.protocols.mqtt.packets import Connect
from flota.transports.http import http_client
from flota.transports.mqtt_client import open_mqtt
from flota.trust.thing_credentials import (
    CERTIFICATE_FILE,
    CODE_CERTIFICATE_FILE,
    PRIVATE_KEY_FILE,
    ROOT_CA_FILE,
    THING_FILE,
    THING_FILE_MAX_BYTES,
    ThingFile,
    parse_thing_file,
)
from flota.virtual.ab_board import AbSlots
from flota.virtual.agents.aws_ota.ab_pal import AbPal, signature_key_of
from flota.virtual.agents.aws_ota.agent import AwsOtaAgent, AwsOtaSettings, DeviceLink
from flota.virtual.agents.aws_ota.http_ranges import HttpxRanges
from flota.virtual.agents.aws_ota.pal import Pal
from flota.virtual.agents.aws_ota.ports import AgentBuild
from flota.virtual.device import AppContext

KEEP_ALIVE_S: Final = 60
"""Of the agent's demo application (docs/reference/aws-iot.md)."""

MQTT_PORT: Final = 1883
"""Of the plain listener, where a device shows its token."""

HTTP_SILENCE_LIMIT_S: Final = 20.0
USER_AGENT: Final = "flota-virtual-aws-ota"


@dataclass(frozen=True, slots=True)
class ThingDirectory:
    """A directory of credentials, as `flota device add --certificate -o DIR` writes it. Its repr shows no secret."""

    thing: ThingFile
    tls: ssl.SSLContext = field(repr=False)
    root_ca: Path
    code_certificate: bytes | None = field(default=None, repr=False)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Return what is in `directory`. Raises `InvalidInput` for what is missing or cannot be used."""
        try:
            with (directory / THING_FILE).open("rb") as file:
                thing = parse_thing_file(file.read(THING_FILE_MAX_BYTES + 1))
            root_ca = directory / ROOT_CA_FILE
            tls = ssl.create_default_context(cafile=str(root_ca))
            tls.load_cert_chain(directory / CERTIFICATE_FILE, directory / PRIVATE_KEY_FILE)
        except (OSError, ssl.SSLError) as error:
            raise InvalidInput(
                f"no usable credentials in {directory}",
                expected=f"{THING_FILE}, {ROOT_CA_FILE}, {CERTIFICATE_FILE}, {PRIVATE_KEY_FILE}",
                found=str(error),
                hint="`flota device add NAME --certificate -o DIR` writes them.",
            ) from error
        code_certificate = None
        with contextlib.suppress(FileNotFoundError):
            code_certificate = (directory / CODE_CERTIFICATE_FILE).read_bytes()
        return cls(thing, tls, root_ca, code_certificate)


@dataclass(frozen=True, slots=True)
class AwsOptions:
    """How a device reaches its MQTT server, and how its firmware was built.

    Either `credentials` (mutual TLS), or the device's token in its description. `host` and `port` None: those in the
    credentials. `code_certificate` (PEM) is the one that the job's `certfile` names; `speaks_http` whether the
    firmware can fetch over HTTP too.
    """

    host: str | None = None
    port: int | None = None
    credentials: ThingDirectory | None = None
    code_certificate: bytes | None = field(default=None, repr=False)
    build: AgentBuild = field(default_factory=AgentBuild)
    speaks_http: bool = True
    self_test_floor_s: float | None = None
    pal: Callable[[AppContext], Pal] | None = None
    """The platform, for boards that have one of their own."""


def aws_agent(name: str, token: str | None, cacert: Path | None, options: AwsOptions) -> AwsOtaAgent:
    """Return the agent of the thing `name`. Raises `InvalidInput` for options that do not go together."""
    credentials = options.credentials
    if (credentials is None) == (token is None):
        raise InvalidInput(
            "an AWS IoT device shows either a certificate or a token",
            expected="--credentials DIR, or --token",
            hint="`flota device add NAME --certificate -o DIR` writes the directory.",
        )
    thing = name if credentials is None else credentials.thing.thing_name
    if not is_thing_name(thing):
        raise InvalidInput("not a name for a thing", expected="1 to 128 of a-z A-Z 0-9 : _ -", found=repr(thing[:160]))
    certificate = options.code_certificate or (None if credentials is None else credentials.code_certificate)
    trusted = cacert or (None if credentials is None else credentials.root_ca)
    settings = AwsOtaSettings(
        thing=thing,
        connect=_connector(thing, token, options),
        pal=options.pal or partial(_ab_pal, certificate=certificate),
        ranges=partial(_ranges, trusted) if options.speaks_http else None,
        build=replace(options.build, signature_key=signature_key_of(certificate)),
    )
    if options.self_test_floor_s is not None:
        settings = replace(settings, self_test_floor_s=options.self_test_floor_s)
    return AwsOtaAgent(settings)


def _connector(thing: str, token: str | None, options: AwsOptions) -> Callable[[], Awaitable[DeviceLink]]:
    credentials = options.credentials
    if credentials is not None:
        host, port = options.host or credentials.thing.endpoint, options.port or credentials.thing.port
        connect = Connect(credentials.thing.client_id, keep_alive=KEEP_ALIVE_S)
        return partial(open_mqtt, host, port, connect, tls=credentials.tls, server_name=credentials.thing.endpoint)
    if options.host is None or options.port is None:
        raise InvalidInput("a device with a token needs the server's address", hint="Give it with --mqtt HOST:PORT.")
    assert token is not None
    connect = Connect(thing, keep_alive=KEEP_ALIVE_S, username=thing, password=token.encode("utf-8"))
    return partial(open_mqtt, options.host, options.port, connect)


def _ab_pal(context: AppContext, *, certificate: bytes | None) -> Pal:
    if not isinstance(context.slots, AbSlots):
        raise TypeError("this platform is that of aws-reference")
    return AbPal(context.slots, context.nvs, context.pace, certificate)


def _ranges(trusted: Path | None) -> HttpxRanges:
    def client(tls: bool) -> httpx.AsyncClient:
        return http_client(cacert=trusted, user_agent=USER_AGENT, silence_limit_s=HTTP_SILENCE_LIMIT_S, tls=tls)

    return HttpxRanges(client)
