"""An image for the 4 MB flash map never reaches a 2 MB board: refused at three doors, by each of them alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from flota.cli.app import main
from flota.protocols.ddi import FeedbackFinished
from tests.gateway.benches import accepts, bench, device, ota, signed
from tests.server.management_api import an_api, assert_problem
from tests.virtual.ameba_devices import blank_board, image_of, running

BIG = ota(size=1_500_000)
"""Fits the slots of `amebad-4mb`; on a 2 MB board it would overwrite user data and the slot that runs."""


async def test_door_1_the_server_makes_no_release_of_it_for_the_2_mb_type(tmp_path: Path) -> None:
    async with an_api(tmp_path) as api:
        artifact = await api.upload(BIG, "OTA_All.bin")
        body = {"type": "amebad", "version": "2.0.0", "artifact": artifact["sha256"]}
        problem = assert_problem(await api.ask("POST", "/releases", json=body), 422, "does-not-fit")
        assert "larger" in problem["detail"]
        fits = await api.ask("POST", "/releases", json={**body, "type": "amebad-4mb"})
        assert fits.is_success, fits.text


@pytest.mark.parametrize("signed_for", ["amebad", "amebad-4mb"])
async def test_door_2_the_gateway_sends_nothing_of_it_however_well_it_is_signed(
    tmp_path: Path, signed_for: str
) -> None:
    """Whoever has the key may sign it for the wrong type, or the server may offer it to the wrong device."""
    metadata = signed(BIG, device_type=signed_for, board=signed_for)
    hardware = blank_board()
    hardware.flash_app(image_of("1.0.0"))
    async with (
        running(hardware) as board,
        bench(tmp_path, BIG, metadata) as one,
        one.running(device(await board.ports.get())),
    ):
        closing = await one.closing()
    assert closing.finished is FeedbackFinished.FAILURE
    assert closing.details[0].startswith("refused: ")
    assert accepts(board) == 0


def test_door_3_push_sends_nothing_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "OTA_All.bin"
    file.write_bytes(BIG)

    async def try_it() -> int:
        connections = []
        listener = await asyncio.start_server(lambda _, writer: connections.append(writer), "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        async with listener:
            with pytest.raises(SystemExit) as ended:
                await asyncio.to_thread(main, ["push", str(file), "--to", f"127.0.0.1:{port}", "--no-look"])
        assert not connections
        return int(ended.value.code or 0)

    assert asyncio.run(try_it()) == 1
    assert "larger than the smallest slot" in capsys.readouterr().err
