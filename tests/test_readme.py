"""README.md: short enough to be read, and its examples run as they are printed."""

from __future__ import annotations

from tests.documents import ROOT, examples, printed, promised

README = ROOT / "README.md"


def test_it_has_no_more_than_900_words():
    assert len(README.read_text(encoding="utf-8").split()) <= 900


def test_its_examples_print_what_it_says(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert printed(examples(README)) == promised(examples(README)) != []


def test_a_second_run_of_its_examples_resumes(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    printed(examples(README))
    first = sorted(path.name for path in (tmp_path / "my-run").iterdir())
    printed(examples(README))
    assert sorted(path.name for path in (tmp_path / "my-run").iterdir()) == first
