"""`flota serve-ameba`: an OTA_All.bin for AmebaD firmware that fetches for itself."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import Annotated

import typer

from flota.cli.output import echo, warn
from flota.errors import WrongUse

app = typer.Typer(add_completion=False)


@app.command()
def serve_ameba(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, metavar="FILE")],
    http: Annotated[
        str | None, typer.Option("--http", metavar="H:P", help="For http_update_ota and OTA_Http (their port: 3000).")
    ] = None,
    tcp: Annotated[
        str | None, typer.Option("--tcp", metavar="H:P", help="For update_ota_local, ATWO and ATSO (usual port: 8082).")
    ] = None,
    start: Annotated[
        list[str] | None,
        typer.Option("--start", metavar="HOST[:PORT]", help="Tell this OTA_Http device to fetch (port 5000)."),
    ] = None,
    board: Annotated[str, typer.Option(help="The board that the image has to fit: amebad or amebad-4mb.")] = "amebad",
    opaque: Annotated[bool, typer.Option("--opaque", help="The image is encrypted: do not look into it.")] = False,
) -> None:
    """Serve FILE to AmebaD boards that pull: over HTTP, by the vendor's TCP stream, or both. Until Ctrl-C.

    FILE is an OTA_All.bin, or a km0_km4_image2.bin, which is packed first; it is checked as flota push checks it.
    No TLS, no passwords: for a bench, or behind a gateway of your own.

    Examples:
        flota serve-ameba OTA_All.bin --http 0.0.0.0:3000 --start 192.168.1.7

        flota serve-ameba km0_km4_image2.bin --tcp 0.0.0.0:8082
    """
    from flota.cli.push import parse_target, read_image, require_fit
    from flota.protocols.ameba_push import ARDUINO, payload_for

    if http is None and tcp is None:
        raise WrongUse("say where to listen: --http H:P, --tcp H:P or both")
    data = read_image(file)
    require_fit(data, board, opaque=opaque)
    payload, packed = payload_for(ARDUINO, data, opaque=opaque)
    if packed:
        echo(f"{file.name} is packed: {len(payload)} bytes")
    places = {name: parse_target(text) for name, text in (("http", http), ("tcp", tcp)) if text is not None}
    asyncio.run(_serve(payload, places, [(text, *parse_target(text)) for text in start or []]))


async def _serve(
    payload: bytes, places: dict[str, tuple[str, int | None]], devices: list[tuple[str, str, int | None]]
) -> None:
    from flota.protocols.ameba_http import TRIGGER_PORT, UI_PORT
    from flota.protocols.ameba_push import ARDUINO
    from flota.transports.ameba_http import PullServer

    server = PullServer(payload, tell=lambda device, text: echo(f"{device}: {text}"))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        for name, (host, port) in places.items():
            if name == "http":
                address = await stack.enter_async_context(server.http(host, UI_PORT if port is None else port))
                echo(f"serving {len(payload)} bytes at http://{address[0]}:{address[1]}/")
            else:
                address = await stack.enter_async_context(server.tcp(host, ARDUINO.port if port is None else port))
                echo(f"Listening on port ({address[1]}) to send {len(payload)} bytes")
        starting = asyncio.gather(*(_start(name, host, port or TRIGGER_PORT) for name, host, port in devices))
        await stop.wait()
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting


async def _start(name: str, host: str, port: int) -> None:
    """Tell one device to fetch: it looks once in 10 s."""
    from flota.transports.ameba_http import trigger

    try:
        await trigger(host, port=port)
        echo(f"{name}: was told to start")
    except (OSError, TimeoutError, UnicodeError) as error:
        warn(f"{name}: could not be told to start: {str(error) or 'no answer'}")
