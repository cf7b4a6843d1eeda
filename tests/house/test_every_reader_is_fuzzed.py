"""No reader of foreign bytes can be forgotten: what is public, pure and named like one stands in the table."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.fuzz.model import dotted_name
from tests.fuzz.table import BY_NAME, TARGETS

PURE = ("images", "boards", "trust", "delta", "protocols", "fleet", "virtual.boot", "versions", "digests")
READER = re.compile(r"(parse|unpack|inspect|walk|looks_like|recognise|load)(_\w+)?\Z|read_string\Z|read_trailer\Z")
METHODS = ("parse", "unpack", "from_pem", "from_bytes")
FILE_OF = {"images": "targets_images.py", "trust": "targets_trust.py"}
NOT_READERS: dict[str, str] = {}
"""Dotted name -> why it reads nothing from outside although its name says so."""


def modules() -> Iterator[ModuleType]:
    for package in PURE:
        try:
            module = importlib.import_module(f"flota.{package}")
        except ModuleNotFoundError as error:
            if error.name != f"flota.{package}":  # a package to come may be absent, a broken one may not
                raise
            continue
        yield module
        for info in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{module.__name__}."):
            yield importlib.import_module(info.name)


def readers() -> Iterator[str]:
    for module in modules():
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(value) and READER.match(name):
                yield dotted_name(value)
            elif inspect.isclass(value):
                found = (vars(value).get(method) for method in METHODS)
                yield from (dotted_name(method.__func__) for method in found if isinstance(method, classmethod))


def missing_lines() -> list[str]:
    covered = {name for target in TARGETS for name in target.covers}
    missing = sorted(set(readers()) - covered - NOT_READERS.keys())
    return [
        f'{name} is not fuzzed: add `target({name.rsplit(".", 1)[-1]}, [b"an input that it takes"]),`'
        f" to TARGETS in tests/fuzz/{FILE_OF.get(name.split('.')[1], 'targets_protocols.py')}"
        for name in missing
    ]


def test_every_public_reader_of_the_pure_packages_stands_in_the_table_of_fuzz_targets() -> None:
    assert not missing_lines(), "\n" + "\n".join(missing_lines())


def test_the_search_finds_functions_and_class_methods() -> None:
    found = set(readers())
    assert {"flota.images.esp_app.parse_app", "flota.trust.keys.PrivateKey.from_pem"} <= found
    assert len(found) > 80


def test_a_reader_that_nobody_listed_is_named_with_the_line_to_add(monkeypatch: pytest.MonkeyPatch) -> None:
    from flota.protocols import malformed

    def parse_newcomer(data: bytes) -> None: ...

    parse_newcomer.__module__, parse_newcomer.__qualname__ = malformed.__name__, "parse_newcomer"
    monkeypatch.setattr(malformed, "parse_newcomer", parse_newcomer, raising=False)
    assert [line for line in missing_lines() if "parse_newcomer" in line] == [
        (
            "flota.protocols.malformed.parse_newcomer is not fuzzed: add"
            ' `target(parse_newcomer, [b"an input that it takes"]),` to TARGETS in tests/fuzz/targets_protocols.py'
        )
    ]


def test_no_two_targets_share_a_name() -> None:
    assert len(BY_NAME) == len(TARGETS)


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_every_target_takes_one_of_its_own_starting_inputs(name: str) -> None:
    """A target whose inputs are all refused at the door tests the door only."""
    target = BY_NAME[name]
    assert any(target.run(start) for start in target.starts)
