"""Credentials of things as files: the key is made here, the server sees a request for its certificate only."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from flota.cli.code_signers import find_certificate, read_certificate_file
from flota.cli.connection import read_text_file
from flota.cli.output import echo, warn
from flota.errors import Conflict, InvalidInput, NotFound, WrongUse

if TYPE_CHECKING:
    from flota.client.management import ManagementClient
    from flota.client.thing_schemas import ThingCertificate
    from flota.trust.thing_credentials import ThingCredentials, ThingFile

CSR_MAX_BYTES: Final = 16 * 1024
ROOT_MAX_BYTES: Final = 64 * 1024
DEFAULT_PORT: Final = 8883

_PANEL: Final = "Certificate"

KeyType = Annotated[
    Literal["p256", "rsa-2048"],
    typer.Option("--key-type", help="Of the key that is made here.", rich_help_panel=_PANEL),
]
Csr = Annotated[
    Path | None,
    typer.Option("--csr", metavar="FILE", help="A certificate request of the device's own.", rich_help_panel=_PANEL),
]
Days = Annotated[
    int | None,
    typer.Option("--days", min=1, metavar="N", help="It ends after so many days; else 2049.", rich_help_panel=_PANEL),
]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="DIR", help="Write files here; else print them.", rich_help_panel=_PANEL),
]
Endpoint = Annotated[
    str | None,
    typer.Option("--endpoint", metavar="HOST[:PORT]", help="Where things find the server.", rich_help_panel=_PANEL),
]
RootCa = Annotated[
    Path | None,
    typer.Option("--root-ca", metavar="PEM", help="What they trust it by; else asked for.", rich_help_panel=_PANEL),
]
ClientId = Annotated[
    str | None,
    typer.Option("--client-id", metavar="ID", help="MQTT client id; else its name.", rich_help_panel=_PANEL),
]
CodeCertificate = Annotated[
    str | None,
    typer.Option(
        "--code-certificate", metavar="CERT", help="For aws_codeVerCrt; else the type's.", rich_help_panel=_PANEL
    ),
]


@dataclass(frozen=True, slots=True)
class ThingOptions:
    """What a command was told about a thing's credentials; fields as the options."""

    csr: Path | None = None
    key_type: str = "p256"
    output: Path | None = None
    endpoint: str | None = None
    root_ca: Path | None = None
    client_id: str | None = None
    code_certificate: str | None = None


@dataclass(frozen=True, slots=True)
class KeyAndRequest:
    """A request for a certificate; the keys (PEM) are empty where they stay in the device."""

    csr: str
    public_key: str = ""
    private_key: str = ""


def key_and_request(options: ThingOptions, name: str) -> KeyAndRequest:
    """Return a new key with its request, or the request that was given. Raises `InvalidInput`."""
    from flota.trust.thing_certificates import (
        make_request,
        new_thing_key,
        pack_public_key,
        pack_thing_key,
        parse_request,
    )

    if options.csr is not None:
        csr = read_text_file(options.csr, max_bytes=CSR_MAX_BYTES)
        return KeyAndRequest(csr, pack_public_key(parse_request(csr)))
    key = new_thing_key(options.key_type)
    return KeyAndRequest(make_request(key, name), pack_public_key(key.public_key()), pack_thing_key(key))


def endpoint_of(client: ManagementClient, options: ThingOptions) -> tuple[str, int, str]:
    """Return host, port and root certificate (PEM, empty if nobody knows it) for things. Raises `NotFound`."""
    root = "" if options.root_ca is None else read_text_file(options.root_ca, max_bytes=ROOT_MAX_BYTES)
    given = None if options.endpoint is None else _parse_endpoint(options.endpoint)
    if given is not None and root:
        return *given, root
    try:
        found = client.thing_endpoint()
    except NotFound as error:
        if given is None:
            raise NotFound(
                error.message, hint="Start the server with --mqtts HOST:PORT, or give --endpoint HOST[:PORT]."
            ) from error
        warn("warning: the root certificate that things trust the server by is not known; give --root-ca FILE")
        return *given, ""
    if not root and found.root_ca is None:
        warn("warning: the server uses a certificate of your own; give its root with --root-ca FILE")
    host, port = given or (found.host, found.port)
    return host, port, root or found.root_ca or ""


