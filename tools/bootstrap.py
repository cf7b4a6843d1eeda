"""Make `.venv` with everything that Flota needs, starting from nothing but a Python.

Usage: python3 tools/bootstrap.py [run|dev]

`run` installs what `flota` itself needs, `dev` also the tests and checks. Works with or without pip and the venv
module's ensurepip: what is missing is taken, in this order, from the system's pip, from uv, from the distribution's
packages, and at last as a wheel from the package index that PIP_INDEX_URL names. Versions and hashes are pinned in
requirements/*.txt. Does nothing when the environment already matches.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
MINIMUM = (3, 11)


def main(arguments: list[str]) -> int:
    """Bring `.venv` up to the wanted set; returns the exit status."""
    wanted = arguments[0] if arguments else "dev"
    if wanted not in ("run", "dev"):
        return _complain(f"unknown set {wanted!r}: run or dev", status=2)
    if sys.version_info < MINIMUM:
        return _complain(f"Flota needs Python {MINIMUM[0]}.{MINIMUM[1]} or newer, this is {sys.version.split()[0]}")
    requirements = ROOT / "requirements" / f"{wanted}.txt"
    stamp = VENV / f".flota-{wanted}"
    fingerprint = hashlib.sha256(requirements.read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == fingerprint and VENV_PYTHON.exists():
        return 0
    pip = _environment_with_pip()
    if pip is None:
        return _complain("found no way to get pip: install your distribution's python3-pip and python3-venv, or uv")
    _say(f"installing {requirements.relative_to(ROOT)} into .venv")
    for options in (
        ["--require-hashes", "-r", str(requirements)],
        ["--no-deps", "--no-build-isolation", "-e", str(ROOT)],
    ):
        status = subprocess.run([*pip, *options], check=False).returncode
        if status:
            return _complain("the installation failed (see above)", status=status)
    for done in ("run", "dev") if wanted == "dev" else ("run",):
        file = ROOT / "requirements" / f"{done}.txt"
        print_of = hashlib.sha256(file.read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
        (VENV / f".flota-{done}").write_text(print_of)
    return 0


def _environment_with_pip() -> list[str] | None:
    """Create `.venv` if needed; returns the command that installs into it, up to and including `install`."""
    own_pip = [str(VENV_PYTHON), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input"]
    if _works([str(VENV_PYTHON), "-m", "pip", "--version"]):
        return own_pip
    if _works([sys.executable, "-m", "venv", "--clear", str(VENV)]):
        return own_pip
    if not _works([sys.executable, "-m", "venv", "--clear", "--without-pip", str(VENV)]):
        uv = shutil.which("uv")
        if not (uv and _works([uv, "venv", "--clear", "--python", sys.executable, str(VENV)])):
            return (
                own_pip
                if _from_distribution() and _works([sys.executable, "-m", "venv", "--clear", str(VENV)])
                else None
            )
    if _works([sys.executable, "-m", "pip", "--python", str(VENV_PYTHON), "--version"]):
        return [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(VENV_PYTHON),
            "install",
            "-q",
            "--disable-pip-version-check",
        ]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "-q", "--python", str(VENV_PYTHON)]
    if _from_distribution() and _works([sys.executable, "-m", "venv", "--clear", str(VENV)]):
        return own_pip
    wheel = _pip_wheel_from_index()
    return [str(VENV_PYTHON), f"{wheel}/pip", "install", "-q", "--disable-pip-version-check"] if wheel else None


def _works(command: list[str]) -> bool:
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def _from_distribution() -> bool:
    """Install python3-venv and python3-pip where that is possible without asking anyone: as root with apt-get."""
    apt = shutil.which("apt-get")
    if not apt or os.geteuid() != 0:
        return False
    _say("getting python3-venv and python3-pip from the distribution")
    _works([apt, "update", "-qq"])
    return _works([apt, "install", "-y", "-qq", "python3-venv", "python3-pip"])


def _pip_wheel_from_index() -> Path | None:
    """Fetch pip's own wheel from the index in PIP_INDEX_URL and return its path (a wheel runs without installation)."""
    index = os.environ.get("PIP_INDEX_URL") or os.environ.get("UV_INDEX_URL")
    if not index:
        return None
    page_url = index.rstrip("/") + "/pip/"
    try:
        with urllib.request.urlopen(page_url, timeout=60) as answer:
            page = answer.read().decode("utf-8", "replace")
        links = re.findall(r'href="([^"]+/pip-(\d+(?:\.\d+)*)-py3-none-any\.whl#sha256=([0-9a-f]{64}))"', page)
        if not links:
            return None
        link, _, digest = max(links, key=lambda row: [int(part) for part in row[1].split(".")])
        with urllib.request.urlopen(urllib.parse.urljoin(page_url, link), timeout=120) as answer:
            wheel = answer.read()
    except OSError as error:
        _say(f"the package index did not answer: {error}")
        return None
    if hashlib.sha256(wheel).hexdigest() != digest:
        return None
    path = Path(tempfile.mkdtemp()) / urllib.parse.urlparse(link).path.rsplit("/", 1)[-1]
    path.write_bytes(wheel)
    return path


def _say(text: str) -> None:
    sys.stdout.write(f"bootstrap: {text}\n")
    sys.stdout.flush()


def _complain(text: str, status: int = 1) -> int:
    sys.stderr.write(f"bootstrap: {text}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
