"""From file, variables and flags to settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from flota.errors import Conflict, InvalidInput
from flota.protocols.aws_ota import DataProtocol
from flota.protocols.aws_streams import JsonPayload
from flota.server.configuration import SETTINGS, read_configuration, settings_from
from flota.server.data_lock import hold_lock
from flota.server.settings import Address, ServerSettings, parse_address, parse_public_url

DATA = Path("/data")
WIDE = {"https": "0.0.0.0:8443", "http": "off"}


def settings(
    file: dict[str, object] | None = None, environment: dict[str, str] | None = None, **flags: object
) -> ServerSettings:
    return settings_from(DATA, file or {}, environment or {}, flags)


def test_by_default_it_listens_on_loopback_only() -> None:
    made = settings()
    assert (made.http, made.https) == (Address("127.0.0.1", 8080), Address("127.0.0.1", 8443))
    assert made.effective_database_url == "sqlite+aiosqlite:////data/flota.sqlite3"


def test_flags_count_before_variables_and_variables_before_the_file() -> None:
    file, environment = {"http": "127.0.0.1:1", "https": "127.0.0.1:1"}, {"FLOTA_HTTP": "127.0.0.1:2"}
    made = settings(file, environment, http="127.0.0.1:3")
    assert made.http == Address("127.0.0.1", 3)
    made = settings(file, environment)
    assert (made.http, made.https) == (Address("127.0.0.1", 2), Address("127.0.0.1", 1))
    assert settings(file).http == Address("127.0.0.1", 1)


def test_every_setting_can_be_given_in_the_file() -> None:
    text = """
    http = "off"
    https = "0.0.0.0:8443"
    public_url = "https://updates.example.net:8443/"
    name = ["Updates.example.net", "192.0.2.7"]
    tls_cert = "/etc/flota/cert.pem"
    tls_key = "/etc/flota/key.pem"
    database = "postgresql+asyncpg://flota@/flota"
    max_artifact_mib = 32
    stop_grace_s = 2.5
    device_requests_per_s = 8
    poll_jitter_percent = 0
    time_zone = "Europe/Berlin"
    viam_quiet_s = 60
    trusted_proxy = ["192.0.2.1", "2001:db8::/64"]
    proxy_client_cert = "192.0.2.2"
    proxy_authority = ["acme=0a1b", "0c2d"]
    proxy_device_type = "pump"
    mqtt = "off"
    mqtts = "0.0.0.0:8883"
    mqtt_bridge = "mqtt://broker.example.net"
    mqtt_bridge_rule = ["out:telemetry/{thing}/"]
    aws_iot_data = ["MQTT", "http"]
    aws_iot_url_lifetime_s = 60
    aws_iot_lenient_rejected = true
    aws_iot_json_payload = "hex"
    aws_iot_events = true
    """
    file = read_configuration(text.encode(), "flota.toml")
    assert set(file) | {"mqtt_broker"} == {setting.key for setting in SETTINGS}, "a broker leaves no room for a bridge"
    made = settings(file)
    assert made.http is None
    assert made.public_url == "https://updates.example.net:8443"
    assert made.names == ("updates.example.net", "192.0.2.7")
    assert made.tls_cert == Path("/etc/flota/cert.pem")
    assert (made.max_artifact_bytes, made.stop_grace_s) == (32 << 20, 2.5)
    assert (made.device_requests_per_s, made.viam_quiet_s, made.poll_jitter_percent) == (8, 60, 0)
    assert made.time_zone == "Europe/Berlin"
    assert made.effective_database_url == "postgresql+asyncpg://flota@/flota"
    assert [str(one) for one in made.trusted_proxies] == ["192.0.2.1/32", "2001:db8::/64", "192.0.2.2/32"]
    assert [(one.tenant, one.authority) for one in made.proxy_authorities] == [("ACME", "0a1b"), ("DEFAULT", "0c2d")]
    assert made.proxy_device_type == "pump"
    assert made.aws_iot_data == (DataProtocol.MQTT, DataProtocol.HTTP)
    assert (made.aws_iot_url_lifetime_s, made.aws_iot_json_payload) == (60, JsonPayload.HEX)
    assert made.aws_iot_lenient_rejected
    assert made.aws_iot_events


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("aws_iot_data", "FTP"),
        ("aws_iot_url_lifetime_s", 59),
        ("aws_iot_url_lifetime_s", 3601),
        ("aws_iot_url_lifetime_s", "soon"),
        ("aws_iot_lenient_rejected", "perhaps"),
        ("aws_iot_json_payload", "octal"),
        ("aws_iot_events", 7),
    ],
)
def test_settings_of_aws_iot_outside_their_bounds_are_refused(key: str, value: object) -> None:
    with pytest.raises(InvalidInput, match=key):
        settings({key: value})


def test_names_may_come_as_one_variable() -> None:
    assert settings(environment={"FLOTA_NAME": "a.example, 192.0.2.1,a.example"}).names == ("a.example", "192.0.2.1")


def test_an_unknown_key_in_the_file_is_refused_with_those_that_exist() -> None:
    with pytest.raises(InvalidInput, match="htttp") as caught:
        read_configuration(b"htttp = 1", "flota.toml")
    assert "public_url" in str(caught.value.expected)
    with pytest.raises(InvalidInput, match="not TOML"):
        read_configuration(b"http = ", "flota.toml")


@pytest.mark.parametrize(
    ("source", "given"),
    [
        ("--http", {"http": "127.0.0.1:99999"}),
        ("--http", {"http": "nowhere"}),
        ("--https", {"https": "a b:1"}),
        ("--public-url", {"public_url": "ftp://x"}),
        ("--name", {"name": ["a/b"]}),
        ("--stop-grace-s", {"stop_grace_s": "soon"}),
        ("--max-artifact-mib", {"max_artifact_mib": -1}),
    ],
)
def test_a_bad_value_names_where_it_came_from(source: str, given: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match=f"^{source}: "):
        settings(**given)
    key, value = next(iter(given.items()))
    if isinstance(value, str):
        with pytest.raises(InvalidInput, match=f"^FLOTA_{key.upper()}: "):
            settings(environment={f"FLOTA_{key.upper()}": value})


def test_listening_wider_than_this_machine_needs_a_public_url_and_a_name() -> None:
    with pytest.raises(InvalidInput, match=r"--public-url URL .* and --name"):
        settings(**WIDE)
    with pytest.raises(InvalidInput, match="--name HOST") as caught:
        settings(**WIDE, public_url="https://updates.example.net:8443")
    assert "--public-url URL" not in str(caught.value.expected)
    with pytest.raises(InvalidInput, match="--public-url URL"):
        settings(**WIDE, name=["updates.example.net"])
    made = settings(**WIDE, public_url="https://updates.example.net", name=["updates.example.net"])
    assert made.https == Address("0.0.0.0", 8443)


def test_a_certificate_of_ones_own_needs_no_name_and_plain_http_neither() -> None:
    settings(**WIDE, public_url="https://u.example", tls_cert="c.pem", tls_key="k.pem")
    settings(http="192.0.2.1:80", https="off", public_url="http://u.example")


def test_certificate_and_key_go_together_and_one_listener_stays() -> None:
    with pytest.raises(InvalidInput, match="go together"):
        settings(tls_cert="c.pem")
    with pytest.raises(InvalidInput, match="no listener"):
        settings(http="off", https="off")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", Address("127.0.0.1", 8080)),
        ("[::1]:8080", Address("::1", 8080)),
        (":0", Address("127.0.0.1", 0)),
        ("8080", Address("127.0.0.1", 8080)),
        ("Server.example:1", Address("Server.example", 1)),
    ],
)
def test_addresses_are_read_as_people_write_them(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "url", ["", "x", "http://", "http://a b", "http://h/?q", "http://u:p@h", "http://h:0", "http://[::1"]
)
def test_what_devices_could_not_be_given_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput):
        parse_public_url(url)


def test_a_data_directory_has_one_server_at_a_time(tmp_path: Path) -> None:
    import os

    lock = tmp_path / "lock"
    with hold_lock(lock), pytest.raises(Conflict, match=f"process {os.getpid()}"), hold_lock(lock):
        pass
    with hold_lock(lock):
        pass


def test_a_file_that_is_not_utf8_says_where_in_our_own_words() -> None:
    with pytest.raises(InvalidInput) as caught:
        read_configuration(b'# caf\xc3\xa9\nname = "caf\xe9"\n', "flota.toml")
    assert (caught.value.offset, caught.value.found) == (19, "byte 0xe9 in line 2")
    assert "codec" not in str(caught.value)
