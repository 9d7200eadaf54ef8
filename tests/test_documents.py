"""The documents: links and paths lead somewhere, commands install something, examples run."""

from __future__ import annotations

import html
import re
import runpy
import tomllib

import pytest

from lucid_gpu import schedules
from tests.documents import ROOT, documents, examples, printed, promised

ROOMS = (
    "lucid_gpu",
    "lucid_gpu/device",
    "lucid_gpu/execution",
    "lucid_gpu/optim/core",
    "lucid_gpu/gradients",
    "lucid_gpu/checkpoint",
    "lucid_gpu/command",
    "lucid_gpu/averages",
    "lucid_gpu/schedules",
    "lucid_gpu/schedules/pytorch",
    "lucid_gpu/torch",
)
"""Rooms whose files docs/design.md lists one by one."""


def named(path):
    return str(path.relative_to(ROOT))


def without_blocks(path):
    """Return a document without its fenced blocks, in which nothing is a link."""
    return re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(path):
    """Return the fragments under which code hosts show the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", documents(), ids=named)
def test_every_relative_link_resolves(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(path)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, fragment = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        assert not fragment or fragment in anchors(linked), target


@pytest.mark.parametrize("path", documents(), ids=named)
def test_every_path_that_is_named_exists(path):
    for name in re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", without_blocks(path)):
        parts = name.replace("NAME", "adam").rstrip("/")
        is_own = (ROOT / parts.split("/")[0]).exists()
        assert not is_own or (ROOT / parts).exists(), name


@pytest.mark.parametrize(
    "path", [path for path in documents() if path.name != "README.md" and examples(path)], ids=named
)
def test_its_examples_print_what_it_says(path, monkeypatch, tmp_path):
    if any("import torch" in example for example in examples(path)):
        pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[oracle]'")
    monkeypatch.chdir(tmp_path)
    assert printed(examples(path)) == promised(examples(path))


def test_what_is_installed_is_a_clone_and_an_extra_of_it():
    """The package is on no index."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    texts = [*documents(), *ROOT.glob("lucid_gpu/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]
    commands = [
        (named(path), command)
        for path in texts
        for command in re.findall(r"pip install ([^\n&`#()\"]+)", path.read_text("utf-8"))
    ]
    assert len(commands) > 5
    for path, command in commands:
        assert not re.search(r"lucid.gpu", command), (path, command)
        named_extras = ",".join(re.findall(r"'\.\[([\w,]+)\]'", command)).split(",")
        assert set(filter(None, named_extras)) <= set(extras["optional-dependencies"]), path


def test_the_table_of_schedules_has_every_one_with_its_formula():
    text = (ROOT / "docs" / "schedules.md").read_text("utf-8")
    table = re.split(r"^## ", text, flags=re.MULTILINE)[1]
    for name in set(schedules.__all__) - {"Schedule", "Scheduler"}:
        assert re.search(rf"`{name}\b", table), name


def test_the_picture_of_schedules_is_the_one_that_is_drawn(tmp_path):
    drawing = runpy.run_path(str(ROOT / "docs" / "draw_schedules.py"))
    committed = (ROOT / "docs" / "schedules.svg").read_text("utf-8")
    assert len(committed) < 150_000
    for title in drawing["PANELS"]:
        assert html.escape(title, quote=False) in committed, title
    drawing["main"](tmp_path / "schedules.svg")
    assert (tmp_path / "schedules.svg").read_text("utf-8").count("<text") == committed.count(
        "<text"
    )


@pytest.mark.parametrize("name", schedules.pytorch.__all__)
def test_the_picture_shows_every_scheduler(name):
    assert f">{name}(" in (ROOT / "docs" / "schedules.svg").read_text("utf-8")


def modules():
    """Return the modules of those rooms."""
    found = [path for room in ROOMS for path in sorted((ROOT / room).glob("*.py"))]
    return [path for path in found if not path.name.startswith("__")]


@pytest.mark.parametrize("path", modules(), ids=named)
def test_the_design_has_a_line_for_every_file(path):
    text = (ROOT / "docs" / "design.md").read_text("utf-8")
    room = re.split(rf"\n    {named(path.parent)}/(?: .*)?\n", text, maxsplit=1)[1]
    assert re.search(rf"^      {re.escape(path.name)} +\S", re.split(r"\n    \w", room)[0], re.M)
