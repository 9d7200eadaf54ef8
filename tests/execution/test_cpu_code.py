"""What steps on the CPU is chosen by a function, else by the environment."""

import pytest

import lucid_gpu
from lucid_gpu.execution import building, cpu_code


@pytest.fixture(autouse=True)
def unchosen(monkeypatch):
    """A process in which nothing was chosen."""
    monkeypatch.setattr(cpu_code, "_chosen", None)
    monkeypatch.delenv("LUCID_GPU_CPU", raising=False)


def test_by_default_code_is_compiled_beside_the_steps():
    assert lucid_gpu.cpu_code() == "auto"


def test_a_choice_counts_for_more_than_the_environment(monkeypatch):
    monkeypatch.setenv("LUCID_GPU_CPU", "compiled")
    assert lucid_gpu.cpu_code() == "compiled"
    lucid_gpu.set_cpu_code("numpy")
    assert lucid_gpu.cpu_code() == "numpy"
    lucid_gpu.set_cpu_code(None)
    assert lucid_gpu.cpu_code() == "compiled"


@pytest.mark.parametrize("choice", ["fast", "", "NumPy"])
def test_an_unknown_choice_is_an_error_that_lists_the_known(monkeypatch, choice):
    known = f"must be one of auto, numpy, compiled, not '{choice}'"
    with pytest.raises(ValueError, match=f"choice {known}"):
        lucid_gpu.set_cpu_code(choice)
    monkeypatch.setenv("LUCID_GPU_CPU", choice)
    with pytest.raises(ValueError, match=f"LUCID_GPU_CPU {known}"):
        lucid_gpu.cpu_code()


def test_why_code_cannot_be_compiled_is_found_out(fresh, monkeypatch):
    assert cpu_code.why_not_compiled() is None
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert cpu_code.why_not_compiled() == building.NO_COMPILER
