from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.execution.compilers import Compiler


@pytest.fixture
def use(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[Callable[[Path], Compiler]], Compiler]:
    """Put a compiler of a kind in place."""

    def put(kind: Callable[[Path], Compiler]) -> Compiler:
        compiler = kind(tmp_path)
        monkeypatch.setenv("CXX", str(compiler.path))
        return compiler

    return put
