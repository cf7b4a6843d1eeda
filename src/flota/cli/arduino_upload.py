"""`flota arduino-upload PORT FILE IP`: in place of the vendor's sender in the upload recipe of the Arduino IDE.

The same arguments and the same lines, with an exit status that tells the truth.
Source: docs/reference/ameba-push.md, "The IDE's recipe"; Ameba-AIoT/ameba-arduino-d: platform.txt, DownloadServer.
"""

from __future__ import annotations

import asyncio
import ipaddress
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from flota.cli.output import EXIT_FAILED, echo, warn
from flota.errors import FlotaError, WrongUse

if TYPE_CHECKING:
    from flota.protocols.ameba_push import PushRecord, PushStage

app = typer.Typer(add_completion=False)

IMAGE2_NAME: Final = "km0_km4_image2.bin"
"""What the IDE's last step of a build leaves in the tools folder, where `misc/OTA_All.bin` lies too."""


@app.command()
def arduino_upload(
    port: Annotated[int, typer.Argument(min=1, max=65535, metavar="PORT", help="TCP port of the board, 8082.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="OTA_All.bin, as the recipe names it.")],
    ip: Annotated[str, typer.Argument(metavar="IP", help="The board's address, from the IDE's network port.")],
    newest: Annotated[
        bool, typer.Option("--newest/--exactly", help="Take km0_km4_image2.bin of a newer build, if there is one.")
    ] = True,
    board: Annotated[str, typer.Option(help="The board that the image has to fit: amebad or amebad-4mb.")] = "amebad",
) -> None:
    """Push to an AmebaD board from the Arduino IDE, in place of the vendor's sender (see platform.local.txt).

    It prints the same lines, and "Client Disconnected." last, but only when everything arrived. Where the build left
    a newer km0_km4_image2.bin beside FILE or in the folder above, that is packed and sent instead.

    Example:
        flota arduino-upload 8082 misc/OTA_All.bin 192.168.1.7
    """
    from flota.cli.push import read_image, require_fit
    from flota.protocols.ameba_push import ARDUINO, PushOutcome, judge_push, payload_for

    address = _checked_address(ip)
    chosen = newest_image(file) if newest else file
    if not chosen.is_file():
        raise FlotaError("there is no file to send", found=str(file), hint="Build the sketch first.")
    if chosen != file:
        warn(f"flota: {chosen} is newer than {file.name}: it is packed and sent instead")
    data = read_image(chosen)
    require_fit(data, board, opaque=False)
    payload, _ = payload_for(ARDUINO, data)
    console = _Console(address, port, str(file), payload)
    record = asyncio.run(_push(address, port, payload, console))
    verdict = judge_push(record)
    console.end_dots()
    if verdict.outcome is PushOutcome.DELIVERED:
        echo(f"[main] Total send {len(payload)} bytes")
        echo("Client Disconnected.")
        return
    warn(f"flota: {verdict.outcome.value}: {verdict.reason}")
    raise typer.Exit(EXIT_FAILED)


def newest_image(file: Path) -> Path:
    """Return `file`, or the `km0_km4_image2.bin` beside it or in the folder above that was written after it."""
    written = file.stat().st_mtime_ns if file.is_file() else -1
    built = [folder / IMAGE2_NAME for folder in (file.parent, file.parent.parent)]
    newer = [path for path in built if path != file and path.is_file() and path.stat().st_mtime_ns > written]
    return max(newer, key=lambda path: path.stat().st_mtime_ns, default=file)


class _Console:
    """The vendor's lines, in its order and spelling."""

    def __init__(self, ip: str, port: int, file: str, payload: bytes) -> None:
        self._ip = ip
        self._port = port
        self._file = file
        self._payload = payload
        self._dots = 0

    def reached(self, stage: PushStage, descriptor: int) -> None:
        """Print what the vendor's sender says at this stage."""
        from flota.images.ameba import byte_sum
        from flota.protocols.ameba_push import PushStage

        if stage is PushStage.NOT_CONNECTED:
            echo("[main] Default input parameters 2 usage: <file>")
            size = len(self._payload)
            echo(f"[main] File {self._file} opened succesfully in current folder (Size: {size} Byte)")
            echo(f"[computeChecksum] checksum: 0x{byte_sum(self._payload):x} ")
            echo(f"[main] Create socket: success ({descriptor}) !")
            echo(f"IP   = {self._ip} [User Input / Arduino Network Port]")
            echo(f"PORT = {self._port}")
        elif stage is PushStage.CONNECTED:
            echo("[main] Connect to Server successfully!")
            echo("[main] Send checksum and file size first")
        elif stage is PushStage.INFO_SENT:
            echo("[main] Send checksum 12 byte ")
            echo(f"[main] OTA Firmware: {self._file} opened successfully")
            echo("[main] Sending file... ")

    def progress(self, done: int, _total: int) -> None:
        """Print a dot for every piece of 1024 bytes that has arrived, as far as is known."""
        from flota.protocols.ameba_push import CHUNK_SIZE

        pieces = -(-len(self._payload) // CHUNK_SIZE) if done == len(self._payload) else done // CHUNK_SIZE
        if pieces > self._dots:
            sys.stdout.write("." * (pieces - self._dots))
            sys.stdout.flush()
            self._dots = pieces

    def end_dots(self) -> None:
        """End the line of dots, if there is one."""
        if self._dots:
            echo()


async def _push(ip: str, port: int, payload: bytes, console: _Console) -> PushRecord:
    from flota.transports.ameba_push import PushConnection

    return await PushConnection(ip, port, payload, on_progress=console.progress, on_stage=console.reached).run()


def _checked_address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        raise WrongUse("IP is no address", expected="such as 192.168.1.7", found=repr(text[:60])) from None
