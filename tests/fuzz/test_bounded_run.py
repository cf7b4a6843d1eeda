"""The slice of the million inputs that runs with every test run: only our errors, bounded time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import pbkdf2_hmac
from pathlib import Path

import pytest

from flota.errors import FlotaError, InvalidInput
from tests.fuzz import builtin
from tests.fuzz.builtin import fuzz, write_reproducer
from tests.fuzz.model import Target, target
from tests.fuzz.mutation import HUGE_EVERY, mutated_input
from tests.fuzz.table import BY_NAME, TARGETS

INPUTS_PER_TARGET = 240
PARTS = 8


@pytest.mark.parametrize("part", range(PARTS))
def test_no_input_gets_anything_but_a_value_or_one_of_our_errors(part: int, tmp_path: Path) -> None:
    targets = TARGETS[part::PARTS]
    report = fuzz(targets, runs=INPUTS_PER_TARGET * len(targets), series=1)
    assert report.inputs == INPUTS_PER_TARGET * len(targets)
    found = [f for f in report.findings if not f.what.startswith("slow")]  # how fast it is, `make fuzz` says
    assert not found, [(f.target, f.what, f.where, write_reproducer(f, tmp_path)) for f in found]


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_a_long_input_of_each_reader_gets_a_value_or_one_of_our_errors(name: str) -> None:
    for index in (399, 799):
        BY_NAME[name].run(mutated_input(BY_NAME[name], 1, index))


def test_the_same_number_makes_the_same_input_and_another_series_another() -> None:
    chosen = BY_NAME["images.esp_app.parse_app"]
    first = [mutated_input(chosen, 1, index) for index in range(50)]
    assert first == [mutated_input(chosen, 1, index) for index in range(50)]
    assert first != [mutated_input(chosen, 2, index) for index in range(50)]
    assert len(mutated_input(chosen, 1, HUGE_EVERY - 1)) < 1 << 20


def careless(data: bytes) -> object:
    """A reader with one fault of every kind, and what finds it."""
    if len(data) < 2:
        raise InvalidInput("too short")
    match data[0]:
        case 0:
            return {}["key"]
        case 1:
            return len(bytes(48 << 20))
        case 2:
            return len(bytes(1 << 40))
        case 3:
            raise InvalidInput(f"text of a peer: {data[1:]!s}\n")
        case 4:
            raise FlotaError("x" * 5000)
        case 5:
            return pbkdf2_hmac("sha256", b"a", b"b", 300_000)
    return None


def one(start: bytes) -> Sequence[Target]:
    return [target(careless, [start], errors=(InvalidInput,))]


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"\0a", "KeyError"),
        (b"\1a", "memory"),
        (b"\2a", "MemoryError"),
        (b"\3a", "BrokenPromise"),
        (b"\4a", "FlotaError"),
        (b"\5a", "slow"),
    ],
)
def test_a_reader_with_a_fault_is_found_and_its_input_written_to_a_file(
    start: bytes, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "slow":
        monkeypatch.setattr(builtin, "CPU_LIMIT_S", 0.0001)
    report = fuzz(one(start), runs=1)
    assert [finding.what.split(":")[0] for finding in report.findings] == [what]
    assert write_reproducer(report.findings[0], tmp_path).read_bytes() == start
    assert report.closing_line().startswith("1 inputs over 1 readers")
    assert report.closing_line().endswith("1 findings")


def test_a_sound_reader_has_no_findings() -> None:
    assert not fuzz(one(b"z"), runs=1).findings
    assert not fuzz(one(b"zz"), runs=1).findings
