"""The documentation holds together: links lead somewhere, shown commands exist, and nothing private is named."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
FLOTA_COMMAND = re.compile(r"^\s*\$?\s*(?:uvx )?flota ([a-z]+(?:-[a-z]+)*)(?: ([a-z][a-z-]+))?", re.MULTILINE)
CODE_BLOCK = re.compile(r"```(?:sh|console|text)?\n(.*?)```", re.DOTALL)
SOURCE_REFERENCE = re.compile(r"docs/(?:reference|how-to|adr)/[A-Za-z0-9_-]+\.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_local_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_command_shown_in_the_documentation_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    from flota.cli.app import COMMANDS

    for name, value in {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)

    blocks = [block for page in PAGES for block in CODE_BLOCK.findall(page.read_text())]
    shown = {match for block in blocks for match in FLOTA_COMMAND.findall(block)}
    assert shown
    for noun, _ in shown:
        assert noun in COMMANDS, f"flota {noun}"
    helps = {noun: _help_of(noun) for noun, _ in shown}
    for noun, verb in shown:
        if verb and "COMMAND" in helps[noun].splitlines()[1]:
            assert re.search(rf"\b{verb}\b", helps[noun]), f"flota {noun} {verb}"


def _help_of(noun: str) -> str:
    from flota.cli.app import main

    screen = io.StringIO()
    with contextlib.redirect_stdout(screen), contextlib.suppress(SystemExit):
        main([noun, "--help"])
    return screen.getvalue()


def test_every_reference_page_named_in_the_source_exists() -> None:
    named = {name for file in (ROOT / "src").rglob("*.py") for name in SOURCE_REFERENCE.findall(file.read_text())}
    assert named
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert not missing


def test_every_page_is_reachable_from_the_index() -> None:
    index = (ROOT / "docs/index.md").read_text()
    for page in sorted((ROOT / "docs").rglob("*.md")):
        name = str(page.relative_to(ROOT / "docs"))
        assert name == "index.md" or f"({name})" in index, f"docs/index.md does not list {name}"
