"""The table of mutants is in order, and the quick ones are caught here; `make mutants` judges all of them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from flota.lab.reproducer import parse_line

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "mutants.py"


def load(path: Path):  # type: ignore[no-untyped-def]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


TOOLS = load(TOOL)
MUTANTS = TOOLS.table().MUTANTS
FAST = [mutant.name for mutant in MUTANTS if mutant.fast]


def test_there_are_enough_mutants_and_each_is_named_once_and_has_a_judge() -> None:
    assert len(MUTANTS) >= 20
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert all(mutant.lines or mutant.tests for mutant in MUTANTS)
    assert len(FAST) >= 3


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_text_that_a_mutant_changes_is_there_once_and_what_comes_of_it_is_python(mutant) -> None:  # type: ignore[no-untyped-def]
    source = TOOLS.mutated((ROOT / mutant.file).read_text("utf-8"), mutant)
    compile(source, mutant.file, "exec")
    for line in mutant.lines:
        parse_line(line)
    for test in mutant.tests:
        assert (ROOT / test).is_file()


def test_a_mutant_whose_text_is_gone_is_an_error_and_not_a_success() -> None:
    gone = MUTANTS[0].__class__("gone", "nothing", MUTANTS[0].file, "this text is nowhere", "x", MUTANTS[0].lines)
    with pytest.raises(ValueError, match="0 times"):
        TOOLS.mutated((ROOT / gone.file).read_text("utf-8"), gone)
    assert TOOLS.judge(gone)[1] is None


@pytest.mark.timeout(240)
def test_the_quick_mutants_are_caught_by_the_sweep() -> None:
    command = [sys.executable, str(TOOL), "--fast", "--jobs", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert f"{len(FAST)} of {len(FAST)} mutants caught\n" in result.stdout, result.stdout + result.stderr
    assert result.returncode == 0


@pytest.mark.timeout(240)
def test_code_that_nobody_broke_is_not_called_caught(tmp_path: Path) -> None:
    chosen = next(mutant for mutant in MUTANTS if mutant.name == FAST[0])
    harmless = chosen.__class__(
        "harmless", "nothing", chosen.file, chosen.old, chosen.old + "  # as it was", chosen.lines
    )
    TOOLS.apply(harmless, tmp_path)
    assert TOOLS.how_it_is_caught(harmless, tmp_path) is None
