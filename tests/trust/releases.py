"""Keys, manifests and strategies that the tests of `trust` share."""

from datetime import UTC, datetime, timedelta, timezone
from functools import cache

from hypothesis import strategies as st

from flota.trust.keys import PrivateKey
from flota.trust.manifest import COMPONENTS_MAX, SEQUENCE_MAX, Manifest, ManifestComponent

ISSUED = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
EXPIRES = datetime(2027, 3, 1, 12, 0, 0, tzinfo=UTC)
SHA256 = "0123456789abcdef" * 4


@cache
def key(number: int, kind: str = "p256") -> PrivateKey:
    """The same key for the same number throughout a run."""
    return PrivateKey.generate(kind)


def manifest(**changes: object) -> Manifest:
    """A manifest of a pump's release 7, with changes."""
    fields: dict[str, object] = {
        "device_type": "pump",
        "board": "esp32-c3",
        "hardware_revision": "B",
        "version": "2.0.0",
        "sequence": 7,
        "expires_at": EXPIRES,
        "components": (ManifestComponent("app", "esp-app", 1048576, SHA256),),
        "issued_at": ISSUED,
    }
    return Manifest(**(fields | changes))  # type: ignore[arg-type]


_PRINTABLE = st.characters(exclude_categories=["C", "Z"])
names = st.text(_PRINTABLE | st.just(" "), min_size=1, max_size=32).map(str.strip).filter(str.isprintable).filter(bool)
zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.builds(
    lambda seconds, zone: datetime.fromtimestamp(seconds, zone), st.integers(0, 200_000_000_000), st.just(UTC) | zones
)
components = st.builds(
    ManifestComponent,
    name=names,
    format=st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True),
    size=st.integers(1, 2**40),
    sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    precursor_sha256=st.none() | st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    issued, later = sorted((draw(moments), draw(moments)))
    expires = later if draw(st.booleans()) and (later - issued).total_seconds() >= 1 else None
    return Manifest(
        device_type=draw(names),
        board=draw(names),
        hardware_revision=draw(st.none() | names),
        version=draw(names),
        sequence=draw(st.integers(1, SEQUENCE_MAX)),
        expires_at=expires,
        components=tuple(
            draw(st.lists(components, min_size=1, max_size=COMPONENTS_MAX, unique_by=lambda item: item.name))
        ),
        issued_at=issued,
    )