@contextlib.contextmanager
def credentials_directory(output: Path | None, keys: KeyAndRequest) -> Iterator[None]:
    """Write the private key before anything is asked of the server; take it away if that fails. Raises `Conflict`."""
    from flota.durable_files import PRIVATE_FILE_MODE, write_durably
    from flota.trust.thing_credentials import CERTIFICATE_FILE, PRIVATE_KEY_FILE

    if output is None:
        yield
        return
    for name in (PRIVATE_KEY_FILE, CERTIFICATE_FILE):
        if (output / name).exists():
            raise Conflict(
                "there are credentials in that directory already",
                found=str(output / name),
                hint="Nothing was changed; choose another directory.",
            )
    private = output / PRIVATE_KEY_FILE
    try:
        output.mkdir(parents=True, exist_ok=True, mode=0o700)
        if keys.private_key:
            write_durably(private, keys.private_key.encode("ascii"), mode=PRIVATE_FILE_MODE)
    except OSError as error:
        raise InvalidInput(f"cannot write to {output}", found=error.strerror or str(error)) from error
    try:
        yield
    except BaseException:
        private.unlink(missing_ok=True)
        raise


def credentials_of(
    client: ManagementClient,
    options: ThingOptions,
    keys: KeyAndRequest,
    made: ThingCertificate,
    where: tuple[str, int, str],
    *,
    name: str,
    type_name: str,
) -> ThingCredentials:
    """Return everything that goes into a device."""
    from flota.trust.thing_credentials import ThingCredentials, ThingFile

    host, port, root_ca = where
    if options.code_certificate is not None:
        code = read_certificate_file(find_certificate(options.code_certificate))
    else:
        known = client.device_type(type_name).code_certificates
        code = known[-1].certificate if known else ""
    thing = ThingFile(thing_name=name, client_id=options.client_id or name, endpoint=host, port=port)
    return ThingCredentials(
        thing=thing,
        certificate=made.certificate,
        root_ca=root_ca,
        public_key=keys.public_key,
        private_key=keys.private_key,
        code_certificate=code,
    )


def give_credentials(credentials: ThingCredentials, output: Path | None) -> None:
    """Write a device's credentials into the directory; without one, print what goes into its sources."""
    from flota.trust.thing_credentials import pack_config_header, pack_credentials_source

    if output is None:
        echo("")
        echo(pack_credentials_source(credentials).rstrip("\n"))
        echo("")
        echo(pack_config_header(credentials.thing).rstrip("\n"))
        return
    for name in write_credentials(credentials, output):
        echo(f"written    {output / name}")


def write_credentials(credentials: ThingCredentials, output: Path) -> list[str]:
    """Write the files of a directory of credentials, those with secrets with mode 0600; returns their names."""
    from flota.durable_files import PRIVATE_FILE_MODE, SHARED_FILE_MODE, write_durably
    from flota.trust import thing_credentials as files

    texts: list[tuple[str, str, bool]] = [
        (files.PRIVATE_KEY_FILE, credentials.private_key, True),
        (files.PUBLIC_KEY_FILE, credentials.public_key, False),
        (files.CERTIFICATE_FILE, credentials.certificate, False),
        (files.ROOT_CA_FILE, credentials.root_ca, False),
        (files.CODE_CERTIFICATE_FILE, credentials.code_certificate, False),
        (files.SOURCE_FILE, files.pack_credentials_source(credentials), True),
        (files.HEADER_FILE, files.pack_config_header(credentials.thing), False),
        (files.THING_FILE, files.pack_thing_file(credentials.thing).decode("utf-8"), False),
    ]
    written = [(name, text, secret) for name, text, secret in texts if text]
    try:
        for name, text, secret in written:
            mode = PRIVATE_FILE_MODE if secret else SHARED_FILE_MODE
            write_durably(output / name, text.encode("utf-8"), mode=mode)
    except OSError as error:
        raise InvalidInput(f"cannot write to {output}", found=error.strerror or str(error)) from error
    return [name for name, _, _ in written]


def as_plain(credentials: ThingCredentials) -> dict[str, object]:
    """Return the credentials for `--json`: the private key too, it is nowhere else."""
    thing: ThingFile = credentials.thing
    return {
        "thing_name": thing.thing_name,
        "client_id": thing.client_id,
        "endpoint": thing.endpoint,
        "port": thing.port,
        "certificate": credentials.certificate,
        "private_key": credentials.private_key or None,
        "public_key": credentials.public_key,
        "root_ca": credentials.root_ca or None,
        "code_certificate": credentials.code_certificate or None,
    }


def _parse_endpoint(text: str) -> tuple[str, int]:
    from flota.server.settings import parse_address, parse_host

    checked: Callable[[str], str] = parse_host
    try:
        if ":" not in text.rpartition("]")[2]:
            return checked(text.strip("[]")), DEFAULT_PORT
        address = parse_address(text)
    except InvalidInput as error:
        raise WrongUse(f"--endpoint: {error.message}", expected="HOST or HOST:PORT", found=error.found) from error
    return address.host, address.port or DEFAULT_PORT
