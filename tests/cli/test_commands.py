"""The nouns of the command line: listings, errors with what to do next, exit statuses."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.cli.conftest import Flota, Server

pytestmark = pytest.mark.scenario

TABLE = """\
nvs,      data, nvs,   0x9000,  0x6000,
otadata,  data, ota,   0xf000,  0x2000,
phy_init, data, phy,   0x11000, 0x1000,
ota_0,    app,  ota_0, 0x20000, 0x180000,
ota_1,    app,  ota_1, 0x1a0000, 0x180000,
"""


def test_a_type_with_its_own_partition_table(flota: Flota, tmp_path: Path) -> None:
    table = tmp_path / "partitions.csv"
    table.write_text(TABLE)
    assert flota("key", "create", "-o", tmp_path / "a.pem").status == 0
    added = flota(
        "type", "add", "pump", "--board", "esp32-c3", "--partitions", table, "--signer", tmp_path / "a.pub",
        "--version-from", "app_desc", "--unknown-devices", "accept", "--hardware-revision", "B", "--json",
    )  # fmt: skip
    assert added.status == 0, added.err
    shown = flota("type", "show", "pump", "--json").json()
    assert shown == added.json()
    assert [slot["size"] for slot in shown["slots"]] == [0x180000, 0x180000]
    assert (shown["version_from"], shown["unknown_devices"], len(shown["signers"])) == ("app_desc", "accept", 1)
    assert flota("type", "set", "pump", "--unknown-devices", "refuse").status == 0
    assert "pump" in flota("type", "list").out
    names = [one["name"] for one in flota("type", "list", "--json").json()]
    assert {"pump", "esp32-c3", "generic-linux"} <= set(names)


def test_devices_are_added_labelled_refused_and_removed(flota: Flota) -> None:
    added = flota("device", "add", "unit-1", "--type", "generic-linux", "--label", "site=berlin")
    assert added.status == 0, added.err
    assert "shown this once" in added.out
    assert flota("device", "label", "unit-1", "line=2", "site=").out.strip() == "unit-1  line=2"
    assert flota("device", "list", "--select", "label.line=2", "--json").json()[0]["name"] == "unit-1"
    token = flota("device", "token", "unit-1").out.strip()
    assert len(token) >= 32
    assert flota("device", "token", "unit-1", "--device-token", "of-the-factory").out.strip() == "of-the-factory"
    assert flota("device", "refuse", "unit-1").out.strip() == "unit-1  refused"
    assert flota("device", "accept", "unit-1").out.strip() == "unit-1  accepted"
    assert "line=2" in flota("device", "show", "unit-1").out
    assert flota("device", "remove", "unit-1").status == 0
    gone = flota("device", "show", "unit-1")
    assert (gone.status, gone.out) == (1, "")
    assert gone.err.startswith("error: ")


def test_accepting_nobody_says_where_to_look(flota: Flota) -> None:
    refused = flota("device", "accept", "nobody")
    assert refused.status == 1
    assert "nobody" in refused.err
    assert "flota device list --state pending" in refused.err
    assert "MAC" in refused.err


def test_an_import_is_all_or_nothing(flota: Flota, tmp_path: Path) -> None:
    path = tmp_path / "devices.csv"
    path.write_text("name,type,token\nimp-1,generic-linux,token-of-one\nimp 2,generic-linux,\n")
    refused = flota("device", "import", path)
    assert refused.status == 1
    assert "line 3" in refused.err
    path.write_text("name,type\nimp-1,toaster\nimp 2,generic-linux\nimp-3\n")
    lines = flota("device", "import", path).err.splitlines()
    assert [line.strip().split(":")[0] for line in lines[:4]] == ["error", "line 2", "line 3", "line 4"]
    assert flota("device", "list", "--text", "imp", "--json").json() == []
    path.write_text("name,type,token\nimp-1,generic-linux,token-of-one\nimp-2,generic-linux,\n")
    made = flota("device", "import", path, "--json").json()
    assert [(one["name"], one["token"] is None) for one in made] == [("imp-1", True), ("imp-2", False)]


@pytest.mark.parametrize(
    "arguments",
    [
        ("device", "add", "bad\udcff", "--type", "generic-linux"),
        ("device", "show", "bad\udcff"),
        ("device", "add", "ok", "--type", "generic-linux", "--label", "site=\udcff"),
        ("release", "show", "\udcff"),
    ],
)
def test_names_that_are_not_utf8_are_a_clear_error(flota: Flota, arguments: tuple[str, ...]) -> None:
    refused = flota(*arguments)
    assert refused.status == 1
    assert "UTF-8" in refused.err


def test_files_that_are_not_utf8_are_a_clear_error(flota: Flota, tmp_path: Path) -> None:
    path = tmp_path / "latin1.csv"
    path.write_bytes(b"name,type\nd\xe9,generic-linux\n")
    refused = flota("device", "import", path)
    assert refused.status == 1
    assert "line 2" in refused.err
    assert "0xb (11)" in refused.err
    firmware = Path(os.fsdecode(os.fsencode(tmp_path) + b"/fw-\xff.bin"))
    firmware.write_bytes(b"firmware")
    refused = flota("release", "create", firmware, "--type", "generic-linux", "--version", "u")
    assert refused.status == 1
    assert "UTF-8" in refused.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("rollout", "create", "--release", "1"),
        ("rollout", "create", "--release", "1", "--devices", "a", "--select", "all"),
        ("device", "add", "x"),
        ("device", "add", "x", "--type", "generic-linux", "--label", "nonsense"),
        ("device", "list", "--state", "asleep"),
        ("token", "create", "x", "--role", "owner"),
        ("release", "create", "x.bin", "--type", "t", "--version", "1", "--expires", "tomorrow"),
        ("type", "trust", "generic-linux"),
        ("ship", "x.bin"),
        ("ship", "x.bin", "--type", "t", "--version", "", "--to", "all", "--key", "k"),
        ("ship", "no_version.bin", "--type", "t", "--to", "all", "--key", "k"),
        ("release", "create", "app_V1.0.bin", "--type", "t"),
        ("ship", "x.bin", "--type", "t", "--version", "1", "--to", "all", "--key", "k", "--waves", "0,500%"),
        ("release", "create", "x.bin", "--type", "t", "--version", " "),
        ("rollout", "create", "--release", "1", "--devices", "a", "--waves", "0,500%"),
        ("rollout", "create", "--release", "1", "--devices", "a", "--waves", "50%,20%,100%"),
        ("device", "list", "--server", "ftp://x"),
        ("nonsense",),
    ],
)
def test_wrong_use_exits_2(flota: Flota, arguments: tuple[str, ...]) -> None:
    result = flota(*arguments)
    assert result.status == 2, result.err
    assert result.err
    assert result.out == ""


def test_a_missing_file_and_an_empty_one_are_errors(flota: Flota, tmp_path: Path) -> None:
    missing = flota("release", "create", tmp_path / "none.bin", "--type", "generic-linux", "--version", "1")
    assert missing.status == 1
    assert "none.bin" in missing.err
    (tmp_path / "empty.bin").touch()
    empty = flota("release", "create", tmp_path / "empty.bin", "--type", "generic-linux", "--version", "1")
    assert empty.status == 1
    assert "empty" in empty.err


def test_an_upload_that_breaks_off_leaves_nothing_behind(server: Server) -> None:
    address = urlsplit(server.url)
    head = (
        "POST /api/v1/artifacts HTTP/1.1\r\nhost: x\r\nx-filename: half.bin\r\ncontent-length: 1000000\r\n"
        f"authorization: Bearer {server.token}\r\n\r\n"
    )
    before = sorted((server.data / "artifacts").rglob("*"))
    with socket.create_connection((address.hostname or "", address.port or 0)) as connection:
        connection.sendall(head.encode() + bytes(300_000))
        _until(lambda: any((server.data / "artifacts" / "incoming").iterdir()))
    _until(lambda: not any((server.data / "artifacts" / "incoming").iterdir()))
    assert sorted((server.data / "artifacts").rglob("*")) == before


def _until(condition: Callable[[], bool], within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_merged_or_foreign_file_does_not_fit_an_esp_board(flota: Flota, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no firmware at all")
    refused = flota("release", "create", path, "--type", "esp32-c3", "--version", "1")
    assert refused.status == 1
    assert "does not fit" in refused.err
    assert "expected" in refused.err


def test_tokens_limit_what_a_command_may_do(flota: Flota, server: Server) -> None:
    made = flota("token", "create", "looker", "--role", "viewer", "--json").json()
    arguments = ("--server", server.url, "--token", made["secret"])
    assert flota("device", "list", *arguments).status == 0
    refused = flota("device", "add", "nope", "--type", "generic-linux", *arguments)
    assert refused.status == 1
    assert "role" in refused.err
    assert "operator" in refused.err
    assert "looker" in flota("token", "list").out
    assert flota("token", "revoke", made["id"]).status == 0
    refused = flota("device", "list", *arguments)
    assert refused.status == 1
    assert "token" in refused.err


def test_the_audit_trail_has_no_gap(flota: Flota) -> None:
    flota("device", "add", "audited", "--type", "generic-linux")
    entries = flota("audit", "list", "--after", "0", "--limit", "100000", "--json").json()
    assert [one["sequence"] for one in entries] == list(range(1, len(entries) + 1))
    newest = flota("audit", "list", "--limit", "1")
    assert "device:audited" in newest.out
    assert "token:admin" in newest.out


def test_without_a_server_every_command_says_how_to_name_one(
    flota: Flota, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOTA_DATA", str(tmp_path / "nothing"))
    refused = flota("device", "list")
    assert refused.status == 1
    assert "--server" in refused.err
    assert "flota up" in refused.err
    refused = flota("device", "list", "--server", "http://127.0.0.1:9", "--token", "x")
    assert refused.status == 1
    assert "no answer from http://127.0.0.1:9" in refused.err


def test_the_program_runs_as_a_process_and_listings_are_json(server: Server) -> None:
    environment = {**os.environ, "FLOTA_DATA": str(server.data)}
    command = [sys.executable, "-m", "flota", "type", "list", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=50)
    assert any(one["name"] == "esp32-c3" for one in json.loads(done.stdout))
    assert done.stderr == b""


def test_a_client_follows_events_live_and_from_any_point(server: Server) -> None:
    with server.client() as client:
        client.add_device("followed", "generic-linux")
        last = client.last_audit_sequence()
        stream = client.follow_events(last - 1)
        assert next(stream).subject == "device:followed"
        client.remove_device("followed")
        assert next(stream).action == "device.removed"
        stream.close()  # type: ignore[attr-defined]


def test_the_local_servers_own_authority_is_trusted_and_no_other(flota: Flota, server: Server, tmp_path: Path) -> None:
    assert flota("device", "list", "--server", server.https).status == 0
    other = tmp_path / "other.pem"
    other.write_text("no certificate")
    refused = flota("device", "list", "--server", server.https, "--cacert", other)
    assert refused.status == 1
    assert "certificate" in refused.err
    name = server.https.replace("127.0.0.1", "localhost")
    refused = flota("device", "list", "--server", name, "--token", server.token)
    assert refused.status == 1
    assert "certificate" in refused.err
