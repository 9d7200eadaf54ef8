"""The documents of the repository, and their examples, run."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def documents() -> list[Path]:
    """Return the Markdown files of the repository."""
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("kernels/*.md")])


def examples(path: Path) -> list[str]:
    """Return the Python blocks of a document."""
    text = path.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def printed(blocks: list[str]) -> list[str]:
    """Run the blocks one after the other, as one program, and return the lines that they print."""
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as output:
        for block in blocks:
            exec(compile(block, "example", "exec"), names)
    return output.getvalue().splitlines()


def promised(blocks: list[str]) -> list[str]:
    """Return what the comments behind the prints of the blocks say that they print."""
    return re.findall(r"^ *print\(.*\)  # (.*)$", "".join(blocks), re.MULTILINE)
