"""Run the demo and draw the end of what it printed: docs/images/demo.svg. `python tools/picture_of_the_demo.py`."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "demo.svg"
COLOURS = {
    r"^==> .*": "bold cyan",
    r"\bSUCCEEDED\b": "green",
    r"\bFAILED\b": "red",
    r"\byes\b": "green",
    r"^rollout .*aborted": "bold yellow",
    r"^Every device .*": "bold green",
}


def main() -> int:
    """Write the picture; returns the demo's exit status."""
    run = subprocess.run([sys.executable, "-m", "flota", "demo"], capture_output=True, text=True, check=False)
    if run.returncode:
        sys.stderr.write(run.stdout + run.stderr)
        return run.returncode
    lines = [line for line in run.stdout.splitlines() if not line.startswith("    ")]
    lines = [re.sub(r"http://127.0.0.1:\d+", "http://127.0.0.1:8080", line) for line in lines]
    console = Console(record=True, width=max(map(len, lines)) + 2, file=io.StringIO())
    console.print(Text("$ flota demo", style="bold"))
    for line in lines:
        text = Text(line)
        for pattern, style in COLOURS.items():
            text.highlight_regex(re.compile(pattern), style)
        console.print(text, soft_wrap=True)
    picture = console.export_svg(title="flota demo")
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)  # the reader's own fonts, no outside host
    PICTURE.write_text(re.sub(r"<!--.*?-->", "", picture, flags=re.DOTALL))
    return 0


if __name__ == "__main__":
    sys.exit(main())
