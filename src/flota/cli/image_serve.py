"""`flota image serve`: a local endpoint from which a board on the desk fetches its firmware."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from flota.cli.output import echo, warn
from flota.errors import InvalidInput

if TYPE_CHECKING:
    from flota.errors import FlotaError
    from flota.server.image_endpoint import ImageSource, ServedImage

EVERY_ADDRESS: Final = "0.0.0.0"  # noqa: S104 - a board must reach it; the help says so
DEFAULT_PORT: Final = 3001


def serve(
    file: Annotated[str, typer.Argument(help="An app image; with --watch also a directory or 'PATTERN'.")],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 = all of this machine's.")] = EVERY_ADDRESS,
    port: Annotated[int, typer.Option(help="0 = any free one.", min=0, max=65535)] = DEFAULT_PORT,
    watch: Annotated[bool, typer.Option("--watch", help="Always serve the newest image of FILE's place.")] = False,
    version: Annotated[str, typer.Option(help="Version in the configuration shown, else the image's + hash.")] = "",
) -> None:
    """Serve a firmware file to boards in this network, over HTTP/1.1 and h2c.

    Prints the URL, and the service entry for a Viam machine's configuration. For development: no TLS, no passwords.

    Example: flota image serve build/firmware-ota.bin
    """
    from flota.server.image_endpoint import ImageSource, check_version

    if version:
        check_version(version)
    with tempfile.TemporaryDirectory(prefix="flota-serve-") as copies:
        shown = _Screen(version)
        source = ImageSource(file, Path(copies), watch=watch, on_change=shown.changed, on_passed_over=shown.passed_over)
        source.refresh()
        if source.current is None:
            raise InvalidInput("there is no image to serve", expected="an app image (*.bin)", found=f"none in {file}")
        asyncio.run(_serve(source, host, port, shown))


class _Screen:
    """What the command prints."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._url: str | None = None
        self._image: ServedImage | None = None

    def listening(self, url: str) -> None:
        self._url = url
        self._show()

    def changed(self, image: ServedImage) -> None:
        self._image = image
        self._show()

    def passed_over(self, path: Path, error: FlotaError) -> None:
        warn(f"passed over: {error}")

    def delivered(self, peer: str, what: str) -> None:
        echo(f"{peer}: {what}")

    def _show(self) -> None:
        if self._url is None or self._image is None:
            return
        from flota.images.text import cleaned_text
        from flota.server.image_endpoint import service_config

        image = self._image
        entry = service_config(self._url, self._version or image.version)
        echo(f"serving {cleaned_text(image.source.name)}, {image.size} bytes, SHA-256 {image.sha256}")
        echo(f"at      {self._url}")
        echo("In the machine's configuration, in the array services:")
        echo(json.dumps(entry, indent=2, ensure_ascii=False))


async def _serve(source: ImageSource, host: str, port: int, shown: _Screen) -> None:
    from flota.server.image_endpoint import ImageEndpoint, serve_image, url_for
    from flota.server.settings import Address, parse_host

    endpoint = ImageEndpoint(source, on_delivery=shown.delivered)
    with _stop_signals() as stop:
        await serve_image(
            endpoint,
            Address(parse_host(host), port),
            stop=stop,
            announce=lambda address: shown.listening(url_for(address, source.name)),
        )


@contextlib.contextmanager
def _stop_signals() -> Iterator[asyncio.Event]:
    """Give an event that SIGINT or SIGTERM sets."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
