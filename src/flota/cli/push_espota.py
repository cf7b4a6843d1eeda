"""`flota push` to ESP boards with ArduinoOTA: the espota exchange."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import typer

from flota.cli.output import EXIT_FAILED, echo, echo_json, warn
from flota.errors import InvalidInput, Refused

if TYPE_CHECKING:
    from flota.images.model import Inspection


def push_to_esp(
    host: str,
    port: int | None,
    data: bytes,
    filename: str,
    *,
    board: str | None,
    password: str | None,
    look: bool,
    as_json: bool,
) -> None:
    """Push `data` to the ESP board at `host` and tell the result; `port` None = announced, else the usual one.

    Raises `Refused` before anything is sent if the image does not suit the board; exits 1 unless the device took it.
    """
    from flota.images.inspection import inspect
    from flota.transports.espota import push_espota

    found = inspect(data)
    require_esp_fit(data, found, board)
    used = port or _port(host, found, look=look, quiet=as_json)
    if not as_json:
        echo(f"{host}:{used} (UDP)")
    from flota.cli.push import ProgressLine

    with ProgressLine(len(data), quiet=as_json) as bar:
        record = asyncio.run(push_espota(host, used, data, password=password, filename=filename, on_progress=bar.show))
    if as_json:
        echo_json(
            {
                "host": host,
                "port": used,
                "outcome": "taken" if record.taken else "failed",
                "reason": record.reason,
                "stage": record.stage.value,
                "sent": record.sent,
                "total": record.total,
                "auth": record.auth,
            }
        )
    else:
        (echo if record.taken else warn)(f"{'taken' if record.taken else 'failed'}: {record.reason}")
    if not record.taken:
        raise typer.Exit(EXIT_FAILED)


def require_esp_fit(data: bytes, found: Inspection, board_name: str | None) -> None:
    """Raise `Refused` with the first reason why the image does not suit the board (default: that of its own chip)."""
    from flota.boards.catalogue import BOARDS, board
    from flota.boards.fit import fit_check
    from flota.boards.model import TypeProfile
    from flota.images.model import ImageFormat

    if found.format is ImageFormat.ESP_MERGED:
        raise Refused(
            "this is an image of a whole flash, with boot loader and partition table",
            expected="an app image",
            hint="ArduinoOTA writes an app slot only: push the app image that the merged one was made of.",
        )
    for finding in found.errors:
        raise Refused(finding.text, offset=finding.offset, expected=finding.expected, found=finding.found)
    name = board_name or (found.chip if found.chip in BOARDS else None)
    if name is None:
        return  # an ESP8266, or a chip that no board of ours has: the device looks at the image itself
    hardware = board(name)
    if hardware.boot != "esp-otadata":
        raise InvalidInput(f"{hardware.name} takes no push of this kind", expected="an ESP board")
    for reason in fit_check(TypeProfile(hardware), found, file_size=len(data), version=""):
        if reason.code == "version":
            continue  # nobody said which version this is
        if not reason.blocking:
            warn(f"warning: {reason.text}")
        elif reason.code != "too-large" or board_name is not None:
            raise Refused(
                reason.text, offset=reason.offset, expected=reason.expected, found=reason.found, hint=reason.hint
            )
        else:
            warn(f"warning: {reason.text} (of the usual partition table; the device's own may differ)")


def _port(host: str, found: Inspection, *, look: bool, quiet: bool) -> int:
    """Return the announced update port, else the usual one of the image's chip."""
    from flota.cli.push import LOOK_S
    from flota.gateway.discover import board_at
    from flota.images.model import ImageFormat
    from flota.protocols.arduino_mdns import PushKind
    from flota.protocols.espota import ESP32_PORT, ESP8266_PORT

    heard = asyncio.run(board_at(host, within_s=LOOK_S)) if look else None
    if heard is not None and heard.kind is PushKind.ESPOTA and heard.upload_port is not None:
        if not quiet:
            echo(f"{heard.instance} announces itself as {heard.board}: UDP port {heard.upload_port}")
        return heard.upload_port
    return ESP8266_PORT if found.format is ImageFormat.ESP8266_APP else ESP32_PORT
