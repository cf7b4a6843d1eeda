"""The procedures that the two sides can call, and the numbers that they exchange by name.

Source: docs/reference/blynk.md, "Procedures"; Blynk-Technologies/Blynk-NCP-Driver:BlynkNCP.jidl (0.7.0).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from flota.protocols.blynk.values import Kind

INTERFACE_VERSION: Final = "0.7.0"
"""The interface definition that the table follows; what our NCP says its version is."""

DEFAULT_TIMEOUT_S: Final = 1.0


class Side(enum.StrEnum):
    """The two ends of the line."""

    NCP = "ncp"
    MCU = "mcu"

    @property
    def other(self) -> Side:
        """The peer."""
        return Side.MCU if self is Side.NCP else Side.NCP


@dataclass(frozen=True, slots=True)
class Procedure:
    """One procedure of `side`. An answer holds the `outs` and then what it `returns`; `timeout_s` None = oneway."""

    uid: int
    name: str
    side: Side
    args: tuple[Kind, ...] = ()
    outs: tuple[Kind, ...] = ()
    returns: Kind | None = None
    timeout_s: float | None = DEFAULT_TIMEOUT_S

    @property
    def results(self) -> tuple[Kind, ...]:
        """What the body of an answer holds."""
        return self.outs if self.returns is None else (*self.outs, self.returns)

    @property
    def is_oneway(self) -> bool:
        """Whether nobody answers it."""
        return self.timeout_s is None

    @property
    def checks_arguments(self) -> bool:
        """Whether the vendor's handler refuses missing and extra bytes: only where something is declared, in or out."""
        return bool(self.args or self.outs)


def _call(uid: int, name: str, *args: Kind, timeout_s: float = DEFAULT_TIMEOUT_S) -> Procedure:
    """Return a procedure that answers with a Bool."""
    return Procedure(uid, name, _side_of(uid), args, (), Kind.BOOL, timeout_s)


def _side_of(uid: int) -> Side:
    return Side.MCU if uid >> 8 == 4 or 0x0181 <= uid <= 0x018F else Side.NCP


def _oneway(uid: int, name: str, *args: Kind) -> Procedure:
    return Procedure(uid, name, _side_of(uid), args, timeout_s=None)


_BOOL, _U8, _U16, _U32, _I64 = Kind.BOOL, Kind.U8, Kind.U16, Kind.U32, Kind.I64
_STRING, _BINARY = Kind.STRING, Kind.BINARY

NCP_PING: Final = Procedure(0x0101, "ncp.ping", Side.NCP, timeout_s=0.1)
NCP_REBOOT: Final = _call(0x0102, "ncp.reboot")
NCP_HAS_UID: Final = _call(0x0103, "ncp.hasUID", _U16)
MCU_PING: Final = Procedure(0x0181, "mcu.ping", Side.MCU, timeout_s=0.1)
MCU_REBOOT: Final = _call(0x0182, "mcu.reboot")
MCU_HAS_UID: Final = _call(0x0183, "mcu.hasUID", _U16)
SET_BAUD_RATE: Final = _call(0x0201, "hw.setUartBaudRate", _U32)
INITIALIZE: Final = _call(0x0301, "blynk.initialize", _STRING, _STRING, timeout_s=5.0)
SET_FIRMWARE_INFO: Final = _call(0x0304, "blynk.setFirmwareInfo", _STRING, _STRING, _STRING, _STRING)
GET_NCP_VERSION: Final = Procedure(0x0305, "blynk.getNcpVersion", Side.NCP, (), (_STRING,), _BOOL)
GET_STATE: Final = Procedure(0x0306, "blynk.getState", Side.NCP, (), (), _U8)
OTA_START: Final = _call(0x0341, "blynk.otaUpdateStart", _U16)
OTA_GET_CRC32: Final = Procedure(0x0342, "blynk.otaUpdateGetCRC32", Side.NCP, (), (_U32,), _BOOL)
OTA_GET_MD5: Final = Procedure(0x0343, "blynk.otaUpdateGetMD5", Side.NCP, (), (_BINARY,), _BOOL)
OTA_GET_SHA256: Final = Procedure(0x0344, "blynk.otaUpdateGetSHA256", Side.NCP, (), (_BINARY,), _BOOL)
OTA_PREFETCH: Final = Procedure(0x0345, "blynk.otaUpdatePrefetch", Side.NCP, (), (), _U8, 30.0)
OTA_SUSPEND: Final = _call(0x0346, "blynk.otaUpdateSuspend", _U16)
STATE_CHANGE: Final = _oneway(0x0411, "client.blynkStateChange", _U8)
PIN_CHANGE: Final = _oneway(0x0412, "client.blynkVPinChange", _U16, _BINARY)
PROCESS_EVENT: Final = _oneway(0x0421, "client.processEvent", _U8)
OTA_AVAILABLE: Final = _call(
    0x0441, "client.otaUpdateAvailable", _STRING, _U32, _STRING, _STRING, _STRING, timeout_s=5.0
)
OTA_WRITE: Final = _call(0x0442, "client.otaUpdateWrite", _U32, _BINARY, _U32, timeout_s=5.0)
OTA_FINISH: Final = _call(0x0443, "client.otaUpdateFinish", timeout_s=5.0)
OTA_CANCEL: Final = Procedure(0x0444, "client.otaUpdateCancel", Side.MCU)

