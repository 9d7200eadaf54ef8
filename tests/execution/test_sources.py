"""The CUDA sources: where they lie, and how they are joined."""

from __future__ import annotations

import pytest

from lucid_gpu.execution import sources
from lucid_gpu.execution.sources import joined, kernel_directory


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package directory that holds nothing, beside a checkout that holds nothing."""
    folder = tmp_path / "lucid_gpu"
    folder.mkdir()
    monkeypatch.setattr(sources, "_PACKAGE", folder)
    kernel_directory.cache_clear()
    yield folder
    kernel_directory.cache_clear()


def put_kernels(folder):
    (folder / "kernels").mkdir()
    (folder / "kernels" / "fused_step.cuh").write_text("// here\n")
    return folder / "kernels"


def test_an_installed_package_has_them_inside(package):
    inside = put_kernels(package)
    put_kernels(package.parent)
    assert kernel_directory() == inside


def test_a_checkout_has_them_beside_the_package(package):
    assert put_kernels(package.parent) == kernel_directory()


def test_a_damaged_package_says_where_it_looked_and_what_to_do(package):
    with pytest.raises(FileNotFoundError, match="reinstall lucid-gpu") as error:
        kernel_directory()
    assert str(package / "kernels") in str(error.value)


def test_compilers_report_the_lines_of_the_files():
    lines = joined("rule", "adam", "fused_step").splitlines()
    for name in ("rule", "adam", "fused_step"):
        text = (kernel_directory() / f"{name}.cuh").read_text(encoding="utf-8")
        file = text.encode("ascii", "replace").decode().splitlines()
        start = lines.index(f'#line 1 "kernels/{name}.cuh"') + 1
        expected = ["" if line == "#pragma once" else line for line in file]
        assert lines[start : start + len(file)] == expected


def test_the_text_fits_any_locale():
    assert not (kernel_directory() / "adam.cuh").read_text(encoding="utf-8").isascii()
    assert joined("rule", "adam", "fused_step").isascii()


def test_each_file_is_there_once():
    assert "#pragma once" not in joined("rule", "adam")


def test_a_rule_may_lie_outside_the_package(tmp_path):
    path = tmp_path / "lion.cuh"
    path.write_text("struct Lion {};\n")
    assert joined("rule", path).endswith('#line 1 "kernels/lion.cuh"\nstruct Lion {};\n')
