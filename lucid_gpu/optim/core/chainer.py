"""States of Chainer: how its update rules write what is written here otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lucid_gpu.optim.core import checks

ADAM = {"m": "exp_avg", "v": "exp_avg_sq"}

SLOTS: dict[str, dict[str, str]] = {
    "SGD": {},
    "MomentumSGD": {"v": "momentum_buffer"},
    "CorrectedMomentumSGD": {"v": "momentum_buffer"},
    "Adam": ADAM,
    "AdamW": ADAM,
    "AMSGrad": {**ADAM, "vhat": "max_exp_avg_sq"},
    "AdaGrad": {"h": "sum"},
    "AdaDelta": {"msg": "square_avg", "msdx": "acc_delta"},
    "RMSprop": {"ms": "square_avg"},
    "RMSpropGraves": {"n": "square_avg", "g": "grad_avg", "delta": "momentum_buffer"},
}
"""For each class, the slot that each array of its update rules is."""

OPTIONS: dict[str, dict[str, Any]] = {
    "AMSGrad": {"amsgrad": "raw"},
    "RMSpropGraves": {"centered": True, "eps_inside_sqrt": True},
}
"""Options that follow from the class."""

FALLING = {"MomentumSGD": True, "CorrectedMomentumSGD": False, "RMSpropGraves": True}
"""Classes whose momentum points downwards, and whether it holds the learning rate as well."""

OTHERS = {
    "NesterovAG": "it moves by μ²v − (1 + μ)ηg with the v that this gradient has already changed",
    "AdaBound": "its rates are clipped",
    "AMSBound": "its rates are clipped",
    "SMORMS3": "its averages forget at a rate of each element",
    "MSVAG": "it weighs steps by an estimate of their variance",
}
"""Classes that have no counterpart here, and why."""


def translate(
    saved: Mapping[str, Any], algorithm: str, lr: float | None = None, path: str = ""
) -> dict[str, Any]:
    """Return what Chainer saved of an optimizer as a state dict of this package.

    Of ``SGD``, ``MomentumSGD``, ``CorrectedMomentumSGD``, ``Adam``, ``AdamW``, ``AMSGrad``,
    ``AdaGrad``, ``AdaDelta``, ``RMSprop`` and ``RMSpropGraves``. Parameters are named by their
    path, ``"l1/W"``, and stand in the order of ``namedparams()``. Chainer saves no options: pass
    them to the optimizer here, where ``alpha`` is ``lr`` and a decay rate of ``Adam`` is
    ``weight_decay`` times ``lr``. Where ε is added differs in ``Adam``: there, ahead of the
    correction of the bias.

    Args:
        saved: the file that ``serializers.save_npz`` made of an optimizer, opened by
            ``numpy.load``, or any other mapping of its keys to arrays, which are not copied before
            they are loaded.
        algorithm: the class of the optimizer, which the file does not name: ``"MomentumSGD"``.
        lr: the learning rate that it had, > 0: needed where the saved momentum was multiplied by
            it, by ``MomentumSGD`` and ``RMSpropGraves``.
        path: where the optimizer is in the file: ``"updater/optimizer:main/"`` in the snapshot of
            a trainer.

    Returns:
        What ``load_state_dict`` takes of ``SGD`` for the first three, ``Adam`` or ``AdamW`` for the
        next three, ``Adagrad``, ``Adadelta``, ``RMSprop`` for the others.

    Raises:
        TypeError: ``saved`` is no mapping.
        ValueError: the class is none of these, ``lr`` is needed or out of bounds, the file holds no
            parameter there, or other arrays than such a class keeps.

    Example:
        >>> import numpy as np
        >>> from lucid_gpu import Parameter, optim
        >>> saved = {"t": 3, "epoch": 0, "l1/W/t": 3, "l1/W/h": np.float32([0.5])}
        >>> w = Parameter([1.0], name="l1/W")
        >>> optimizer = optim.Adagrad([w])
        >>> optimizer.load_state_dict(translate(saved, "AdaGrad"))
        >>> optimizer.state[w]["sum"].tolist(), optimizer.state[w]["step"]
        ([0.5], 3)
    """
    if not isinstance(saved, Mapping):
        raise TypeError(
            f"saved must be a mapping, not a {type(saved).__name__}: pass numpy.load(file)"
        )
    scale = _scale_of_momentum(algorithm, lr)
    names = [key[len(path) : -2] for key in saved if key.startswith(path) and key.endswith("/t")]
    names = [name for name in names if name]
    if not names:
        raise ValueError(f"there is no parameter below path {path!r}: the keys are {list(saved)}")
    state = {index: _slots(saved, path, name, algorithm, scale) for index, name in enumerate(names)}
    group = {**OPTIONS.get(algorithm, {}), "params": list(state), "param_names": names}
    return {"state": state, "param_groups": [group]}


def _scale_of_momentum(algorithm: str, lr: float | None) -> float:
    """Return what makes the momentum of a class here of its own."""
    if algorithm in OTHERS:
        raise ValueError(
            f"{algorithm} of Chainer has no counterpart here: {OTHERS[algorithm]}; begin anew"
        )
    if algorithm not in SLOTS:
        raise ValueError(f"algorithm must be one of {', '.join(SLOTS)}, not {algorithm!r}")
    if not FALLING.get(algorithm):
        return -1.0
    if lr is None:
        raise ValueError(f"the momentum of {algorithm} was saved times lr: pass lr, which it had")
    checks.finite({"lr": lr}, "lr")
    if lr <= 0:
        raise ValueError(f"lr must be > 0, not {lr!r}")
    return -1 / lr


def _slots(
    saved: Mapping[str, Any], path: str, name: str, algorithm: str, scale: float
) -> dict[str, Any]:
    prefix = f"{path}{name}/"
    own = {key[len(prefix) :] for key in saved if key.startswith(prefix)}
    arrays = {key for key in own - {"t"} if "/" not in key}
    count, slots = int(saved[f"{prefix}t"]), SLOTS[algorithm]
    if not arrays and (slots or not count):
        return {}
    if arrays != set(slots):
        raise ValueError(
            f"of {name!r} there is {', '.join(sorted(arrays)) or 'no array'}, but "
            f"{algorithm} keeps {', '.join(slots) or 'none'}: which class saved it?"
        )
    values = {slots[key]: np.asarray(saved[f"{prefix}{key}"]) for key in slots}
    if algorithm in FALLING:
        values["momentum_buffer"] = values["momentum_buffer"] * scale
    return {"step": count, **values}
