"""Inputs: what a step reads anew from groups and parameters, and whether it has changed."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any

import numpy as np
import numpy.typing as npt

from lucid_gpu.device import gradient_table
from lucid_gpu.optim.core.groups import named
from lucid_gpu.parameter import Parameter, latest_changes


class Inputs:
    """The parameters of an optimizer's groups, and what was seen of them at the last step.

    Args:
        groups: the groups.
        keys: the options that every group has.

    Attributes:
        params: the parameters of all groups, in order.
        names: of each.
        group_of: the number of the group of each.
        are_own: whether all of them note their changes, so that tokens tell of any.
        data: what each held when it was last looked at.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], keys: Sequence[str]) -> None:
        self.groups = list(groups)
        self._keys = list(keys)
        self._params_of = [list(group["params"]) for group in groups]
        pairs = [pair for group in groups for pair in named(group)]
        self.names = [name for name, _ in pairs]
        self.params = [param for _, param in pairs]
        self.group_of = np.repeat(
            np.arange(len(groups)), [len(params) for params in self._params_of]
        )
        self.are_own = all(map(notes_changes, self.params))
        self._entries = np.array([p.entry for p in self.params] if self.are_own else [], np.intp)
        self._tokens = latest_changes()
        self._options = self._read_options()
        self.data = [param.data for param in self.params]

    def has_same_groups(self, groups: Sequence[dict[str, Any]]) -> bool:
        """Say whether these are the same groups of the same parameters."""
        if not _are_same(groups, self.groups):
            return False
        params_of = [group["params"] for group in groups]
        if self.are_own:  # a Parameter equals itself alone, and comparing lists is quick
            return params_of == self._params_of
        return all(map(_are_same, params_of, self._params_of))

    def options_changed(self) -> bool:
        """Say whether an option of a group is another than it was when last accepted."""
        # By identity: arrays, which may stand for numbers until they are checked, have no equality.
        return not _are_same(self._read_options(), self._options)

    def accept_options(self) -> None:
        """Take the options as they are for those of the last step."""
        self._options = self._read_options()

    def take_data(self) -> list[int]:
        """Look at the data of all parameters and return the positions of those replaced."""
        token = latest_changes()[0]
        if self.are_own and token is self._tokens[0]:
            return []
        now = [param.data for param in self.params]
        moved = [i for i, same in enumerate(map(is_, now, self.data)) if not same]
        self.data = now
        self._tokens = token, self._tokens[1]
        return moved

    def gradients_may_have_moved(self) -> bool:
        """Say whether a gradient was set since this was last asked."""
        token = latest_changes()[1]
        if self.are_own and token is self._tokens[1]:
            return False
        self._tokens = self._tokens[0], token
        return True

    def forget_gradients(self) -> None:
        """Have the next step look at gradients in any case."""
        self._tokens = self._tokens[0], object()

    def gradients(self) -> list[Any]:
        """Return the gradient of each parameter."""
        return [param.grad for param in self.params]

    def _read_options(self) -> list[Any]:
        keys = self._keys
        return [group[key] for group in self.groups for key in keys]

    def noted_gradients(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
        """Return addresses and layouts of device gradients, without touching one."""
        return gradient_table.read(self._entries)


def _are_same(now: Sequence[Any], then: Sequence[Any]) -> bool:
    """Say whether two lists hold the same objects."""
    return len(now) == len(then) and all(map(is_, now, then))


def notes_changes(param: Any) -> bool:
    """Say whether a parameter notes its changes, by the properties of Parameter itself."""
    kind = type(param)
    return (
        isinstance(param, Parameter) and kind.grad is Parameter.grad and kind.data is Parameter.data
    )
