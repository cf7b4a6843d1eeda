"""What `flota ncp run` becomes: the NCP alone, without the command line."""

from __future__ import annotations

import sys

for _name in ("rich", "pygments", "click", "h2", "greenlet"):  # httpx and structlog take them if there: 7 MB in vain
    sys.modules[_name] = None  # type: ignore[assignment]

import asyncio  # noqa: E402
import contextlib  # noqa: E402

from flota.errors import FlotaError  # noqa: E402
from flota.gateway.logs import configure_logs  # noqa: E402
from flota.gateway.ncp import NcpGateway, run_ncp_until_signal  # noqa: E402
from flota.gateway.ncp_settings import settings_from_environment  # noqa: E402

EXIT_FAILED = 1
EXIT_WRONG_USE = 2


def main() -> int:
    """Run the NCP; returns the exit status."""
    try:
        settings = settings_from_environment()
    except KeyError:
        sys.stderr.write("error: this is the inside of `flota ncp run`\n")
        return EXIT_WRONG_USE
    configure_logs(json=settings.log_json, level=settings.log_level)
    try:
        gateway = NcpGateway(settings.checked())
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(run_ncp_until_signal(gateway, with_parent=settings.with_parent))
    except (FlotaError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
