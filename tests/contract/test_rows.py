"""The contract has 30 rows, and each has a test that names it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROWS = range(1, 31)


def rows_named_by_tests():
    """Return the rows that the docstrings of the tests of this folder name."""
    named = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                match = re.match(r"Rows? (\d+(?:(?:, | and )\d+)*)", ast.get_docstring(node) or "")
                named |= set(map(int, re.findall(r"\d+", match[1]))) if match else set()
    return named


def test_every_row_has_a_test():
    assert rows_named_by_tests() == set(ROWS)
