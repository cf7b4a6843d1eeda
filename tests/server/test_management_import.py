"""Device lists as CSV: all of it or nothing, and the line number of everything that is wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flota.errors import InvalidInput
from flota.fleet.devices import DeviceState
from flota.fleet.storage import NewDevice
from flota.server.auth import digest_of_secret
from flota.server.device_import import BadDeviceList, parse_device_list
from tests.server.management_api import Api, an_api, assert_problem

GOOD = """\
name,type,mac,token,labels
pump-1,esp32-c3,aa:bb:cc:dd:ee:01,factory-token-1,site=berlin line="two words"
pump-2,esp32-c3,,,
"""


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with an_api(tmp_path) as one:
        yield one


def test_every_column_is_read() -> None:
    (line, first), (_, second) = parse_device_list(GOOD.encode()).rows
    assert (line, first.name, first.type_name) == (2, "pump-1", "esp32-c3")
    assert (first.mac, first.token) == ("AA:BB:CC:DD:EE:01", "factory-token-1")
    assert first.labels == {"site": "berlin", "line": "two words"}
    assert (second.mac, second.token, second.labels) == (None, None, {})


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfname,type\na,b\n",
        b"name;type\r\na;b\r\n",
        b"TYPE,Name\nb,a\n\n\n",
        b'name,type\n"a",b',
    ],
)
def test_what_spreadsheets_make_of_csv_is_read(data: bytes) -> None:
    ((_, registration),) = parse_device_list(data).rows
    assert (registration.name, registration.type_name) == ("a", "b")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "header"),
        (b"name,type\n", "no devices"),
        (b"name,mac\na,b\n", "header"),
        (b"name,type,colour\na,b,c\n", "header"),
        (b"name,name,type\na,a,b\n", "header"),
        (b"name,type\na,b\nc\xff,d\n", "line 3"),
        (b'name,type\n"a,b\n', "CSV"),
    ],
)
def test_a_file_that_cannot_be_read_says_where(data: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        parse_device_list(data)


def test_every_wrong_line_is_named() -> None:
    lines = [
        "name,type,mac,token,labels",
        "ok,t,,,",
        "../x,t,,,",
        "b,t,nonsense,,",
        "c,t,,short,",
        "d,t,,,colour",
        "e,t",
        "ok,t,,,",
        "f,t,aa:bb:cc:dd:ee:01,,",
        "g,t,AABBCCDDEE01,,",
        "h\x00,t,,,",
    ]
    read = parse_device_list("\n".join(lines).encode())
    assert sorted(line for line, _ in read.problems) == [3, 4, 5, 6, 7, 8, 10, 11]
    assert [one.name for _, one in read.rows] == ["ok", "f"]
    error = BadDeviceList(read.problems)
    assert [problem.split(":")[0] for problem in error.problems] == [f"line {n}" for n in (3, 4, 5, 6, 7, 8, 10, 11)]
    assert "short" not in str(error)


async def test_an_import_registers_every_device(api: Api) -> None:
    answer = await api.ask("POST", "/devices/import", content=GOOD.encode(), headers={"content-type": "text/csv"})
    assert answer.status_code == 201, answer.text
    first, second = answer.json()["items"]
    assert first == {"name": "pump-1", "token": None}
    assert second["token"]
    assert (await api.get("/devices/pump-1"))["labels"] == {"site": "berlin", "line": "two words"}


async def test_an_import_with_one_wrong_line_registers_nobody(api: Api) -> None:
    await api.add_devices("taken")
    await api.post("/devices", {"name": "with-mac", "type": "generic-linux", "mac": "02:00:00:00:00:01"})
    for rows, faults in (
        (["new-1,generic-linux,", "taken,generic-linux,", "new-2,generic-linux,020000000001"], ["line 3", "line 4"]),
        (["new-1,toaster,", "new-2,generic-linux,", "new-3,kettle,"], ["line 2", "line 4"]),
        (
            [
                "new-1,toaster,",
                "new 2,generic-linux,",
                "taken,generic-linux,",
                "a,generic-linux,nonsense",
                "b,generic-linux,020000000001",
                "c,toaster,",
                "c,generic-linux,",
                "d,generic-linux",
            ],
            ["line 2", "line 3", "line 4", "line 5", "line 6", "line 7", "line 8", "line 9"],
        ),
    ):
        content = "\n".join(["name,type,mac", *rows]).encode()
        problem = assert_problem(await api.ask("POST", "/devices/import", content=content), 400, "bad-device-list")
        assert [line.split(":")[0] for line in problem["errors"]] == faults
        assert [one["name"] for one in (await api.get("/devices"))["items"]] == ["taken", "with-mac"]


async def test_an_import_accepts_the_devices_in_it_that_wait(api: Api) -> None:
    await api.add_devices("first")
    scope = await api.scope()
    async with api.context.storage.transaction() as transaction:
        waiting = NewDevice("waiting", "generic-linux", DeviceState.PENDING)
        await transaction.add_device(scope, waiting, now=api.context.now())
    content = b"name,type\nwaiting,generic-linux\nnew,generic-linux\n"
    made = (await api.ask("POST", "/devices/import", content=content)).json()["items"]
    assert [one["name"] for one in made] == ["waiting", "new"]
    for one in made:
        assert (await api.get(f"/devices/{one['name']}"))["state"] == "accepted"
        async with api.context.storage.reading() as transaction:
            assert await transaction.device_token_sha256(scope, one["name"]) == digest_of_secret(one["token"])
