"""What steps arrays on the CPU: compiled code, NumPy, or whichever is there."""

from __future__ import annotations

import os

from lucid_gpu.execution import building

CHOICES = ("auto", "numpy", "compiled")

PROBE = 'extern "C" double probe(double x) { return sqrt(x); }\n'
"""A text that shows whether the compiler works."""

_chosen: str | None = None


def cpu_code() -> str:
    """Return what steps arrays on the CPU: ``"auto"``, ``"numpy"`` or ``"compiled"``.

    It is what :func:`set_cpu_code` chose, else the environment variable ``LUCID_GPU_CPU``, else
    ``"auto"``.

    Raises:
        ValueError: the variable is set to something else.
    """
    if _chosen is not None:
        return _chosen
    if "LUCID_GPU_CPU" not in os.environ:  # a lookup that fails takes three times as long
        return CHOICES[0]
    return _checked("LUCID_GPU_CPU", os.environ["LUCID_GPU_CPU"])


def set_cpu_code(choice: str | None) -> None:
    """Choose what steps arrays on the CPU, from the next step on; results are the same to the bit.

    Args:
        choice: ``"auto"``: compiled code where the system has a C++ compiler (``CXX``, else
            ``c++``, ``g++``, ``clang++``). The first step of an optimizer starts it in the
            background, and steps use NumPy until it is done; a later process finds the code in
            ``LUCID_GPU_CACHE_DIR`` (default: ``~/.cache/lucid_gpu``). Where no code can be built,
            NumPy goes on: ``lucid-gpu info`` says why.
            ``"numpy"``: NumPy only.
            ``"compiled"``: compiled code; the first step waits for it, and raises RuntimeError if
            it cannot be built. Only arrays that are not contiguous are left to NumPy.
            None: what the environment variable ``LUCID_GPU_CPU`` says, by default ``"auto"``.

    Raises:
        ValueError: it is none of these.

    Example:
        >>> import lucid_gpu
        >>> lucid_gpu.set_cpu_code("numpy")
        >>> lucid_gpu.cpu_code()
        'numpy'
        >>> lucid_gpu.set_cpu_code(None)
    """
    global _chosen  # noqa: PLW0603 - a choice for the whole process
    _chosen = None if choice is None else _checked("choice", choice)


def look_for_build(
    text: str, choice: str, known: building.Build | None, use: str
) -> building.Build:
    """Return the build of a text: begun, or looked at anew; where it was chosen, done.

    Args:
        text: the source.
        choice: what :func:`cpu_code` returned.
        known: what this returned before, if it was asked.
        use: what NumPy is told to do in the error, which has it for a remedy.

    Raises:
        RuntimeError: compiled code was chosen and cannot be built.
    """
    if choice != "compiled":
        build = known or building.start(text)
        build.poll()
        return build
    build = building.finish(text)
    if build.library is None:
        raise RuntimeError(
            f"compiled code was chosen for the CPU, but {build.failure}; "
            f'choose "auto" or "numpy" to {use} NumPy. {build.output}'.strip()
        )
    return build


def why_not_compiled() -> str | None:
    """Return why no code can be compiled here; None if it can. Waits for the compiler."""
    return building.finish(PROBE).failure


def _checked(name: str, choice: str) -> str:
    if choice not in CHOICES:
        raise ValueError(f"{name} must be one of {', '.join(CHOICES)}, not {choice!r}")
    return choice
