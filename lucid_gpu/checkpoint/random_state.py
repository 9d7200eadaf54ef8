"""The state of random number generators as plain values, and back.

NumPy's setters read arrays at indices that the state itself names, so nothing from a file is
handed to them that does not look exactly as their own state does.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

AnyGenerator: TypeAlias = np.random.Generator | np.random.RandomState | random.Random

KINDS: dict[type, str] = {
    np.random.Generator: "Generator",
    np.random.RandomState: "RandomState",
    random.Random: "Random",
}

_BIT_GENERATORS: dict[str, Callable[[int], Any]] = {
    kind.__name__: kind
    for kind in (
        np.random.PCG64,
        np.random.PCG64DXSM,
        np.random.MT19937,
        np.random.Philox,
        np.random.SFC64,
    )
}

_LARGEST = {"pos": 624, "buffer_pos": 4, "has_uint32": 1, "has_gauss": 1, "uinteger": 2**32 - 1}
"""Bounds of the numbers in a state that are no part of a large integer or an array."""


def state_of(generator: AnyGenerator) -> Any:
    """Return the state of a generator as nested dicts and lists of numbers and text.

    Raises:
        TypeError: it draws from a bit generator that is none of NumPy's, or not that of its kind.
    """
    if isinstance(generator, random.Random):
        version, words, gauss = generator.getstate()
        return {"version": version, "words": list(words), "gauss": gauss}
    if isinstance(generator, np.random.RandomState):
        state: Any = generator.get_state(legacy=False)
    else:
        state = generator.bit_generator.state
    own = isinstance(generator, np.random.Generator)
    if state["bit_generator"] not in (_BIT_GENERATORS if own else ("MT19937",)):
        raise TypeError(f"{state['bit_generator']} of a {type(generator).__name__} is not known")
    return _plain(state)


def from_state(kind: str, state: Any) -> AnyGenerator:
    """Return a new generator of a kind, with a state.

    Raises:
        KeyError: the kind or its bit generator is unknown, or a part is missing.
        TypeError, ValueError, OverflowError: it is no state of such a generator.
    """
    if kind == "Random":
        generator = random.Random()
        if type(state["gauss"]) not in (float, type(None)):
            raise TypeError("gauss is no float")
        generator.setstate((state["version"], tuple(state["words"]), state["gauss"]))
        return generator
    bits = _BIT_GENERATORS[state["bit_generator"]](0)
    if kind == "RandomState":
        legacy = np.random.RandomState(np.random.MT19937(0))
        legacy.set_state(_shaped_as(legacy.get_state(legacy=False), state))
        return legacy
    if kind != "Generator":
        raise KeyError(kind)
    bits.state = _shaped_as(bits.state, state)
    return np.random.Generator(bits)


def are_alike(one: Any, other: AnyGenerator) -> bool:
    """Say whether a generator can take the state of another."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.random.Generator) and isinstance(other, np.random.Generator):
        return type(one.bit_generator) is type(other.bit_generator)
    return True


def give_state(source: AnyGenerator, target: Any) -> None:
    """Set a generator to the state of another that is alike."""
    if isinstance(source, random.Random):
        target.setstate(source.getstate())
    elif isinstance(source, np.random.RandomState):
        target.set_state(source.get_state(legacy=False))
    else:
        target.bit_generator.state = source.bit_generator.state


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray | np.integer):
        return value.tolist()
    return value


def _shaped_as(own: Any, saved: Any, name: str = "") -> Any:
    """Return a saved state with the very types of a generator's own."""
    if isinstance(own, dict):
        if type(saved) is not dict or set(saved) != set(own):
            raise TypeError(f"{name} does not have its parts")
        return {key: _shaped_as(own[key], saved[key], key) for key in own}
    if isinstance(own, np.ndarray):
        if type(saved) is not list or any(type(item) is not int for item in saved):
            raise TypeError(f"{name} is no list of integers")
        array = np.array(saved, own.dtype)
        if array.shape != own.shape:
            raise ValueError(f"{name} has not {own.size} numbers")
        return array
    if isinstance(own, float):
        return float(saved)
    if isinstance(own, str):
        if saved != own:
            raise ValueError(f"{name} is not {own}")
        return own
    if type(saved) is not int or not 0 <= saved <= _LARGEST.get(name, 2**128 - 1):
        raise ValueError(f"{name} is out of range")
    return saved
