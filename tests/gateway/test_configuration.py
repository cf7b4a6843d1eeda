"""Every mistake in a configuration is named; what is right is read as written."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.cli.app import main
from flota.errors import FlotaError
from flota.gateway.configuration import credentials_of, device_of_flag, mac_address, read_config, settings_from
from flota.gateway.driver import AdoptedDevice

CONFIG = """\
server = "https://updates.example.net:8443/"
token_file = "gw.token"
trust = ["trust.json", "/etc/flota/other.json"]
state = "state"
poll_s = 30
metrics = "127.0.0.1:9100"

[[device]]
name = "pump-1"
address = "192.168.1.7"
port = 8020
type = "pump"
hardware_revision = "B"

[[device]]
name = "pump-2"
mac = "00-e0-4c-12-34-56"
profile = "anchorota"
board = "bw16"
token = "of-its-own"
"""


def test_a_file_is_read_as_written_with_paths_beside_it(tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(CONFIG)
    (tmp_path / "gw.token").write_text("gateway-secret\n")
    found = settings_from(read_config(tmp_path / "gateway.toml"), {}, base=tmp_path)
    first, second = found.devices
    assert found.server == "https://updates.example.net:8443"
    assert (found.state, found.trust) == (tmp_path / "state", (tmp_path / "trust.json", Path("/etc/flota/other.json")))
    assert (found.patience.poll_s, found.metrics) == (30.0, ("127.0.0.1", 9100))
    assert first == AdoptedDevice("pump-1", "pump", "amebad", address="192.168.1.7", port=8020, hardware_revision="B")
    assert (second.mac, second.board, second.device_type) == ("00:E0:4C:12:34:56", "amebad", "amebad")
    assert credentials_of(found, first) == ("gateway-secret", "GatewayToken")
    assert credentials_of(found, second) == ("of-its-own", "TargetToken")


def test_flags_win_over_the_file() -> None:
    found = settings_from(
        {"server": "http://old", "device": []},
        {"server": "http://new", "poll_s": None},
        [device_of_flag("a=10.0.0.1")],
        base=Path(),
    )
    assert found.server == "http://new"
    assert found.devices[0].address == "10.0.0.1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=10.0.0.1", ("10.0.0.1", None, None)),
        ("a=10.0.0.1:8020", ("10.0.0.1", 8020, None)),
        ("a=[fe80::1]:8082", ("fe80::1", 8082, None)),
        ("a=mac=00e04c123456,port=8020", (None, 8020, "00:E0:4C:12:34:56")),
        ("a=bw16.local:8082,mac=00:E0:4C:12:34:56", ("bw16.local", 8082, "00:E0:4C:12:34:56")),
    ],
)
def test_a_device_as_a_flag(text: str, expected: tuple[str | None, int | None, str | None]) -> None:
    found = device_of_flag(text)
    assert (found.address, found.port, found.mac) == expected


@pytest.mark.parametrize(
    "text",
    ["", "a", "a=", "=10.0.0.1", "a=10.0.0.1:0", "a=10.0.0.1:99999", "a=x,colour=red", "a=x,mac=1", "a=x,board=vax",
     "a=x,profile=y", "a=x,port=http", "a=[]"],
)  # fmt: skip
def test_what_is_no_device_is_refused(text: str) -> None:
    with pytest.raises(FlotaError):
        device_of_flag(text)


@given(st.text(max_size=60))
def test_any_text_is_a_device_or_an_error_of_ours(text: str) -> None:
    with contextlib.suppress(FlotaError):
        assert device_of_flag(text).name


@pytest.mark.parametrize(
    "file",
    [
        {"server": "ftp://x"},
        {"server": "http://x", "colour": 1},
        {"server": "http://x", "device": {}},
        {"server": "http://x", "device": [{"name": "a"}]},
        {"server": "http://x", "device": [{"name": "a", "address": "x", "port": True}]},
        {"server": "http://x", "device": [{"name": 1, "address": "x"}]},
        {"server": "http://x", "poll_s": "often"},
        {"server": "http://x", "mdns": "no"},
        {"server": "http://x", "trust": [1]},
        {"server": "http://x", "metrics": "here"},
        {"server": "http://x", "token_file": "/nowhere"},
        {"server": "http://x", "device": [{"name": "a", "address": "x"}, {"name": "a", "address": "y"}]},
        {"server": "http://x", "device": [{"name": "a", "address": "x"}, {"name": "b", "address": "x"}]},
        {"server": "http://x", "device": [{"name": "a", "mac": "00e04c123456"}, {"name": "b", "mac": "00E04C123456"}]},
    ],
)
def test_mistakes_in_a_file_are_refused(file: dict[str, Any]) -> None:
    with pytest.raises(FlotaError):
        settings_from(file, {}, base=Path())


@pytest.mark.parametrize("text", ["", "00:E0:4C:12:34", "00:E0:4C:12:34:5G", "00:E0:4C:12:34:56:78"])
def test_what_is_no_mac_is_refused(text: str) -> None:
    with pytest.raises(FlotaError):
        mac_address(text)


@pytest.mark.parametrize(
    "arguments",
    [
        ["gateway", "run"],
        ["gateway", "run", "--server", "nonsense", "--device", "a=10.0.0.1"],
        ["gateway", "run", "--server", "http://x", "--device", "a"],
    ],
)
def test_wrong_use_of_the_command_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_a_gateway_that_trusts_nobody_does_not_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["gateway", "run", "--server", "http://x", "--device", "a=10.0.0.1", "--state", str(tmp_path)])
    assert ended.value.code == 1
    assert "--trust" in capsys.readouterr().err
