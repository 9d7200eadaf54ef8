"""The CUDA sources: where they lie, and how they are joined to one text."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lucid_gpu.execution.rule import Rule

_PACKAGE = Path(__file__).resolve().parent.parent


@cache
def kernel_directory() -> Path:
    """Return the folder of the CUDA sources: inside an installed package, beside a checkout's.

    Raises:
        FileNotFoundError: neither is there; the package is damaged.
    """
    places = (_PACKAGE / "kernels", _PACKAGE.parent / "kernels")
    for place in places:
        if (place / "fused_step.cuh").is_file():
            return place
    raise FileNotFoundError(
        f"the CUDA sources are neither in {places[0]} nor in {places[1]}: reinstall lucid-gpu"
    )


def step_source(kernel: str | Path, *steps: str) -> str:
    """Return the text of a rule and of what steps by it.

    Args:
        kernel: of the rule.
        steps: names of the sources that follow it.
    """
    return joined("half", "rule", "stored", kernel, *steps)


def parts(rule: Rule, telemetry: bool, prefix: str = "") -> tuple[str, ...]:
    """Return names of the sources of what a step does beside moving parameters.

    Args:
        rule: a rule, of two phases if it takes sums.
        telemetry: whether the step tells how far parameters move.
        prefix: of the names.
    """
    phased = (f"{prefix}two_phase",) if rule.sums else ()
    return (*phased, f"{prefix}telemetry") if telemetry else phased


def joined(*kernels: str | Path) -> str:
    """Return the text of several sources as one, each named so that compilers report its lines.

    One text, by which caches of compiled code are keyed, and which needs no files to compile.

    Args:
        kernels: a name such as ``"adam"`` stands for a file of this package; a path ending in
            ``.cuh`` for any other.
    """
    parts = []
    for kernel in kernels:
        path = Path(kernel)
        if path.suffix != ".cuh":
            path = kernel_directory() / f"{kernel}.cuh"
        text = path.read_text(encoding="utf-8").replace("#pragma once\n", "\n")
        parts.append(f'#line 1 "kernels/{path.name}"\n{text}')
    # A compiler of the host reads the text in the encoding of the locale.
    return "\n".join(parts).encode("ascii", "replace").decode()