WRITE_OVERHEAD_BYTES: Final = 16
"""Message header 6, offset 4, length 2, CRC-32 4: what a write's payload has beside the data."""

PROCEDURES: Final[Mapping[int, Procedure]] = MappingProxyType(
    {
        procedure.uid: procedure
        for procedure in (
            NCP_PING, NCP_REBOOT, NCP_HAS_UID, MCU_PING, MCU_REBOOT, MCU_HAS_UID, SET_BAUD_RATE,
            _call(0x0211, "hw.initUserButton", _U16, _BOOL),
            _call(0x0221, "hw.initLED", _U16, _BOOL),
            _call(0x0222, "hw.initRGB", _U16, _U16, _U16, _BOOL),
            _call(0x0223, "hw.initARGB", _U16, _U8, _U8),
            _call(0x0224, "hw.setLedBrightness", _U8),
            Procedure(0x0231, "hw.getWiFiMAC", Side.NCP, (), (_STRING,), _BOOL),
            Procedure(0x0232, "hw.getEthernetMAC", Side.NCP, (), (_STRING,), _BOOL),
            INITIALIZE,
            _call(0x0302, "blynk.setVendorPrefix", _STRING),
            _call(0x0303, "blynk.setVendorServer", _STRING),
            SET_FIRMWARE_INFO, GET_NCP_VERSION, GET_STATE,
            Procedure(0x0307, "blynk.getHotspotName", Side.NCP, (), (_STRING,), _BOOL),
            _oneway(0x0311, "blynk.virtualWrite", _U16, _BINARY),
            _oneway(0x0312, "blynk.syncAll"),
            _oneway(0x0313, "blynk.syncVirtual", _BINARY),
            _oneway(0x0314, "blynk.setProperty", _U16, _STRING, _BINARY),
            _oneway(0x0315, "blynk.beginGroup", _I64),
            _oneway(0x0316, "blynk.endGroup"),
            _oneway(0x0317, "blynk.logEvent", _STRING, _STRING),
            _oneway(0x0318, "blynk.resolveEvent", _STRING),
            _oneway(0x0319, "blynk.resolveAllEvents", _STRING),
            _oneway(0x031A, "blynk.setMetadata", _STRING, _STRING),
            _call(0x0321, "blynk.configStart"),
            _call(0x0322, "blynk.configStop"),
            _call(0x0323, "blynk.configReset"),
            _call(0x0324, "blynk.isConfigured"),
            _call(0x0325, "blynk.setConfigTimeout", _U16),
            _call(0x0326, "blynk.setConfigSkipLimit", _U8),
            _call(0x0331, "blynk.factoryReset"),
            Procedure(0x0332, "blynk.factoryTestWiFi", Side.NCP, (_STRING, _STRING), (Kind.I16,), _U8, 30.0),
            Procedure(0x0333, "blynk.factoryTestWiFiAP", Side.NCP, (_U16,), (), _U8, 5.0),
            Procedure(0x033A, "blynk.factoryTestConnect", Side.NCP, (), (), _U8, 10.0),
            OTA_START, OTA_GET_CRC32, OTA_GET_MD5, OTA_GET_SHA256, OTA_PREFETCH, OTA_SUSPEND,
            _call(0x0351, "blynk.setTime", _I64),
            Procedure(
                0x0352, "blynk.getTime", Side.NCP, (), (_STRING, _I64, Kind.I16, _STRING, _U8), _BOOL
            ),
            Procedure(
                0x0353, "blynk.getLocationInfo", Side.NCP, (), (_STRING, _STRING, _STRING, _STRING), _BOOL
            ),
            STATE_CHANGE, PIN_CHANGE, PROCESS_EVENT, OTA_AVAILABLE, OTA_WRITE, OTA_FINISH, OTA_CANCEL,
        )
    }
)  # fmt: skip
"""uid -> procedure."""

BY_NAME: Final[Mapping[str, Procedure]] = MappingProxyType({one.name: one for one in PROCEDURES.values()})
assert len(BY_NAME) == len(PROCEDURES)


class NcpState(enum.IntEnum):
    """What an NCP says that it is doing."""

    UNKNOWN = 0
    IDLE = 1
    CONFIG = 2
    CONNECTING_NETWORK = 3
    CONNECTING_CLOUD = 4
    CONNECTED = 5
    NOT_INITIALIZED = 10
    OTA_UPGRADE = 11
    """The NCP's own update."""
    ERROR = 12


class NcpEventCode(enum.IntEnum):
    """What `client.processEvent` tells; the ones that concern buttons and provisioning are not sent by us."""

    REBOOTING = 1


class PrefetchStatus(enum.IntEnum):
    """How a prefetch ended; 0 is what the vendor's driver shows when the call itself failed."""

    CALL_FAILED = 0
    DONE = 1
    ERROR = 2
    CONNECT_FAILED = 3
    REQUEST_FAILED = 4
    TIMEOUT = 5
    NO_SPACE = 6
    WRITE_FAILED = 7
    FINALIZE_FAILED = 8
