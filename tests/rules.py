"""Every update rule of the package, by discovery, with every variant of its kernel.

Nothing here names an optimizer, a switch or an option: what is exported is tested.
"""

from __future__ import annotations

import inspect
import itertools
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from lucid_gpu import Parameter, optim
from lucid_gpu.averages.rule import Averaging
from lucid_gpu.execution.rule import Storage
from lucid_gpu.optim import FusedOptimizer
from lucid_gpu.optim.core import tensors
from lucid_gpu.optim.core.fused import FRAME_DEFAULTS

DTYPES = [dtype.name for dtype in tensors.DTYPES]
TRIAL = 0.25
"""A value within the bounds of any rate or coefficient."""


class Kind(NamedTuple):
    """A variant of a rule, and what the frame does ahead of it."""

    variant: Any
    decay: str
    maximize: bool


class Case(NamedTuple):
    """A kind of step, and options of the optimizer that lead to it."""

    rule: type[FusedOptimizer]
    kind: Kind
    options: dict[str, Any]

    @property
    def variant(self) -> Any:
        """The variant of the rule."""
        return self.kind.variant

    @property
    def label(self) -> str:
        """A name for test reports."""
        _, decay, maximize = self.kind
        return "-".join([self.rule.__name__, *map(str, self.variant), decay, str(maximize)])


def optimizers() -> list[type[FusedOptimizer]]:
    """Return the exported optimizers that are fused rules."""
    exported = (getattr(optim, name) for name in optim.__all__)
    return [
        kind
        for kind in exported
        if inspect.isclass(kind) and issubclass(kind, FusedOptimizer) and kind is not FusedOptimizer
    ]


def rules() -> list[type[FusedOptimizer]]:
    """Return one optimizer for each kernel source, that of averages too: AdamW steps by Adam's."""
    by_kernel: dict[Any, type[FusedOptimizer]] = {}
    for kind in [*optimizers(), Averaging]:
        by_kernel.setdefault(kind.kernel, kind)
    return list(by_kernel.values())


def variants(rule: type[FusedOptimizer]) -> list[Any]:
    """Return the product of a rule's switches."""
    return [rule.Variant(*choices) for choices in itertools.product(*rule.switches.values())]


def storage(rule: type[FusedOptimizer], dtype: str) -> Storage:
    """Return the storage of tensors whose arrays are all of one dtype."""
    own = np.dtype(dtype)
    return Storage(own, own, (own,) * len(rule.slots))


@cache
def option_sets(rule: type[FusedOptimizer]) -> dict[Kind, list[dict[str, Any]]]:
    """Return, for each kind of step that options lead to, the options: least first, most last.

    Options are tried at their default, at 0 and at a value in bounds; the first of a kind is
    the one nearest to the defaults, the last has as many options as can be away from them.
    """
    # What arrays are stored as changes no rule: test_storage and test_mixed look at that.
    _, *known = inspect.signature(rule).parameters.values()
    parameters = [each for each in known if each.name not in {*FRAME_DEFAULTS} - {"maximize"}]
    tries = [_tries(rule, parameter) for parameter in parameters]
    found: dict[Kind, list[dict[str, Any]]] = {}
    for values in itertools.product(*tries):
        options = {p.name: value for p, value in zip(parameters, values, strict=True)}
        try:
            optimizer = rule([Parameter([0.0])], **options)
        except (TypeError, ValueError):
            continue
        own = {name: value for name, value in options.items() if name in optimizer.defaults}
        (group,) = optimizer.param_groups
        variant, decay = optimizer.variant_of(group), rule.rule.decay_kind(group)
        found.setdefault(Kind(variant, decay, group["maximize"]), []).append(own)
    return found


def cases(kinds: list[type[FusedOptimizer]] | None = None) -> list[Case]:
    """Return each kind of step of some optimizers (all by default), with least and most options."""
    return [
        Case(rule, kind, options)
        for rule in kinds or optimizers()
        for kind, sets in option_sets(rule).items()
        for options in (sets[:1] if sets[0] == sets[-1] else [sets[0], sets[-1]])
    ]


def elementwise(own: list[Case]) -> list[Case]:
    """Return the cases whose rules look at no element but their own: at no norm of a tensor."""
    return [case for case in own if not case.rule.sums]


def _tries(rule: type[FusedOptimizer], parameter: inspect.Parameter) -> list[Any]:
    default = parameter.default
    choices = [*rule.switches.get(parameter.name, ())]
    if "None" in str(parameter.annotation):
        choices.append(None)
    if isinstance(default, bool):
        choices += [False, True]
    elif isinstance(default, float):
        choices += [0.0, TRIAL]
    tries = [default]
    for choice in choices:
        if not any(type(choice) is type(other) and choice == other for other in tries):
            tries.append(choice)
    return tries
