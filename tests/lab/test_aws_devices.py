"""Virtual AWS IoT devices from descriptions: what goes together, credentials, programming, reading."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from flota.errors import InvalidInput
from flota.lab import programmer
from flota.lab.aws_agents import AwsOptions, ThingDirectory, aws_agent
from flota.lab.fleet import DeviceSpec, Dialect, default_dialect, open_device
from flota.lab.sample_firmware import sample_versioned_file
from flota.lab.state_directory import StateDirectory
from flota.trust import thing_credentials as files
from flota.trust.code_signing import make_code_signing_certificate
from flota.trust.keys import PrivateKey
from flota.virtual.ab_board import AbHardware
from flota.virtual.agents.aws_ota.ab_pal import signature_key_of
from flota.virtual.device import Behaviour, behaviour_of

TOKEN_OPTIONS = AwsOptions(host="127.0.0.1", port=1883)


def spec(directory: Path, **changes: object) -> DeviceSpec:
    given: dict[str, object] = {"name": "meter-1", "board": "aws-reference", "state": directory / "unit"}
    return DeviceSpec(**(given | changes))  # type: ignore[arg-type]


def credentials(directory: Path) -> Path:
    """Write a directory of credentials whose certificate is a self-signed one."""
    key = PrivateKey.generate("p256")
    made = make_code_signing_certificate(key, subject="meter-1", serial=1, now=datetime.now(UTC))
    pem = made.public_bytes(Encoding.PEM)
    directory.mkdir()
    thing = files.ThingFile("meter-1", "client-7", "flota.example", 8883)
    (directory / files.THING_FILE).write_bytes(files.pack_thing_file(thing))
    (directory / files.ROOT_CA_FILE).write_bytes(pem)
    (directory / files.CERTIFICATE_FILE).write_bytes(pem)
    (directory / files.PRIVATE_KEY_FILE).write_bytes(key.to_pem())
    (directory / files.CODE_CERTIFICATE_FILE).write_bytes(pem)
    return directory


def test_the_board_speaks_aws_iot() -> None:
    assert default_dialect("aws-reference") is Dialect.AWS_IOT


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"server": "http://127.0.0.1:8080"}, "asks an MQTT server"),
        ({"token": "secret"}, "a token without an MQTT server"),
        ({"aws": TOKEN_OPTIONS}, "either a certificate or a token"),
        ({"aws": AwsOptions(), "token": "secret"}, "needs the server's address"),
        ({"aws": TOKEN_OPTIONS, "token": "t", "name": "meter 1"}, "not a name for a thing"),
        ({"dialect": Dialect.DDI}, "does not speak ddi"),
        ({"board": "esp32-c3", "dialect": Dialect.AWS_IOT}, "does not speak aws-iot"),
        ({"board": "esp32-c3", "aws": TOKEN_OPTIONS}, "needs no MQTT server"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        open_device(spec(tmp_path, **changes), lambda event: None)


async def test_a_blank_device_gets_its_firmware_and_keeps_it(tmp_path: Path) -> None:
    image = sample_versioned_file("1.2.3")
    for firmware in (image, sample_versioned_file("9.9.9")):
        running = open_device(spec(tmp_path, firmware=firmware), lambda event: None)
        assert isinstance(running.device.hardware, AbHardware)
        report = running.device.hardware.boot()
        assert report.app is not None
        assert report.app.version == "1.2.3"
        await running.close()
    assert programmer.read_slot(StateDirectory(tmp_path / "unit"), "running") == ("a", image)


def test_a_programmer_writes_slot_a_or_an_address_and_erases(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path)
    record = directory.introduce("aws-reference")
    image = sample_versioned_file("1.0.0")
    assert programmer.flash_file(directory, record, image) == f"image, {len(image)} bytes to a at 0x10000"
    assert programmer.read_slot(directory, "a") == ("a", image)
    assert programmer.flash_file(directory, record, b"abcd", address=0x40000) == "4 bytes to 0x40000"
    programmer.flash_file(directory, record, b"abcd", address=0x40000, erase=True)
    with pytest.raises(InvalidInput, match="nothing boots"):
        programmer.read_slot(directory, "running")


def test_credentials_name_thing_server_and_what_files_are_checked_with(tmp_path: Path) -> None:
    read = ThingDirectory.read(credentials(tmp_path / "credentials"))
    assert (read.thing.thing_name, read.thing.client_id, read.thing.endpoint) == (
        "meter-1",
        "client-7",
        "flota.example",
    )
    assert read.code_certificate is not None
    assert "PRIVATE" not in repr(read)
    assert aws_agent("another", None, None, AwsOptions(credentials=read)).tests_the_app
    with pytest.raises(InvalidInput, match="either a certificate or a token"):
        aws_agent("meter-1", "token", None, AwsOptions(credentials=read))


@pytest.mark.parametrize(
    "missing", [files.THING_FILE, files.ROOT_CA_FILE, files.CERTIFICATE_FILE, files.PRIVATE_KEY_FILE]
)
def test_credentials_that_are_not_whole_are_refused(tmp_path: Path, missing: str) -> None:
    directory = credentials(tmp_path / "credentials")
    (directory / missing).unlink()
    with pytest.raises(InvalidInput, match="no usable credentials"):
        ThingDirectory.read(directory)


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    directory = credentials(tmp_path / "credentials")
    other = ec.generate_private_key(ec.SECP256R1())
    pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / files.PRIVATE_KEY_FILE).write_bytes(pem)
    with pytest.raises(InvalidInput, match="no usable credentials"):
        ThingDirectory.read(directory)


def test_a_device_reads_the_signature_that_its_certificate_is_for(tmp_path: Path) -> None:
    assert signature_key_of(None) == "sig-sha256-ecdsa"
    assert signature_key_of(b"no certificate") == "sig-sha256-ecdsa"
    pem = (credentials(tmp_path / "credentials") / files.CODE_CERTIFICATE_FILE).read_bytes()
    assert signature_key_of(pem) == "sig-sha256-ecdsa"


@pytest.mark.parametrize("behaviour", list(Behaviour))
async def test_sample_files_say_what_they_are_and_how_they_behave(tmp_path: Path, behaviour: Behaviour) -> None:
    image = sample_versioned_file("4.5.6", size=20_000, behaviour=behaviour.value)
    assert len(image) == 20_000
    running = open_device(spec(tmp_path, firmware=image), lambda event: None)
    report = running.device.hardware.boot()
    assert report.app is not None
    assert (report.app.version, behaviour_of(report.app)) == ("4.5.6", behaviour)
    await running.close()
