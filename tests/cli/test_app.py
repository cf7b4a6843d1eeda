"""Whatever goes wrong, a person gets one clear error and the right exit status, never a traceback."""

import logging
from collections.abc import Iterator

import pytest
import structlog

from flota.cli.app import COMMANDS, main


@pytest.fixture
def logs_as_before() -> Iterator[None]:
    """Undo what a process does once at its start, and this process goes on after."""
    root, ours = logging.getLogger(), logging.getLogger("flota")
    before, levels, configured = list(root.handlers), (root.level, ours.level), structlog.get_config()
    yield
    root.handlers[:] = before
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
    structlog.configure(**configured)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0), capsys.readouterr().err


@pytest.mark.usefixtures("logs_as_before")
def test_what_the_system_refuses_is_named_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    status, said = run(capsys, "up", "--data", "/proc/flota", "--http", "127.0.0.1:0", "--no-https")
    assert status == 1
    assert "/proc/flota" in said
    assert "Check the path" in said
    assert "Traceback" not in said


def test_wrong_use_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    status, said = run(capsys, "release", "sign", "1", "--key", "k", "--signer", "exec:true")
    assert status == 2
    assert "who signs?" in said


def test_a_bug_is_told_as_one_and_how_to_report_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COMMANDS, "demo", ("flota.cli.no_such_module", ""))
    monkeypatch.delenv("FLOTA_DEBUG", raising=False)
    status, said = run(capsys, "demo")
    assert status == 1
    assert "internal error" in said
    assert "FLOTA_DEBUG=1" in said
