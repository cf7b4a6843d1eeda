"""`make check` really fails when the architecture is broken: each test plants a violation in a copy of the tree."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what `make check` looks at, without its caches."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    command = [BIN / "ruff", "check", "--no-cache", "--select", "TID251", "src"]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)


def check_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    command = [BIN / "lint-imports", "--no-cache"]
    environment = {"PYTHONPATH": str(tree / "src"), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write("\n" + text + "\n")


def test_the_tree_as_it_is_passes_both_checks(tree: Path) -> None:
    assert lint(tree).returncode == 0, lint(tree).stdout
    result = check_imports(tree)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "violation"),
    [
        ("images/esp_app.py", "import time"),
        ("boards/fit.py", "from pathlib import Path"),
        ("trust/manifest.py", "import datetime\nNOW = datetime.datetime.now()"),
        ("protocols/ddi.py", "import socket"),
        ("protocols/http_range.py", "import asyncio"),
        ("fleet/rollouts.py", "import random"),
        ("fleet/executions.py", "from flota.durable_files import write_durably"),
        ("virtual/boot/esp_idf.py", "from time import monotonic"),
    ],
)
def test_a_pure_package_that_imports_a_clock_io_or_randomness_fails_the_lint(
    tree: Path, module: str, violation: str
) -> None:
    append(tree / "src/flota" / module, violation)
    result = lint(tree)
    assert result.returncode != 0
    assert "TID251" in result.stdout


@pytest.mark.parametrize(
    ("module", "violation"),
    [
        ("server/app.py", "import flota.virtual.flash"),
        ("virtual/flash.py", "import flota.server.app"),
        ("fleet/devices.py", "import flota.protocols.ddi"),
        ("store/database.py", "import flota.transports.download"),
        ("lab/fleet.py", "import flota.store.database"),
        ("lab/oracle.py", "import flota.images.esp_otadata"),
        ("client/management.py", "import flota.fleet.devices"),
        ("images/esp_app.py", "import flota.boards.model"),
        ("server/app.py", "import flota.cli.app"),
    ],
)
def test_an_import_against_the_layers_fails_the_contract(tree: Path, module: str, violation: str) -> None:
    append(tree / "src/flota" / module, violation)
    result = check_imports(tree)
    assert result.returncode != 0
    assert "BROKEN" in result.stdout


def test_a_new_top_level_package_must_find_its_layer(tree: Path) -> None:
    (tree / "src/flota/newcomer").mkdir()
    (tree / "src/flota/newcomer/__init__.py").write_text('"""Nobody placed me."""\n')
    assert check_imports(tree).returncode != 0
