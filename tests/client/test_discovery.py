"""Which server a command finds, and whom it shows which token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flota.client.discovery import find_server, parse_server_url
from flota.errors import InvalidInput, NotFound, Unauthenticated

HTTP = "http://127.0.0.1:18080"
HTTPS = "https://127.0.0.1:18443"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    directory = tmp_path / "flota-data"
    directory.mkdir()
    record = {"http": HTTP, "https": HTTPS, "ca": str(directory / "root.crt")}
    (directory / "server.json").write_text(json.dumps(record))
    (directory / "admin.token").write_text("admin-secret\n")
    return directory


def test_a_local_server_is_found_by_its_record(data: Path) -> None:
    found = find_server(environment={}, working_directory=data.parent)
    assert (found.url, found.token) == (HTTP, "admin-secret")
    found = find_server(environment={"FLOTA_DATA": str(data)}, working_directory=Path("/"))
    assert found.url == HTTP


def test_options_win_over_the_environment_and_that_over_the_record(data: Path) -> None:
    environment = {"FLOTA_SERVER": "http://env:1", "FLOTA_TOKEN": "env-token", "FLOTA_DATA": str(data)}
    assert find_server(environment=environment).url == "http://env:1"
    found = find_server("http://option:2", "option-token", environment=environment)
    assert (found.url, found.token) == ("http://option:2", "option-token")


def test_the_administrators_token_is_never_shown_to_another_server(data: Path) -> None:
    with pytest.raises(Unauthenticated, match="--token"):
        find_server("http://elsewhere:8080", environment={"FLOTA_DATA": str(data)})
    assert find_server(HTTPS, environment={"FLOTA_DATA": str(data)}).token == "admin-secret"


def test_the_local_servers_own_authority_is_trusted_for_it_alone(data: Path) -> None:
    environment = {"FLOTA_DATA": str(data)}
    assert find_server(HTTPS, environment=environment).cacert == data / "root.crt"
    assert find_server("https://elsewhere", "t", environment=environment).cacert is None
    assert find_server(HTTPS, cacert="/my.pem", environment=environment).cacert == Path("/my.pem")


@pytest.mark.parametrize("record", ["", "{", "[]", "{}", '{"http": 5}', '{"http": null}', "\xff"])
def test_a_record_that_cannot_be_read_counts_as_no_server(data: Path, record: str) -> None:
    (data / "server.json").write_text(record, encoding="latin-1")
    with pytest.raises(NotFound, match="flota up"):
        find_server(environment={"FLOTA_DATA": str(data)})


@pytest.mark.parametrize("text", ["", "ftp://x", "http://", "http://x:0", "http://x:99999", "http://a b", "http://é"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="http"):
        parse_server_url(text)


def test_an_address_without_a_scheme_is_http() -> None:
    assert parse_server_url("localhost:8080") == "http://localhost:8080"
    assert parse_server_url("https://[::1]:8443/") == "https://[::1]:8443"
