"""The layering of the package, read from its imports, and what importing it costs."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import rules

PACKAGE = Path(__file__).parent.parent / "lucid_gpu"

LAYERS = {
    "disk_cache": set(),
    "device": {"disk_cache"},
    "row_gradient": {"device", "execution"},
    "parameter": {"device", "row_gradient"},
    "flatten": {"device", "parameter", "row_gradient"},
    "execution": {"device", "disk_cache"},
    "optim": {"device", "parameter", "row_gradient", "execution"},
    "averages": {"device", "parameter", "optim"},
    "gradients": {"device", "execution", "optim"},
    "amp": {"device", "execution", "gradients", "optim"},
    "schedules": {"optim"},
    "checkpoint": {"device", "parameter"},
    "torch": {"device", "execution", "optim"},
}
"""For each part of the package, the other parts that it may import."""


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def dotted(path):
    """The name of a module relative to the package: ``optim.adam``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path):
    """Every module that a file imports, at its top or inside a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def own(path):
    """What a file imports of the package, relative to it."""
    return {
        name.removeprefix("lucid_gpu.") for name in imports(path) if name.startswith("lucid_gpu.")
    }


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_only_device_imports_cupy(path):
    roots = {name.split(".")[0] for name in imports(path)}
    assert dotted(path) == "device.gpu" or not roots & {"cupy", "cupyx", "cupy_backends"}


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_only_the_part_for_pytorch_imports_it(path):
    roots = {name.split(".")[0] for name in imports(path)}
    assert dotted(path).split(".")[0] == "torch" or "torch" not in roots


def depends_on(path):
    """The modules of the package that a file imports, as files.

    Of ``from package import module``, it is the module.
    """
    files = {f"lucid_gpu.{dotted(other)}".rstrip("."): other for other in modules()}
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & set(files) or {node.module}
    return {files[name] for name in found if name in files} - {path}


def test_no_module_leads_back_to_itself_by_its_imports():
    """Imports for types count too: a circle of meanings is none the better for being lazy."""
    waiting = {path: depends_on(path) for path in modules()}
    while leaves := {path for path, needed in waiting.items() if not needed}:
        waiting = {path: needed - leaves for path, needed in waiting.items() if path not in leaves}
    assert not waiting, sorted(map(dotted, waiting))


@pytest.mark.parametrize("part", LAYERS)
def test_a_part_imports_only_what_lies_below_it(part):
    allowed = LAYERS[part] | {part}
    for path in modules():
        if dotted(path).split(".")[0] == part:
            used = {name.split(".")[0] for name in own(path)}
            assert used <= allowed, dotted(path)


def test_execution_knows_no_optimizer_and_plans_know_no_device():
    for path in (PACKAGE / "execution").glob("*.py"):
        assert not any(name.startswith("optim") for name in own(path)), path
    assert not any(
        name.startswith("execution.c") for name in own(PACKAGE / "execution" / "plan.py")
    )


def test_schedules_know_of_optimizers_only_how_options_are_checked():
    for path in (PACKAGE / "schedules").rglob("*.py"):
        used = {name for name in own(path) if not name.startswith("schedules")}
        assert used <= {"optim", "optim.checks"}, path


RULE_FILES = {Path(inspect.getfile(rule)) for rule in rules.optimizers()}


@pytest.mark.parametrize("path", sorted(RULE_FILES), ids=dotted)
def test_a_rule_mentions_neither_devices_nor_executors_nor_other_rules(path):
    others = {other.stem for other in RULE_FILES} - {path.stem}
    for name in own(path):
        assert name.startswith("optim.core"), name
        assert not set(name.split(".")) & others, name


def loaded_by(statement):
    """The modules that a fresh interpreter has loaded after a statement."""
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}; import sys; print(*sys.modules)"],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        text=True,
        capture_output=True,
        check=True,
    )
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_that_it_does_not_need():
    heavy = {"cupy", "cupyx", "torch", "sklearn", "scipy", "matplotlib", "rich", "hypothesis"}
    assert not loaded_by("import lucid_gpu") & heavy


def test_importing_the_package_is_quick():
    """Counted in modules, not in seconds, which no machine agrees about."""
    numpy = loaded_by("import numpy")
    more = loaded_by("import lucid_gpu") - numpy
    foreign = {name for name in more if not name.startswith("lucid_gpu")}
    assert len(foreign) < 60, sorted(foreign)
