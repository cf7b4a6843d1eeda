"""A serial line of this machine (a pseudo-terminal does), and the loop that runs a protocol machine on it."""

from __future__ import annotations

import asyncio
import os
import termios
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from flota.protocols.blynk.mcu import LinkUp, Mcu, McuSettings
from flota.protocols.blynk.ncp import LinkCommand, Ncp, NcpSettings, Reported, SwitchRate
from flota.protocols.blynk.ncp_job import FirmwareInfo
from flota.transports.uart import LineUnusable, MachineOnLine, SerialLine

INFO = FirmwareInfo("TMPLabcd1234", "1.2.3", "Nov 16 2023 20:35:55", "0.7.0")


@pytest.fixture
def pty() -> Iterator[tuple[int, str]]:
    near, far = os.openpty()
    tty.setraw(near)
    tty.setraw(far)
    yield near, os.ttyname(far)
    os.close(far)
    os.close(near)


async def test_bytes_go_both_ways(pty: tuple[int, str]) -> None:
    near, path = pty
    arrived: asyncio.Queue[bytes] = asyncio.Queue()
    line = await SerialLine.open(path, 38_400, on_data=arrived.put_nowait, on_lost=lambda reason: None)
    os.write(near, b"hello")
    assert await arrived.get() == b"hello"
    line.write(b"\x00\x11\x13\xaa")
    await line.set_baud(115_200)
    assert os.read(near, 100) == b"\x00\x11\x13\xaa"
    await line.close()


async def test_a_change_of_rate_loses_nothing_on_a_pseudo_terminal(pty: tuple[int, str]) -> None:
    near, path = pty
    arrived: asyncio.Queue[bytes] = asyncio.Queue()
    line = await SerialLine.open(path, 38_400, on_data=arrived.put_nowait, on_lost=lambda reason: None)
    for baud in (115_200, 38_400) * 20:
        os.write(near, b"ping")
        line.write(b"pong")
        await line.set_baud(baud)
        assert await arrived.get() == b"ping"
        assert os.read(near, 100) == b"pong"
    await line.close()


async def test_a_change_of_rate_reaches_the_port(pty: tuple[int, str]) -> None:
    near, path = pty
    line = await SerialLine.open(path, 38_400, on_data=lambda data: None, on_lost=lambda reason: None)
    line._has_rate = True  # the only port at hand is a pseudo-terminal, which takes any rate and keeps it
    await line.set_baud(115_200)
    assert termios.tcgetattr(near)[5] == termios.B115200
    await line.close()


async def test_a_line_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(LineUnusable, match="cannot open the serial line"):
        await SerialLine.open(str(tmp_path / "ttyUSB9"), 38_400, on_data=print, on_lost=print)


async def test_the_loss_of_a_line_is_told_once() -> None:
    near, far = os.openpty()
    tty.setraw(far)
    lost: asyncio.Queue[str] = asyncio.Queue()
    line = await SerialLine.open(os.ttyname(far), 38_400, on_data=lambda data: None, on_lost=lost.put_nowait)
    os.close(far)
    os.close(near)
    assert await lost.get()
    line.write(b"into nothing")
    await line.close()
    assert lost.empty()


class Ends:
    """Two machines, each the other's line; rates count as in a UART."""

    def __init__(self) -> None:
        self.seen: list[object] = []
        now = asyncio.get_running_loop().time()
        self.ncp = MachineOnLine(Ncp(NcpSettings(), now=now), self.seen.append)
        self.mcu = MachineOnLine(Mcu(McuSettings(INFO), now=now), self.seen.append)
        self.ncp_line, self.mcu_line = Half(self.mcu), Half(self.ncp)
        self.ncp_line.other, self.mcu_line.other = self.mcu_line, self.ncp_line
        self.ncp.attach(self.ncp_line)
        self.mcu.attach(self.mcu_line)


class Half:
    other: Half

    def __init__(self, to: MachineOnLine) -> None:
        self._to = to
        self.baud = 38_400

    def write(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(self._to.received, data if self.baud == self.other.baud else bytes(len(data)))

    async def set_baud(self, baud: int) -> None:
        await asyncio.sleep(0.005)
        self.baud = baud

    async def close(self) -> None:
        """Nothing to let go."""


async def test_two_machines_find_each_other_and_change_the_rate() -> None:
    ends = Ends()
    async with asyncio.timeout(20):
        while not any(isinstance(event, LinkUp) for event in ends.seen):  # noqa: ASYNC110 - two machines at work
            await asyncio.sleep(0.01)
    assert any(isinstance(event, Reported) and event.info == INFO for event in ends.seen)
    assert ends.ncp_line.baud == ends.mcu_line.baud == 115_200
    await ends.ncp.stop()
    await ends.mcu.stop()


class Speaker:
    """Says two things with a change of rate between them."""

    def __init__(self) -> None:
        self._commands: list[LinkCommand] = [b"slow", SwitchRate(115_200), b"fast"]

    def receive(self, data: bytes, *, now: float) -> list[object]:
        return []

    def deadline_passed(self, *, now: float) -> list[object]:
        return []

    def next_deadline(self) -> float | None:
        return None

    def link_commands(self) -> list[LinkCommand]:
        commands, self._commands = self._commands, []
        return commands


class Recorder:
    """A line that writes down what is asked of it."""

    def __init__(self, *, can_switch: bool = True) -> None:
        self.log: list[object] = []
        self._can_switch = can_switch

    def write(self, data: bytes) -> None:
        self.log.append(data)

    async def set_baud(self, baud: int) -> None:
        await asyncio.sleep(0.001)
        if not self._can_switch:
            raise LineUnusable("no such rate")
        self.log.append(baud)

    async def close(self) -> None:
        self.log.append("closed")


async def test_what_comes_after_a_change_of_rate_waits_for_it() -> None:
    line = Recorder()
    on_line = MachineOnLine(Speaker(), print)
    on_line.attach(line)
    assert line.log == [b"slow"]
    await asyncio.sleep(0.05)
    assert line.log == [b"slow", 115_200, b"fast"]
    await on_line.stop()


async def test_a_rate_that_the_line_cannot_do_is_told_and_the_rest_goes_on() -> None:
    line, troubles = Recorder(can_switch=False), []
    on_line = MachineOnLine(Speaker(), print, on_trouble=troubles.append)
    on_line.attach(line)
    await asyncio.sleep(0.05)
    assert line.log == [b"slow", b"fast"]
    assert troubles == ["no such rate"]
    await on_line.stop()
