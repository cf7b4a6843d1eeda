"""From `flota.toml`, `FLOTA_*` variables and flags, in rising order, to `ServerSettings`. Pure: what is read comes in.

One table names every setting once, with its key in the file, its variable, and how its text is read.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from flota.errors import FlotaError, InvalidInput
from flota.fleet.maintenance_windows import is_zone
from flota.fleet.poll_times import JITTER_PERCENT_MAX
from flota.protocols.aws_ota import DataProtocol
from flota.protocols.aws_streams import JsonPayload
from flota.protocols.mqtt.bridge_rules import parse_rule
from flota.protocols.mqtt.broker_url import parse_broker_url
from flota.server.settings import (
    DEFAULT_DEVICE_REQUESTS_PER_S,
    DEFAULT_HTTP,
    DEFAULT_HTTPS,
    DEFAULT_MAX_ARTIFACT_BYTES,
    DEFAULT_MQTT,
    DEFAULT_MQTTS,
    DEFAULT_POLL_JITTER_PERCENT,
    DEFAULT_STOP_GRACE_S,
    DEFAULT_URL_LIFETIME_S,
    DEFAULT_VIAM_QUIET_S,
    MEBIBYTE,
    Address,
    DataDirectory,
    ServerSettings,
    parse_address,
    parse_authority,
    parse_host,
    parse_network,
    parse_public_url,
)

_T = TypeVar("_T")

OFF: Final = "off"
"""The value of `http`, `https`, `mqtt` or `mqtts` that means: no such listener."""

MQTT_LISTENERS: Final = ("mqtt", "mqtts")
"""Other programs often have their ports already: see `ServerSettings.assumed`."""

STOP_GRACE_MAX_S: Final = 3600.0
DEVICE_REQUESTS_PER_S_MAX: Final = 10_000.0
VIAM_QUIET_MAX_S: Final = 24 * 3600.0
MAX_ARTIFACT_MIB: Final = 64 * 1024
URL_LIFETIME_S: Final = (60, 3600)
"""What AWS allows for the lifetime of an address in a job document."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: `key` in the file and of the flags; the variable is `FLOTA_` and the key in capitals."""

    key: str
    read: Callable[[Any], object]
    default: object = None

    @property
    def variable(self) -> str:
        """Name of the environment variable."""
        return f"FLOTA_{self.key.upper()}"


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidInput("not a text", found=repr(value))
    return value.strip()


def _listener(value: Any) -> Address | None:
    if value is False or (isinstance(value, str) and value.strip().lower() == OFF):
        return None
    return parse_address(str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value))


def _names(value: Any) -> tuple[str, ...]:
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, Sequence):
        raise InvalidInput("not a list of names", found=repr(value))
    return tuple(dict.fromkeys(parse_host(_text(name)) for name in given))


def _listed(value: Any, parse: Callable[[str], _T]) -> tuple[_T, ...]:
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, Sequence):
        raise InvalidInput("not a list", found=repr(value))
    return tuple(dict.fromkeys(parse(_text(one)) for one in given))


def _path(value: Any) -> Path:
    return value if isinstance(value, Path) else Path(_text(value)).expanduser()


def _number(value: Any, upper: float, unit: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise InvalidInput("not a number", found=repr(value)) from error
    if isinstance(value, bool) or not 0 < number <= upper:
        raise InvalidInput("out of bounds", expected=f"above 0, at most {upper:g} {unit}", found=str(value))
    return number


def _whole_number(value: Any, upper: int) -> int:
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdecimal() and int(text[:20]) <= upper):
        raise InvalidInput("out of bounds", expected=f"a whole number from 0 to {upper}", found=text[:40])
    return int(text)


def _bounded_number(value: Any, bounds: tuple[int, int]) -> int:
    low, high = bounds
    number = _whole_number(value, high)
    if number < low:
        raise InvalidInput("out of bounds", expected=f"a whole number from {low} to {high}", found=str(number))
    return number


def _time_zone(name: str) -> str:
    if not is_zone(name):
        raise InvalidInput("no time zone that this machine knows", expected="Europe/Berlin", found=repr(name[:60]))
    return name


