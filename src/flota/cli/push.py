"""`flota push`: a file to one board on the network, without a server."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from flota.cli.image_files import read_file
from flota.cli.output import EXIT_FAILED, echo, echo_json, warn
from flota.errors import InvalidInput, Refused, WrongUse

if TYPE_CHECKING:
    from flota.protocols.ameba_push import PushProfile, PushRecord

app = typer.Typer(add_completion=False)

LARGEST_BYTES: Final = 32 * 1024 * 1024
"""Above the flash of every board that is pushed to: a larger file is not even read."""

LOOK_S: Final = 2.0
"""How long to look for an announcement of the board when no port is given."""


@app.command()
def push(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, metavar="FILE")],
    to: Annotated[str, typer.Option("--to", metavar="HOST[:PORT]", help="The board.")],
    profile: Annotated[
        str | None, typer.Option(help="arduino (port 8082), guide (8020) or anchorota; default: what is announced.")
    ] = None,
    board: Annotated[
        str | None,
        typer.Option(
            help="The board that the image has to fit; default: amebad, or the ESP chip that the image names."
        ),
    ] = None,
    password: Annotated[
        str | None, typer.Option("--password", envvar="FLOTA_OTA_PASSWORD", help="ESP boards: the sketch's password.")
    ] = None,
    opaque: Annotated[
        bool, typer.Option("--opaque", help="The image is encrypted for the flash: do not look into it.")
    ] = False,
    look: Annotated[bool, typer.Option("--look/--no-look", help="Listen for the board's announcement first.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="The result as data.")] = False,
) -> None:
    """Push an image to a board that waits for one: AmebaD (sketch OTA_Basic), or ESP (ArduinoOTA, as espota does).

    FILE is an OTA_All.bin, a km0_km4_image2.bin, which is packed first, or an ESP app image. It is checked before the
    first byte is sent: AmebaD boards check next to nothing, and never answer: the result says how far it came.

    Examples:
        flota push OTA_All.bin --to 192.168.1.7

        flota push km0_km4_image2.bin --to 192.168.1.7:8082 --json

        flota push firmware.bin --to 192.168.1.9 --password s3cret
    """
    from flota.protocols.ameba_push import PROFILES, PushOutcome, judge_push, payload_for, profile_named

    host, port = parse_target(to)
    named = profile_named(profile) if profile else None
    data = read_image(file)
    if named is None and is_for_esp(data, board):
        from flota.cli.push_espota import push_to_esp

        push_to_esp(host, port, data, file.name, board=board, password=password, look=look, as_json=as_json)
        return
    if password is not None:
        raise WrongUse("AmebaD boards take no password", hint="Leave out --password.")
    chosen = named or PROFILES["arduino"]
    require_fit(data, board or "amebad", opaque=opaque)
    payload, packed = payload_for(chosen, data, opaque=opaque)
    if packed and not as_json:
        echo(f"{file.name} is packed for the profile {chosen.name}: {len(payload)} bytes")
    tries = [port] if port else _ports(host, named, look=look, quiet=as_json)
    record, used = asyncio.run(_push_to_first(host, tries, payload, quiet=as_json))
    verdict = judge_push(record)
    if as_json:
        echo_json(
            {
                "host": host,
                "port": used,
                "outcome": verdict.outcome.value,
                "reason": verdict.reason,
                "stage": record.stage.value,
                "sent": record.sent,
                "total": record.total,
                "closed_after_s": record.closed_after_s,
            }
        )
    else:
        (echo if verdict.outcome is PushOutcome.DELIVERED else warn)(f"{verdict.outcome.value}: {verdict.reason}")
    if verdict.outcome is not PushOutcome.DELIVERED:
        raise typer.Exit(EXIT_FAILED)


def read_image(path: Path) -> bytes:
    """Return the file. Raises `Refused` for an empty one and for one that no board of any kind has room for."""
    size = path.stat().st_size
    if not 0 < size <= LARGEST_BYTES:
        raise Refused(
            "the file is empty" if not size else "the file is larger than any board's flash",
            expected=f"1 to {LARGEST_BYTES} bytes",
            found=f"{size} bytes",
        )
    return read_file(path)


def is_for_esp(data: bytes, board_name: str | None) -> bool:
    """Return whether the push is one for an ESP board: it is named, or the image is one for ESP chips."""
    from flota.boards.catalogue import board
    from flota.images.inspection import inspect
    from flota.images.model import ImageFormat

    if board_name is not None:
        return board(board_name).boot == "esp-otadata"
    return inspect(data).format in {ImageFormat.ESP_APP, ImageFormat.ESP8266_APP, ImageFormat.ESP_MERGED}


def parse_target(text: str) -> tuple[str, int | None]:
    """Return host and port of `HOST`, `HOST:PORT` or `[IPV6]:PORT`. Raises `WrongUse`."""
    host, port_text = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise WrongUse("--to is no address", expected="HOST, HOST:PORT or [IPV6]:PORT", found=repr(text[:80]))
        port_text = rest[1:]
    elif text.count(":") == 1:
        host, _, port_text = text.partition(":")
    if not host or (port_text and not (port_text.isascii() and port_text.isdecimal() and 0 < int(port_text) < 65536)):
        raise WrongUse("--to is no address", expected="HOST, HOST:PORT or [IPV6]:PORT", found=repr(text[:80]))
    return host, int(port_text) if port_text else None


def require_fit(data: bytes, board_name: str, *, opaque: bool) -> None:
    """Raise `Refused` with the first reason why the image does not suit the board; `opaque` images only have a size."""
    from flota.boards.catalogue import board
    from flota.boards.fit import fit_check
    from flota.boards.model import TypeProfile
    from flota.images.inspection import inspect
    from flota.protocols.ameba_push import payload_for, profile_named

    hardware = board(board_name)
    if hardware.boot != "ameba-signature":
        raise InvalidInput(f"{hardware.name} takes no push of this kind", expected="amebad or amebad-4mb")
    found = inspect(data)
    if opaque:
        payload, _ = payload_for(profile_named("anchorota"), data, opaque=True)
        limit = min(slot.size for slot in hardware.slots)
        if len(payload) > limit:
            raise Refused("the image is larger than a slot", expected=f"at most {limit} bytes", found=len(payload))
        return
    for reason in fit_check(TypeProfile(hardware), found, file_size=len(data), version=""):
        if reason.code == "version":
            continue  # nobody said which version this is
        if reason.blocking:
            raise Refused(
                reason.text, offset=reason.offset, expected=reason.expected, found=reason.found, hint=reason.hint
            )
        warn(f"warning: {reason.text}")


def _ports(host: str, named: PushProfile | None, *, look: bool, quiet: bool) -> list[int]:
    """Return the ports to try: the profile's, else the announced board's, else the guide's and then the core's."""
    from flota.gateway.discover import board_at
    from flota.protocols.ameba_push import ARDUINO, GUIDE

    if named is not None:
        return [named.port]
    found = asyncio.run(board_at(host, within_s=LOOK_S)) if look else None
    if found is not None and found.upload_port is not None:
        if not quiet:
            echo(f"{found.instance} announces itself as {found.board}: port {found.upload_port}")
        return [found.upload_port]
    return [GUIDE.port, ARDUINO.port]


async def _push_to_first(host: str, ports: list[int], payload: bytes, *, quiet: bool) -> tuple[PushRecord, int]:
    """Push to the first port that takes a connection; returns the record and the port."""
    from flota.protocols.ameba_push import PushStage
    from flota.transports.ameba_push import push as push_payload

    for port in ports:
        if not quiet:
            echo(f"{host}:{port}")
        with ProgressLine(len(payload), quiet=quiet) as bar:
            record = await push_payload(host, port, payload, on_progress=bar.show)
        if record.stage is not PushStage.NOT_CONNECTED or port == ports[-1]:
            return record, port
        if not quiet:
            warn(f"{host}:{port}: {record.trouble}; trying the next port")
    raise WrongUse("no port to push to")


class ProgressLine:
    """A progress bar on a terminal; elsewhere a line for every tenth."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        self._total = max(total, 1)
        self._quiet = quiet
        self._tenths = 0

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *error: object) -> None:
        if sys.stdout.isatty() and self._tenths and not self._quiet:
            echo()

    def show(self, done: int, _total: int) -> None:
        """Show `done` bytes."""
        tenths = 10 * done // self._total
        if self._quiet or tenths == self._tenths:
            return
        self._tenths = tenths
        if sys.stdout.isatty():
            sys.stdout.write(f"\r[{'#' * tenths}{'.' * (10 - tenths)}] {done} of {self._total} bytes")
            sys.stdout.flush()
        else:
            echo(f"{10 * tenths} %")
