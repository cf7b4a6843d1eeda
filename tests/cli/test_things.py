"""The operator's side of things: devices with certificates, claims, code signatures, against a running server."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from flota.protocols.aws_provisioning import (
    PayloadFormat,
    ProvisionRequest,
    pack_csr_request,
    pack_provision_request,
    parse_certificate_made,
    parse_provisioned,
)
from flota.protocols.mqtt.packets import Connect
from flota.transports.mqtt_client import MqttLink, open_mqtt
from flota.trust.thing_certificates import PrivateKey, make_request, new_thing_key, pack_thing_key
from flota.trust.thing_credentials import ARRAYS, parse_credentials_source, parse_thing_file
from tests.cli.conftest import START_WITHIN_S, Flota, Server

TYPE = "aws-reference"
ACCEPTED = b"\x20\x02\x00\x00"
"""CONNACK with return code 0."""


def a_key(flota: Flota, tmp_path: Path, name: str = "ecdsasigner") -> Path:
    """Return the path of a new code-signing key with its certificate beside it, both of that name."""
    path = tmp_path / "keys" / f"{name}.pem"
    if not path.exists():
        assert flota("key", "create", name, "--code-signing").status == 0
    return path


def a_thing(flota: Flota, name: str, output: Path, *more: object) -> Any:
    result = flota("device", "add", name, "--type", TYPE, "--certificate", "-o", output, "--json", *more)
    assert result.status == 0, result.err
    return result.json()


def test_a_thing_gets_a_directory_with_all_that_goes_into_it(flota: Flota, server: Server, tmp_path: Path) -> None:
    a_key(flota, tmp_path)
    assert flota("type", "trust", TYPE, "--code-certificate", "ecdsasigner").status == 0
    output = tmp_path / "meter-1"
    result = flota("device", "add", "meter-1", "--type", TYPE, "--certificate", "-o", output)
    assert result.status == 0, result.err
    assert "token" not in result.out
    files = {path.name: path for path in output.iterdir()}
    assert sorted(files) == [
        "aws_config.h", "aws_credentials.c", "certificate.pem", "code-signing.pem", "private.pem", "public.pem",
        "root-ca.pem", "thing.json",
    ]  # fmt: skip
    for secret in ("private.pem", "aws_credentials.c"):
        assert files[secret].stat().st_mode & 0o777 == 0o600
    arrays = parse_credentials_source(files["aws_credentials.c"].read_text())
    names = ("root-ca.pem", "certificate.pem", "public.pem", "private.pem", "code-signing.pem")
    assert arrays == {array: files[name].read_text() for array, name in zip(ARRAYS, names, strict=True)}
    assert (server.data / "ca" / "root.crt").read_text() == arrays["aws_rootCACrt"]
    assert (tmp_path / "keys" / "ecdsasigner.crt").read_text() == arrays["aws_codeVerCrt"]
    thing = parse_thing_file(files["thing.json"].read_bytes())
    assert (thing.thing_name, thing.client_id, thing.endpoint) == ("meter-1", "meter-1", "localhost")
    header = files["aws_config.h"].read_text()
    assert f"( {thing.port} )" in header
    assert '#define THING_NAME           "meter-1"' in header


def test_the_servers_directory_never_sees_the_private_key(flota: Flota, server: Server, tmp_path: Path) -> None:
    a_thing(flota, "meter-2", tmp_path / "meter-2")
    pem = (tmp_path / "meter-2" / "private.pem").read_text()
    secret = base64.b64decode("".join(pem.splitlines()[1:-1]))
    for path in server.data.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert secret not in data
            assert pem.splitlines()[1].encode() not in data


def test_what_goes_into_the_sources_is_printed_without_a_directory(flota: Flota) -> None:
    result = flota("device", "add", "meter-3", "--type", TYPE, "--certificate", "--client-id", "client-3")
    assert result.status == 0, result.err
    arrays = parse_credentials_source(result.out)
    assert arrays["aws_devicePvtKey"].startswith("-----BEGIN EC PRIVATE KEY-----\n")
    assert '"client-3"' in result.out


def test_the_key_can_stay_in_the_device(flota: Flota, tmp_path: Path) -> None:
    key = new_thing_key("rsa-2048")
    (tmp_path / "meter-4.csr").write_text(make_request(key, "anything"))
    made = a_thing(flota, "meter-4", tmp_path / "meter-4", "--csr", tmp_path / "meter-4.csr")
    assert made["credentials"]["private_key"] is None
    assert not (tmp_path / "meter-4" / "private.pem").exists()
    certificate = x509.load_pem_x509_certificate((tmp_path / "meter-4" / "certificate.pem").read_bytes())
    assert certificate.public_key() == key.public_key()
    assert certificate.subject.rfc4514_string() == "CN=meter-4"


def test_a_bad_request_leaves_no_device_and_no_file(flota: Flota, server: Server, tmp_path: Path) -> None:
    (tmp_path / "bad.csr").write_text("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n")
    result = flota(
        "device",
        "add",
        "meter-5",
        "--type",
        TYPE,
        "--certificate",
        "--csr",
        tmp_path / "bad.csr",
        "-o",
        tmp_path / "m5",
    )
    assert result.status == 1
    assert "certificate request" in result.err
    result = flota("device", "add", "meter.5", "--type", TYPE, "--certificate", "-o", tmp_path / "m5")
    assert result.status == 1
    assert not list((tmp_path / "m5").glob("*"))
    with server.client() as client:
        assert [one.name for one in client.list_devices(text="ter.5")] == []


def test_credentials_are_never_overwritten(flota: Flota, tmp_path: Path) -> None:
    a_thing(flota, "meter-6", tmp_path / "m6")
    before = (tmp_path / "m6" / "private.pem").read_bytes()
    result = flota("device", "certificate", "issue", "meter-6", "-o", tmp_path / "m6")
    assert result.status == 1
    assert (tmp_path / "m6" / "private.pem").read_bytes() == before


@pytest.mark.parametrize(
    "options",
    [
        ("-o", "x"),
        ("--certificate", "--device-token", "secret-token"),
        ("--certificate", "--csr", "x", "--key-type", "rsa-2048"),
        ("--certificate", "--endpoint", "a b"),
    ],
    ids=["-o without --certificate", "a token too", "a key type for a CSR", "an endpoint that is none"],
)
def test_options_that_mean_nothing_are_wrong_use(flota: Flota, options: tuple[str, ...]) -> None:
    assert flota("device", "add", "meter-7", "--type", TYPE, *options).status == 2


def test_certificates_are_listed_rotated_and_revoked(flota: Flota, tmp_path: Path) -> None:
    a_thing(flota, "meter-8", tmp_path / "m8")
    rotated = flota(
        "device", "certificate", "rotate", "meter-8", "-o", tmp_path / "m8-new", "--overlap", "7d", "--json"
    )
    assert rotated.status == 0, rotated.err
    old, new = flota("device", "certificate", "list", "meter-8", "--json").json()
    assert old["ends_at"] is not None
    assert rotated.json()["fingerprint"] == new["fingerprint"]
    assert "ends 20" in flota("device", "certificate", "list", "meter-8").out
    assert flota("device", "certificate", "revoke", old["fingerprint"][:10], "--reason", "lost").status == 0
    shown = flota("device", "show", "meter-8")
    assert f"{old['fingerprint']} revoked" in shown.out
    assert f"{new['fingerprint']} active" in shown.out
    assert len(flota("device", "show", "meter-8", "--json").json()["certificates"]) == 2
    assert flota("device", "certificate", "revoke", "00000000").status == 1


def test_a_device_is_let_in_by_the_certificate_that_is_in_its_sources(flota: Flota, tmp_path: Path) -> None:
    """What it was built with for another cloud: a certificate of another authority."""
    source = tmp_path / "foreign"
    a_thing(flota, "meter-9", source)
    certificate = x509.load_pem_x509_certificate((source / "certificate.pem").read_bytes())
    assert flota("device", "add", "meter-10", "--type", TYPE).status == 0
    result = flota("device", "certificate", "register", "meter-10", source / "aws_credentials.c")
    assert result.status == 1
    assert "known already" in result.err  # it is meter-9's
    foreign = _foreign()
    text = (source / "aws_credentials.c").read_text()
    ours = "\n".join(f'"{line}\\n"' for line in (source / "certificate.pem").read_text().splitlines())
    theirs = "\n".join(f'"{line}\\n"' for line in foreign.splitlines())
    assert ours in text
    (tmp_path / "theirs.c").write_text(text.replace(ours, theirs))
    result = flota("device", "certificate", "register", "meter-10", tmp_path / "theirs.c", "--json")
    assert result.status == 0, result.err
    assert result.json()["issued_here"] is False
    assert result.json()["fingerprint"] != certificate.fingerprint(hashes.SHA256()).hex()


def _foreign(key: PrivateKey | None = None) -> str:
    """Return a certificate of an authority that nobody here knows, and whose own certificate nobody has."""
    authority, now = new_thing_key("p256"), datetime.now(UTC)
    issuer = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Another cloud")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Another cloud's certificate")])
    made = (
        x509.CertificateBuilder(issuer, subject, (key or new_thing_key("p256")).public_key(), 99)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=3000))
        .sign(authority, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


def test_a_registered_certificate_of_another_authority_opens_the_port_to_who_has_its_key(
    flota: Flota, server: Server, tmp_path: Path
) -> None:
    key = new_thing_key("rsa-2048")
    theirs = tmp_path / "theirs"
    a_thing(flota, "meter-41", theirs)
    (theirs / "certificate.pem").write_text(_foreign(key))
    (theirs / "private.pem").write_text(pack_thing_key(key))
    assert _connack(theirs, _port(theirs), "meter-40") != ACCEPTED
    assert flota("device", "add", "meter-40", "--type", TYPE).status == 0
    assert flota("device", "certificate", "register", "meter-40", theirs / "certificate.pem").status == 0
    deadline = time.monotonic() + START_WITHIN_S  # the listener looks at its authorities every two seconds
    while (answer := _connack(theirs, _port(theirs), "meter-40")) != ACCEPTED and time.monotonic() < deadline:
        time.sleep(0.2)
    assert answer == ACCEPTED


def test_a_claim_is_made_for_a_template_and_revoked_with_it(flota: Flota, tmp_path: Path) -> None:
    added = flota("device", "template", "add", "meters", "--type", TYPE, "--thing-name", "meter-{SerialNumber}")
    assert added.status == 0, added.err
    assert flota("device", "claim", "create", "valves", "-o", tmp_path / "claim").status == 1
    assert not (tmp_path / "claim").exists()
    made = flota("device", "claim", "create", "meters", "-o", tmp_path / "claim", "--days", "30", "--json")
    assert made.status == 0, made.err
    assert (tmp_path / "claim" / "private.pem").stat().st_mode & 0o777 == 0o600
    (claim,) = flota("device", "claim", "list", "--json").json()
    assert (claim["fingerprint"], claim["template"]) == (made.json()["fingerprint"], "meters")
    assert [one["name"] for one in flota("device", "template", "list", "--json").json()] == ["meters"]
    assert flota("device", "template", "remove", "meters").status == 0
    assert flota("device", "claim", "list", "--json").json()[0]["status"] == "REVOKED"


# code signatures


def a_release(flota: Flota, tmp_path: Path, version: str, *more: object) -> tuple[Any, Path]:
    file = tmp_path / f"app_V{version}.bin"
    file.write_bytes(f"application {version}".encode())
    result = flota("release", "create", file, "--type", TYPE, "--version", version, "--json", *more)
    assert result.status == 0, result.err
    return result.json(), file


def a_release_key(flota: Flota, tmp_path: Path) -> None:
    if not (tmp_path / "keys" / "release.pem").exists():
        assert flota("key", "create", "release").status == 0


def test_a_release_is_signed_for_the_server_and_for_devices_in_one_go(flota: Flota, tmp_path: Path) -> None:
    a_release_key(flota, tmp_path)
    a_key(flota, tmp_path)
    made, file = a_release(flota, tmp_path, "1.1.0", "--certfile", "Code_Verify_Key", "--filepath", "/app.bin")
    arguments = ("release", "sign", made["id"], "--key", "release", "--code-key", "ecdsasigner", "--trust-key")
    blind = flota(*arguments)
    assert blind.status == 2  # no file: what the server says would be signed unseen
    signed = flota(*arguments, "--file", file)
    assert signed.status == 0, signed.err
    assert "sig-sha256-ecdsa" in signed.out
    assert flota("release", "publish", made["id"]).status == 0
    shown = flota("release", "show", made["id"])
    for text in ("code signature", "Code_Verify_Key", "/app.bin"):
        assert text in shown.out


def test_nothing_is_signed_for_a_file_that_is_another_than_the_servers(flota: Flota, tmp_path: Path) -> None:
    a_key(flota, tmp_path)
    made, file = a_release(flota, tmp_path, "1.2.0")
    file.write_bytes(b"something else")
    result = flota("release", "sign", made["id"], "--code-key", "ecdsasigner", "--file", file, "--trust-key")
    assert result.status == 1
    assert "not signed" in result.err


def test_a_signature_that_somebody_else_made_is_handed_in(flota: Flota, tmp_path: Path) -> None:
    a_key(flota, tmp_path)
    assert flota("type", "trust", TYPE, "--code-certificate", "ecdsasigner").status == 0
    made, file = a_release(flota, tmp_path, "1.3.0")
    assert flota("key", "sign", file, "--key", "ecdsasigner").status == 0
    der = tmp_path / f"{file.name}.sig"
    text = tmp_path / "signature.b64"
    text.write_bytes(base64.encodebytes(der.read_bytes()))
    for signature in (der, text):
        result = flota("release", "sign", made["id"], "--signature", signature, "--json")
        assert result.status == 0, result.err
    (code,) = result.json()["file_signatures"]
    assert base64.b64decode(code["signature"]) == der.read_bytes()


SIGNER = """
import pathlib, sys
from flota.trust.file_signatures import FilePrivateKey
from cryptography.hazmat.primitives.asymmetric import utils
key = FilePrivateKey.from_pem(pathlib.Path(sys.argv[1]).read_bytes())
made = key.sign(sys.stdin.buffer.read())
if sys.argv[2] == "raw":
    r, s = utils.decode_dss_signature(made)
    made = r.to_bytes(32, "big") + s.to_bytes(32, "big")
