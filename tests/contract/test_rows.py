"""docs/contract.md and the tests of this folder: neither has a row or a number of its own."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.contract import test_5_rules

DOCUMENT = Path(__file__).parents[2] / "docs" / "contract.md"

ROW = r"\d+[a-z]?"


def table(heading):
    """Return the cells of the first table after a heading, without its first two lines."""
    section = DOCUMENT.read_text(encoding="utf-8").partition(f"\n## {heading}")[2]
    lines = section.partition("\n## ")[0].splitlines()
    rows = [line.strip("|").split(" | ") for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def rows_of_the_document():
    return [row[0] for number in (2, 3, 4) for row in table(f"{number}. ")]


def rows_named_by_tests():
    """Return the rows that the docstrings of the tests of this folder begin with."""
    named = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                text = ast.get_docstring(node) or ""
                match = re.match(rf"Rows? ({ROW}(?:(?:, | and ){ROW})*)\b", text)
                named |= set(re.findall(ROW, match[1])) if match else set()
    return named


def test_the_rows_of_the_document_are_numbered_once_and_in_order():
    rows = rows_of_the_document()
    assert sorted(set(rows), key=lambda row: (int(row.rstrip("abcdef")), row)) == rows
    assert {row for row in rows if row.isdigit()} == {str(number) for number in range(1, 31)}


def test_every_row_of_the_document_has_a_test():
    assert set(rows_of_the_document()) - rows_named_by_tests() == set()


def test_every_row_that_a_test_names_is_in_the_document():
    assert rows_named_by_tests() - set(rows_of_the_document()) == set()


def rows_that_name_their_tests():
    return [row for section in ("4b", "6", "7", "8") for row in table(f"{section}. ")]


def test_the_rows_that_name_their_tests_go_on_counting():
    numbers = [int(row[0]) for row in rows_that_name_their_tests() if row[0].isdigit()]
    assert numbers == list(range(31, 31 + len(numbers)))
    assert len(numbers) >= 61


def names_in(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", rows_that_name_their_tests(), ids=lambda row: row[0])
def test_every_test_that_a_row_names_is_there(row):
    named = re.findall(r"`(\S+)::(test_\w+)`", row[2])
    assert named
    assert row[2].count("`") == 2 * len(named)
    for path, test in named:
        assert test in names_in(DOCUMENT.parents[1] / "tests" / path), path


def test_the_numbers_that_are_tested_are_those_of_the_document():
    written = [[float(number) for number in row[1].split(", ")] for row in table("5. ")]
    assert [expected for _, _, expected in test_5_rules.CASES.values()] == written
