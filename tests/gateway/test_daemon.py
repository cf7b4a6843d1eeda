"""Devices come and go with the configuration; what the gateway counts and remembers can be looked at."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from flota.cli.app import main
from flota.errors import InvalidInput
from flota.gateway.configuration import GatewaySettings
from flota.gateway.starting import Start, reload_of, settings_of
from flota.gateway.update_states import Stage
from tests.gateway.benches import announce_boots, bench, device, eventually, ota
from tests.virtual.ameba_devices import blank_board, image_of, running

MAC = "00:E0:4C:00:00:01"
WAITING = device(9, address=None, mac=MAC)


async def test_a_device_that_appears_in_the_configuration_is_served_and_one_that_is_gone_no_more(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path, ota()) as one:
        newer: list[GatewaySettings] = []
        gateway = one.gateway()
        gateway.reload = lambda: newer.pop() if newer else None
        stop = asyncio.Event()
        life = asyncio.create_task(gateway.run(stop))
        await asyncio.sleep(0.2)
        assert not one.server.requests
        newer.append(replace(gateway.settings, devices=(WAITING,)))
        await eventually(lambda: one.update() is not None)
        newer.append(replace(gateway.settings, devices=()))
        await eventually(lambda: not gateway._turns)
        stop.set()
        await life


async def test_metrics_count_verdicts_and_name_no_device(tmp_path: Path) -> None:
    hardware = blank_board()
    hardware.flash_app(image_of("1.0.0"))
    async with (
        running(hardware) as board,
        bench(tmp_path, ota()) as one,
        one.running(device(await board.ports.get())) as gateway,
    ):
        announce_boots(board, gateway)
        await one.closing()
        text = gateway.metrics.exposition().decode()
    assert 'flota_gateway_verdicts_total{basis="announcement",outcome="success"} 1.0' in text
    assert "flota_gateway_cache_downloads 1.0" in text
    assert "unit-1" not in text
    assert "secret" not in text


async def test_status_shows_what_the_gateway_remembers_while_it_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with bench(tmp_path, ota()) as one, one.running(WAITING):
        await eventually(lambda: (update := one.update()) is not None and update.stage is Stage.OFFERED)
        with pytest.raises(SystemExit) as ended:
            main(["gateway", "status", "--state", str(one.state), "--json"])
    assert ended.value.code == 0
    out = capsys.readouterr().out  # the gateway in this process logs there too
    shown, _ = json.JSONDecoder().raw_decode(out, out.index("[\n  {"))
    assert [(entry["device"], entry["update"]["stage"]) for entry in shown] == [("unit-1", "offered")]


def test_a_changed_file_is_read_again_and_a_wrong_one_refused_once(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text('server = "http://a"\n')
    start = Start(config=str(path), flags={"poll_s": 3.0})
    reload = reload_of(start)
    assert reload is not None
    assert reload() is None
    path.write_text('server = "http://a"\n[[device]]\nname = "x"\naddress = "10.0.0.1"\n')
    changed = reload()
    assert changed == settings_of(start)
    assert changed is not None
    assert changed.patience.poll_s == 3.0
    path.write_text("server =")
    with pytest.raises(InvalidInput):
        reload()
    assert reload() is None
    path.unlink()
    assert reload() is None
