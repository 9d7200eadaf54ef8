"""Inputs: what a step reads anew from groups and parameters, and whether it has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from operator import is_, itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from lucid_gpu.device import gradient_table, torch_tensors
from lucid_gpu.device.arrays import zeros
from lucid_gpu.optim.core.groups import named
from lucid_gpu.parameter import Parameter, gradients_of, latest_changes


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
        tell_addresses: whether addresses of gradients can be had without the arrays.
        data: what each held when it was last looked at.
        zeros: makes memory for slots, as :func:`lucid_gpu.device.arrays.zeros` does.
    """

    zeros = staticmethod(zeros)

    def __init__(self, groups: Sequence[dict[str, Any]], keys: Sequence[str]) -> None:
        self.groups = list(groups)
        self._params_of = [list(group["params"]) for group in groups]
        pairs = [pair for group in groups for pair in named(group)]
        self.names = [name for name, _ in pairs]
        self.params = [param for _, param in pairs]
        self.group_of = np.repeat(
            np.arange(len(groups)), [len(params) for params in self._params_of]
        )
        self.are_own = self.tell_addresses = all(map(notes_changes, self.params))
        self._tensors = _Tensors(self.params)
        self._noted = gradient_table.Look([p.entry for p in self.params] if self.are_own else [])
        self._tokens = latest_changes()
        self._same_layouts = np.zeros(0, np.uint8)
        # The lists too, so that it is a tuple even of groups without an option.
        self._options_of = itemgetter("params", "param_names", *keys)
        self._options = self._read_options()
        self._watched = np.zeros(0, np.intp)
        self._versions: torch_tensors.Versions | None = None
        self.data = self._read_data()

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
        now = self._read_data()
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

    def gradients(self, held: Sequence[Any] = ()) -> list[Any]:
        """Return the gradient of each parameter.

        Args:
            held: what :meth:`hold` returned, if that was asked.
        """
        if held:
            return list(held)
        return gradients_of(self.params) if self.are_own else [own.grad for own in self.params]

    def hold(self, are_read: bool) -> list[Any]:
        """Return what must live until a step is done, for addresses of gradients to hold.

        Args:
            are_read: whether the host reads gradients during the step.
        """
        return self.gradients() if are_read else []

    def noted_gradients(
        self,
        held: Sequence[Any],
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
        """Return addresses of gradients, identities of those on the host, and layouts.

        The layouts are the same array as last time while they are the same.

        Args:
            held: what :meth:`hold` returned.
        """
        # Of those that are held: another thread may have set others since.
        noted = gradient_table.of_host(held) if held else None
        addresses, layouts = noted or self._noted.read()
        if layouts.tobytes() != self._same_layouts.tobytes():
            self._same_layouts = layouts
        return addresses, self._same_layouts

    def have_other_types(self) -> bool:
        """Say whether gradients are asked to have other dtypes than when this was made."""
        return False

    def arrays(self, position: int, slots: Mapping[str, Any]) -> Mapping[str, Any]:  # noqa: ARG002
        """Return the slots in the state of a parameter as a step works on them."""
        return slots

    def kept(self, position: int, arrays: Mapping[str, Any]) -> Mapping[str, Any]:  # noqa: ARG002
        """Return arrays that a step works on as they stand in the state of a parameter."""
        return arrays

    def note_writes(self, written: npt.NDArray[np.bool_]) -> None:
        """Tell who must know that a step has written to some parameters."""
        self.tell_writes(written)
        if self._versions is not None:
            self._versions.expect(int(np.count_nonzero(written[self._watched])))

    def tell_writes(self, written: npt.NDArray[np.bool_]) -> None:
        """Tell autograd that a step has written to some parameters."""
        self._tensors.note_writes(written)

    def watch(self, positions: Sequence[int]) -> None:
        """Watch tensors of PyTorch among these parameters for writes by others from now on."""
        own = [i for i in positions if torch_tensors.has_version(self.params[i])]
        self._watched = np.array(own, np.intp)
        self._versions = torch_tensors.Versions([self.params[i] for i in own]) if own else None

    def written_by_others(self) -> list[int]:
        """Return the positions of tensors that others may have written to since the last call."""
        if self._versions is None or not self._versions.have_changed():
            return []
        watched: list[int] = self._watched.tolist()
        return watched

    def _read_data(self) -> list[Any]:
        return self._tensors.in_place_of([param.data for param in self.params])

    def _read_options(self) -> list[Any]:
        return [*chain.from_iterable(map(self._options_of, self.groups))]


class _Tensors:
    """The tensors of PyTorch among parameters, and a view of each that stays while it does."""

    def __init__(self, params: Sequence[Any]) -> None:
        self._tensors = {i: own for i, own in enumerate(params) if torch_tensors.is_tensor(own)}
        self._views: dict[int, tuple[Any, Any]] = {}

    def in_place_of(self, data: list[Any]) -> list[Any]:
        """Return data with views for tensors, which are other objects at every read."""
        for position, tensor in self._tensors.items():
            place = torch_tensors.place(tensor)
            if place is None or self._views.get(position, (None,))[0] != place:
                self._views[position] = place, torch_tensors.as_array(tensor)
            view = self._views[position][1]
            if view is not None:
                data[position] = view
        return data

    def note_writes(self, written: npt.NDArray[np.bool_]) -> None:
        """Tell autograd that those of some positions were written."""
        own = [tensor for position, tensor in self._tensors.items() if written[position]]
        if own:
            torch_tensors.note_writes([part for each in own for part in torch_tensors.parts(each)])


def _are_same(now: Sequence[Any], then: Sequence[Any]) -> bool:
    """Say whether two lists hold the same objects."""
    return len(now) == len(then) and all(map(is_, now, then))


def notes_changes(param: Any) -> bool:
    """Say whether a parameter notes its changes, by the properties of Parameter itself."""
    kind = type(param)
    return (
        isinstance(param, Parameter) and kind.grad is Parameter.grad and kind.data is Parameter.data
    )