def _switch(value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in {"true", "false", "1", "0", "yes", "no", "on", "off"}:
        raise InvalidInput("neither true nor false", found=repr(value)[:40])
    return text in {"true", "1", "yes", "on"}


def _protocol(text: str) -> DataProtocol:
    if text.upper() not in set(DataProtocol):
        raise InvalidInput("not a data protocol", expected=" or ".join(DataProtocol), found=repr(text)[:40])
    return DataProtocol(text.upper())


def _json_payload(value: Any) -> JsonPayload:
    text = _text(value).lower()
    if text not in set(JsonPayload):
        raise InvalidInput("not a way to write blocks", expected=" or ".join(JsonPayload), found=repr(text)[:40])
    return JsonPayload(text)


SETTINGS: Final = (
    Setting("http", _listener, parse_address(DEFAULT_HTTP)),
    Setting("https", _listener, parse_address(DEFAULT_HTTPS)),
    Setting("mqtt", _listener, parse_address(DEFAULT_MQTT)),
    Setting("mqtts", _listener, parse_address(DEFAULT_MQTTS)),
    Setting("public_url", lambda value: parse_public_url(_text(value))),
    Setting("name", _names, ()),
    Setting("tls_cert", _path),
    Setting("tls_key", _path),
    Setting("database", _text),
    Setting(
        "max_artifact_mib",
        lambda value: int(_number(value, MAX_ARTIFACT_MIB, "MiB") * MEBIBYTE),
        DEFAULT_MAX_ARTIFACT_BYTES,
    ),
    Setting("stop_grace_s", lambda value: _number(value, STOP_GRACE_MAX_S, "s"), DEFAULT_STOP_GRACE_S),
    Setting(
        "device_requests_per_s",
        lambda value: _number(value, DEVICE_REQUESTS_PER_S_MAX, "per second"),
        DEFAULT_DEVICE_REQUESTS_PER_S,
    ),
    Setting("trusted_proxy", lambda value: _listed(value, parse_network), ()),
    Setting("proxy_client_cert", lambda value: _listed(value, parse_network), ()),
    Setting("proxy_authority", lambda value: _listed(value, parse_authority), ()),
    Setting("proxy_device_type", _text),
    Setting("poll_jitter_percent", lambda value: _whole_number(value, JITTER_PERCENT_MAX), DEFAULT_POLL_JITTER_PERCENT),
    Setting("time_zone", lambda value: _time_zone(_text(value))),
    Setting("mqtt_bridge", lambda value: parse_broker_url(_text(value))),
    Setting("mqtt_bridge_rule", lambda value: _listed(value, parse_rule), ()),
    Setting("mqtt_broker", lambda value: parse_broker_url(_text(value))),
    Setting("aws_iot_data", lambda value: _listed(value, _protocol) or (DataProtocol.MQTT,), (DataProtocol.MQTT,)),
    Setting("aws_iot_url_lifetime_s", lambda value: _bounded_number(value, URL_LIFETIME_S), DEFAULT_URL_LIFETIME_S),
    Setting("aws_iot_lenient_rejected", _switch, False),
    Setting("aws_iot_json_payload", _json_payload, JsonPayload.BASE64),
    Setting("aws_iot_events", _switch, False),
    Setting("viam_quiet_s", lambda value: _number(value, VIAM_QUIET_MAX_S, "s"), DEFAULT_VIAM_QUIET_S),
)


def read_configuration(data: bytes, name: str) -> dict[str, object]:
    """Return the settings of a `flota.toml`; `name` is for messages. Raises `InvalidInput`, for unknown keys too."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidInput(
            f"{name} is not UTF-8",
            offset=error.start,
            expected="text in UTF-8",
            found=f"byte 0x{data[error.start]:02x} in line {line}",
            hint="Save the file as UTF-8.",
        ) from error
    try:
        table: dict[str, object] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{name} is not TOML", found=str(error)) from error
    known = {setting.key for setting in SETTINGS}
    unknown = sorted(table.keys() - known)
    if unknown:
        raise InvalidInput(
            f"{name} has settings that do not exist", expected=", ".join(sorted(known)), found=", ".join(unknown)
        )
    return table


def settings_from(
    data: Path, file: Mapping[str, object], environment: Mapping[str, str], flags: Mapping[str, object]
) -> ServerSettings:
    """Return the settings; flags count before variables, variables before the file. None as a flag means: not given.

    Raises `InvalidInput`, which names the source of a bad value or says what listening wider than this machine needs.
    """
    values: dict[str, Any] = {setting.key: _value(setting, file, environment, flags) for setting in SETTINGS}
    assumed = frozenset(key for key in MQTT_LISTENERS if not _is_given(key, file, environment, flags))
    has_broker = values["mqtt_broker"] is not None
    settings = ServerSettings(
        data=DataDirectory(data),
        http=values["http"],
        https=values["https"],
        mqtt=None if has_broker and "mqtt" in assumed else values["mqtt"],
        mqtts=None if has_broker and "mqtts" in assumed else values["mqtts"],
        assumed=assumed,
        public_url=values["public_url"],
        names=values["name"],
        tls_cert=values["tls_cert"],
        tls_key=values["tls_key"],
        database_url=values["database"],
        max_artifact_bytes=values["max_artifact_mib"],
        stop_grace_s=values["stop_grace_s"],
        device_requests_per_s=values["device_requests_per_s"],
        viam_quiet_s=values["viam_quiet_s"],
        poll_jitter_percent=values["poll_jitter_percent"],
        time_zone=values["time_zone"],
        trusted_proxies=tuple(dict.fromkeys(values["trusted_proxy"] + values["proxy_client_cert"])),
        certificate_proxies=values["proxy_client_cert"],
        proxy_authorities=values["proxy_authority"],
        proxy_device_type=values["proxy_device_type"],
        mqtt_bridge=values["mqtt_bridge"],
        mqtt_bridge_rules=values["mqtt_bridge_rule"],
        mqtt_broker=values["mqtt_broker"],
        aws_iot_data=values["aws_iot_data"],
        aws_iot_url_lifetime_s=values["aws_iot_url_lifetime_s"],
        aws_iot_lenient_rejected=values["aws_iot_lenient_rejected"],
        aws_iot_json_payload=values["aws_iot_json_payload"],
        aws_iot_events=values["aws_iot_events"],
    )
    check_settings(settings)
    return settings


def check_settings(settings: ServerSettings) -> None:
    """Raise `InvalidInput` unless the settings make sense together."""
    if settings.http is None and settings.https is None:
        raise InvalidInput("no listener is left", hint="Leave one of --http and --https on.")
    listens_mqtt = settings.mqtt is not None or settings.mqtts is not None
    if settings.mqtt_broker is not None and (listens_mqtt or settings.mqtt_bridge is not None):
        raise InvalidInput(
            "with --mqtt-broker there are no listeners and no bridge of our own: things are connected to that broker",
            hint="Leave out --mqtt, --mqtts and --mqtt-bridge.",
        )
    if settings.mqtt_bridge is not None and not listens_mqtt:
        raise InvalidInput("a bridge needs a listener for things", hint="Leave one of --mqtt and --mqtts on.")
    if settings.mqtt_bridge_rules and settings.mqtt_bridge is None:
        raise InvalidInput("--mqtt-bridge-rule has no bridge to rule", hint="Give --mqtt-bridge URL too.")
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise InvalidInput("--tls-cert and --tls-key go together", hint="Give both, or none for our own certificate.")
    if bool(settings.certificate_proxies) != bool(settings.proxy_authorities):
        raise InvalidInput(
            "--proxy-client-cert and --proxy-authority go together",
            hint="The one says which proxy is believed, the other which issuers it may name.",
        )
    if any(network.prefixlen == 0 for network in settings.trusted_proxies):
        raise InvalidInput("a trusted proxy cannot be every address: then anybody could say who they are")
    listeners = (settings.http, settings.https, settings.mqtt, settings.mqtts)
    wide = [address for address in listeners if address is not None and not address.is_loopback]
    if not wide:
        return
    missing = []
    if settings.public_url is None:
        missing.append("--public-url URL (what devices are given)")
    has_tls = settings.https is not None or (settings.mqtts is not None and not settings.mqtts.is_loopback)
    if has_tls and settings.tls_cert is None and not settings.names:
        missing.append("--name HOST|IP (a name for the certificate; may be repeated)")
    if missing:
        shown = " and ".join(str(address) for address in wide)
        raise InvalidInput(
            f"listening at {shown} opens the server to other machines",
            expected=" and ".join(missing),
            found="neither" if len(missing) == 2 else "not given",
            hint="For example: --public-url https://updates.example.net:8443 --name updates.example.net",
        )


def _is_given(
    key: str, file: Mapping[str, object], environment: Mapping[str, str], flags: Mapping[str, object]
) -> bool:
    """Return whether somebody named a value for this setting."""
    return flags.get(key) is not None or bool(environment.get(f"FLOTA_{key.upper()}")) or file.get(key) is not None


def _value(
    setting: Setting, file: Mapping[str, object], environment: Mapping[str, str], flags: Mapping[str, object]
) -> object:
    """Return a setting's value from the highest source that has one."""
    flag = f"--{setting.key.replace('_', '-')}"
    for source, value in (
        (flag, flags.get(setting.key)),
        (setting.variable, environment.get(setting.variable) or None),
        (f"{setting.key} in flota.toml", file.get(setting.key)),
    ):
        if value is None:
            continue
        try:
            return setting.read(value)
        except FlotaError as error:
            raise InvalidInput(
                f"{source}: {error.message}", expected=error.expected, found=error.found, hint=error.hint
            ) from error
    return setting.default
