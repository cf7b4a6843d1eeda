"""The demo's `aws-reference` devices: their code-signing key, and what each is let in by.

Half of them show a certificate over TLS, the others a token on the plain listener.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding

from flota.client.management import ManagementClient
from flota.durable_files import PRIVATE_FILE_MODE, write_durably
from flota.errors import PeerError
from flota.lab.aws_agents import AwsOptions, ThingDirectory
from flota.lab.local_server import ServerAddress
from flota.trust import thing_credentials as files
from flota.trust.code_signing import make_code_signing_certificate
from flota.trust.file_signatures import FilePrivateKey
from flota.trust.keys import PrivateKey
from flota.trust.thing_certificates import make_request, new_thing_key, pack_thing_key

THING_KEY_KIND: Final = "p256"
SERIAL: Final = 1


@dataclass(slots=True)
class Meters:
    """Everything about them that the demo needs; `directory` gets the credentials."""

    directory: Path
    _signer: PrivateKey = field(default_factory=lambda: PrivateKey.generate("p256"), repr=False)

    @property
    def certificate(self) -> bytes:
        """The code-signing certificate in PEM: what the devices check files with."""
        path = self.directory / files.CODE_CERTIFICATE_FILE
        if not path.exists():
            made = make_code_signing_certificate(
                self._signer, subject="flota demo", serial=SERIAL, now=datetime.now(UTC)
            )
            self.directory.mkdir(parents=True, exist_ok=True)
            write_durably(path, made.public_bytes(Encoding.PEM))
        return path.read_bytes()

    def trust(self, client: ManagementClient, type_name: str) -> None:
        """Tell the server with which certificate the type's devices check files."""
        client.trust_code_certificates(type_name, [self.certificate.decode("ascii")])

    def sign(self, client: ManagementClient, release: int, data: bytes) -> None:
        """Hand in the signature over a release's file."""
        signature = FilePrivateKey.from_pem(self._signer.to_pem()).sign(hashlib.sha256(data).digest())
        certificate = self.certificate.decode("ascii")
        client.add_file_signature(release, base64.b64encode(signature).decode("ascii"), certificate=certificate)

    def with_token(self, address: ServerAddress) -> AwsOptions:
        """Return how a device with a token connects."""
        host, port = _host_and_port(address.mqtt, "mqtt://")
        return AwsOptions(host=host, port=port, code_certificate=self.certificate)

    def with_certificate(
        self, client: ManagementClient, address: ServerAddress, name: str, type_name: str, mac: str
    ) -> AwsOptions:
        """Register a device by the key that it makes, write its credentials, and return how it connects."""
        key = new_thing_key(THING_KEY_KIND)
        made = client.add_thing(name, type_name, make_request(key, name), mac=mac)
        endpoint = client.thing_endpoint()
        if endpoint.root_ca is None:
            raise PeerError("the server does not say what things may trust it by")
        place = self.directory / name
        place.mkdir(parents=True, exist_ok=True)
        thing = files.ThingFile(name, name, endpoint.host, endpoint.port)
        for file, content in (
            (files.THING_FILE, files.pack_thing_file(thing)),
            (files.ROOT_CA_FILE, endpoint.root_ca.encode("ascii")),
            (files.CERTIFICATE_FILE, made.certificate.certificate.encode("ascii")),
            (files.CODE_CERTIFICATE_FILE, self.certificate),
        ):
            write_durably(place / file, content)
        secret = pack_thing_key(key).encode("ascii")
        write_durably(place / files.PRIVATE_KEY_FILE, secret, mode=PRIVATE_FILE_MODE)
        host, port = _host_and_port(address.mqtts, "mqtts://")
        return AwsOptions(host=host, port=port, credentials=ThingDirectory.read(place))


def _host_and_port(address: str | None, scheme: str) -> tuple[str, int]:
    host, colon, port = (address or "").removeprefix(scheme).rpartition(":")
    if not colon or not port.isdecimal():
        raise PeerError("the server does not listen for MQTT", expected=f"{scheme}HOST:PORT", found=str(address))
    return host, int(port)
