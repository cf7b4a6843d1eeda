"""How virtual boards make themselves known on the network: by mDNS, as the real ones' sketches do it.

Source: docs/reference/arduino-discovery.md, "What boards announce".
"""

from __future__ import annotations

import ipaddress
from contextlib import AbstractAsyncContextManager

from flota.protocols.ameba_push import ARDUINO as AMEBA_ARDUINO
from flota.protocols.arduino_mdns import AMEBA_STOCK_BOARD, AMEBA_STOCK_SRV_PORT, VERSION_TXT_KEY, ameba_txt, esp_txt
from flota.transports.mdns import announced, own_addresses
from flota.virtual.device import AppContext


def announce_ameba(
    context: AppContext, host: str, port: int, *, board: str = AMEBA_STOCK_BOARD, tells_version: bool = False
) -> AbstractAsyncContextManager[object]:
    """Announce the board as the stock sketch does, port 5000 included; its host name ends with its MAC.

    Another sketch's `board` comes with the real port. `tells_version`: the app adds its version to the text.
    """
    version = ((VERSION_TXT_KEY, context.slots.running.version),) if tells_version else ()
    identity = context.identity
    anywhere = ipaddress.ip_address(host).is_unspecified
    return announced(
        identity.name,
        AMEBA_STOCK_SRV_PORT if port == AMEBA_ARDUINO.port and board == AMEBA_STOCK_BOARD else port,
        (*ameba_txt(board), *version),
        host=f"ameba-{identity.mac.replace(':', '').lower()}",
        addresses=own_addresses() if anywhere else (host,),
        interfaces=None if anywhere else (host,),
    )


def announce_esp(
    context: AppContext, host: str, port: int, *, password: bool = False
) -> AbstractAsyncContextManager[object]:
    """Announce the board as ArduinoOTA does, under its own name; its host name ends with its MAC."""
    identity = context.identity
    anywhere = ipaddress.ip_address(host).is_unspecified
    return announced(
        identity.name,
        port,
        esp_txt(identity.board.replace("-", "_"), password=password),
        host=f"esp32-{identity.mac.replace(':', '').lower()}",
        addresses=own_addresses() if anywhere else (host,),
        interfaces=None if anywhere else (host,),
    )