sys.stdout.buffer.write(made)
"""


def test_a_program_signs_the_file_and_its_answer_has_to_be_der(flota: Flota, tmp_path: Path) -> None:
    path = a_key(flota, tmp_path)
    (tmp_path / "signer.py").write_text(SIGNER)
    made, file = a_release(flota, tmp_path, "1.4.0")
    base = ("release", "sign", made["id"], "--file", file, "--code-certificate", "ecdsasigner", "--trust-key")
    for form, status in (("raw", 1), ("der", 0)):
        command = f"exec:{sys.executable} {tmp_path / 'signer.py'} {path} {form}"
        result = flota(*base, "--code-signer", command)
        assert result.status == status, result.err
        assert ("DER" in result.err) == (form == "raw")


def test_a_certificate_that_is_for_another_key_is_noticed_here(flota: Flota, tmp_path: Path) -> None:
    a_key(flota, tmp_path)
    a_key(flota, tmp_path, "other")
    made, file = a_release(flota, tmp_path, "1.5.0")
    result = flota(
        "release", "sign", made["id"], "--file", file, "--code-key", "ecdsasigner", "--code-certificate", "other"
    )
    assert result.status == 1
    assert "another key" in result.err


@pytest.mark.parametrize(
    "options",
    [
        ("--code-certificate", "ecdsasigner"),
        ("--code-key", "a", "--signature", "b"),
        ("--code-signer", "exec:x"),
    ],
)
def test_code_signature_options_that_contradict_are_wrong_use(flota: Flota, options: tuple[str, ...]) -> None:
    assert flota("release", "sign", "1", *options).status == 2


def test_ship_signs_for_devices_too(flota: Flota, tmp_path: Path) -> None:
    a_release_key(flota, tmp_path)
    a_key(flota, tmp_path)
    assert flota("device", "add", "meter-20", "--type", TYPE).status == 0
    file = tmp_path / "app_V1.6.0.bin"
    file.write_bytes(b"application 1.6.0")
    base = ("ship", file, "--type", TYPE, "--version", "1.6.0", "--to", "meter-20", "--key", "release", "--no-wait")
    assert flota(*base, "--trust-key").status == 1  # devices could not check it
    result = flota(
        *base, "--trust-key", "--code-key", "ecdsasigner", "--certfile", "Code_Verify_Key", "--name", "try-1", "--json"
    )
    assert result.status == 0, result.err
    assert result.json()["job_id"] == "AFR_OTA-try-1"


# on the wire


def test_the_servers_mqtt_port_takes_the_certificate_and_no_stranger(
    flota: Flota, server: Server, tmp_path: Path
) -> None:
    record = json.loads((server.data / "server.json").read_text())
    if not record.get("mqtts"):
        pytest.skip("not run: this server has no MQTT listener")
    a_thing(flota, "meter-30", tmp_path / "m30")
    thing = parse_thing_file((tmp_path / "m30" / "thing.json").read_bytes())
    assert record["mqtts"].endswith(f":{thing.port}")
    assert _connack(tmp_path / "m30", thing.port, "meter-30") == ACCEPTED
    fingerprint = flota("device", "certificate", "list", "meter-30", "--json").json()[0]["fingerprint"]
    assert flota("device", "certificate", "revoke", fingerprint).status == 0
    assert _connack(tmp_path / "m30", thing.port, "meter-30") != ACCEPTED


async def test_a_device_with_a_claim_gets_its_own_certificate_over_the_wire(
    flota: Flota, server: Server, tmp_path: Path
) -> None:
    assert flota("device", "template", "add", "wired", "--type", TYPE, "--unknown-devices", "accept").status == 0
    claim = tmp_path / "wired-claim"
    assert flota("device", "claim", "create", "wired", "-o", claim).status == 0
    key = new_thing_key("p256")
    own = tmp_path / "own"
    own.mkdir()
    for form in PayloadFormat:
        link = await open_mqtt("127.0.0.1", _port(claim), Connect("boot"), tls=_tls(claim), server_name="localhost")
        try:
            topic = f"$aws/certificates/create-from-csr/{form.value}"
            made = parse_certificate_made(
                await _asked(link, topic, pack_csr_request(make_request(key, "any"), form)), form
            )
            topic = f"$aws/provisioning-templates/wired/provision/{form.value}"
            request = ProvisionRequest(made.ownership_token, {"SerialNumber": f"wired-{form.value}"})
            thing = parse_provisioned(await _asked(link, topic, pack_provision_request(request, form)), form)
        finally:
            await link.close()
        assert thing.thing_name == f"wired-{form.value}"
        (own / "certificate.pem").write_text(made.certificate)
        (own / "private.pem").write_text(pack_thing_key(key))
        (own / "root-ca.pem").write_bytes((claim / "root-ca.pem").read_bytes())
        link = await open_mqtt(
            "127.0.0.1", _port(claim), Connect(thing.thing_name), tls=_tls(own), server_name="localhost"
        )
        try:
            answer = await _asked(link, f"$aws/things/{thing.thing_name}/jobs/get", b"{}")
            assert json.loads(answer)["queuedJobs"] == []
        finally:
            await link.close()


async def _asked(link: MqttLink, topic: str, payload: bytes) -> bytes:
    """Return what is answered to a request that is accepted."""
    await link.publish(topic, payload, qos=1)
    answer = await link.receive()
    assert answer.topic == f"{topic}/accepted", answer.payload
    return answer.payload


def _port(credentials: Path) -> int:
    return parse_thing_file((credentials / "thing.json").read_bytes()).port


def _tls(credentials: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(credentials / "root-ca.pem"))
    context.load_cert_chain(credentials / "certificate.pem", credentials / "private.pem")
    return context


def _connack(credentials: Path, port: int, client_id: str) -> bytes:
    """Return what the server answers to an MQTT CONNECT after a TLS handshake with these credentials."""
    identity = client_id.encode()
    body = b"\x00\x04MQTT\x04\x02\x00\x3c" + len(identity).to_bytes(2, "big") + identity
    with socket.create_connection(("127.0.0.1", port), timeout=20) as plain:
        try:
            with _tls(credentials).wrap_socket(plain, server_hostname="localhost") as secure:
                secure.sendall(bytes([0x10, len(body)]) + body)
                return secure.recv(4)
        except (ConnectionError, ssl.SSLError):
            return b""
