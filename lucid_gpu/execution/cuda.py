"""Compiles ``kernels/`` once and launches a plan: one launch for any number of tensors."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from lucid_gpu.device import gpu, tables
from lucid_gpu.device.arrays import address, contiguity, device_of
from lucid_gpu.execution import plan as _plan
from lucid_gpu.execution.plan import Plan, Rule, Work
from lucid_gpu.execution.sources import joined

THREADS = 256
"""Threads per block: ``kThreads`` of ``fused_step.cuh``."""

OPTIONS = ("--fmad=false",)
"""Without fused multiply-add, so that CUDA and NumPy agree to the bit."""


class CudaExecutor:
    """Steps CuPy arrays of one device, on the stream that is current when it is called.

    Attributes:
        needs_gradients: whether each run wants its gradients anew. Addresses stay on the device;
            the arrays are let go, so that their memory is free when the training loop is done.
    """

    def __init__(self, work: Work) -> None:
        self._home = device_of(work.params[0])
        arrays = zip(work.params, work.slots, strict=True)
        layouts = [_plan.common_layout((param, *slots)) for param, slots in arrays]
        self._layouts = np.array(layouts, np.uint8)
        self._is_dense = self._match(np.array([*map(contiguity, work.grads)], np.uint8))
        self._dense = np.flatnonzero(self._is_dense)
        self._strided = np.flatnonzero(~self._is_dense)
        with gpu.on(self._home):
            self._fused = self._fused_launch(work.select(self._dense))
            self._single = self._strided_launches(work.select(self._strided))
        self.needs_gradients = len(self._strided) > 0
        work.grads = []

    def replace_gradients(self, grads: Sequence[Any]) -> bool:
        """Take other gradient arrays from now on; False if their layout asks for a new executor."""
        addresses = np.array([grad.data.ptr for grad in grads], np.uint64)
        layouts = np.array([*map(contiguity, grads)], np.uint8)
        if not self.move_gradients(addresses, layouts):
            return False
        self._single.replace_gradients([grads[i] for i in self._strided.tolist()])
        return True

    def move_gradients(
        self, addresses: npt.NDArray[np.uint64], layouts: npt.NDArray[np.uint8]
    ) -> bool:
        """Take gradients at other addresses; False if their layout asks for a new executor."""
        if not np.array_equal(self._match(layouts), self._is_dense):
            return False
        self._fused.move_gradients(addresses[self._dense])
        return True

    def run(self, scalars: Sequence[Any]) -> None:
        """Update every tensor, with one tuple of scalars for each row."""
        with gpu.on(self._home):
            self._fused.run(scalars)
            self._single.launch(scalars)

    def capture(self) -> None:
        """Record the launch in the graph that the current stream records.

        Raises:
            RuntimeError: a tensor is not contiguous: its scalars would be frozen in the graph; or
                it is on another device than the stream, which would not record its launch.
        """
        if len(self._strided):
            raise RuntimeError(
                f"{len(self._strided)} parameters or gradients are not contiguous, which a CUDA "
                "graph cannot replay with new scalars: make them contiguous before capturing"
            )
        with gpu.on(self._home):
            if not gpu.is_capturing():
                raise RuntimeError(
                    f"the parameters on {self._home} step on a stream that records no graph: "
                    "capture one optimizer for each device"
                )
            self._fused.capture()

    def upload(self, scalars: Sequence[Any]) -> None:
        """Bring scalars and gradient addresses to the device, for the next replay."""
        with gpu.on(self._home):
            self._fused.upload(scalars)

    def _fused_launch(self, work: Work) -> FusedLaunch:
        return FusedLaunch(work)

    def _strided_launches(self, work: Work) -> StridedLaunches:
        return StridedLaunches(work)

    def _match(self, layouts: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Say which tensors are contiguous in one order with their gradient and slots."""
        is_dense: npt.NDArray[np.bool_] = (self._layouts & layouts) != 0
        return is_dense


class FusedLaunch:
    """The one launch that updates all contiguous tensors.

    It carries their scalars, so that a step whose gradients stay copies nothing. Those of a launch
    in a graph, and more than a launch can carry, are read from a table on the device.
    """

    def __init__(self, work: Work) -> None:
        self._plan: Plan | None = None
        if not work.params:
            return
        cp = gpu.cupy()
        self._plan = plan = self._make_plan(work)
        self._chunks = cp.array(plan.chunks.view(np.uint8))
        self._tensors = cp.array(plan.tensors.view(np.uint8))
        nbytes = plan.scalars.nbytes
        self._split = -(-nbytes // 16) * 16
        self._table = tables.Table(self._split + 8 * len(plan.tensors))
        self._streams = [cp.cuda.get_current_stream()] * 2  # made on, last used on
        memory = self._chunks, self._tensors, self._table.device
        home = device_of(self._chunks)
        weakref.finalize(self, tables.retire, home, self._streams, memory).atexit = False
        self._scalars = self._table.host[:nbytes].view(work.dtype)
        self._grads = self._table.host[self._split :].view(np.uint64)
        self._argument = np.zeros((), _plan.ARGUMENT)
        # Named as records, NumPy would describe each member anew at every launch.
        self._by_value = self._argument.view(f"V{_plan.ARGUMENT.itemsize}")
        self._argument["chunks"] = self._chunks.data.ptr
        self._argument["tensors"] = self._tensors.data.ptr
        self._argument["grads"] = self._table.device.data.ptr + self._split
        self._carried: npt.NDArray[Any] | None = None
        if nbytes <= _plan.CARRIED_BYTES:
            self._carried = self._argument["carried"][:nbytes].view(work.dtype)
        else:
            self._argument["table"] = self._table.device.data.ptr
        self._kernel = _compiled(work.rule, work.dtype, tuple(plan.kinds), cp.cuda.Device().id)
        self._blocks = len(plan.chunks)
        self._gradients_moved = True
        self.move_gradients(np.array([grad.data.ptr for grad in work.grads], np.uint64))

    def _make_plan(self, work: Work) -> Plan:
        addresses = [
            [address(param), *map(address, slots)]
            for param, slots in zip(work.params, work.slots, strict=True)
        ]
        return _plan.build(work, _plan.whole(work), addresses)

    def move_gradients(self, addresses: npt.NDArray[np.uint64]) -> None:
        """Take gradients at other addresses."""
        if self._plan is not None and not np.array_equal(addresses, self._grads):
            self._grads[:] = addresses
            self._gradients_moved = True

    def run(self, scalars: Sequence[Any]) -> None:
        """Launch the kernel with one tuple of scalars for each row."""
        if self._plan is None:
            return
        stream = self._stream()
        if self._carried is None:
            self.upload(scalars)
        else:
            self._carried[:] = _in_a_row(scalars, self._carried.dtype)
            if self._gradients_moved:
                self._table.upload(self._split, len(self._table.host), stream)
                self._gradients_moved = False
        self._launch(stream)

    def capture(self) -> None:
        """Launch the kernel with scalars that :meth:`upload` brings."""
        if self._plan is None:
            return
        self._argument["table"] = self._table.device.data.ptr
        try:
            self._launch(self._stream())
        finally:
            if self._carried is not None:
                self._argument["table"] = 0

    def upload(self, scalars: Sequence[Any]) -> None:
        """Bring scalars and gradient addresses to the table, as far as they changed."""
        if self._plan is None:
            return
        values = _in_a_row(scalars, self._scalars.dtype)
        are_new = not np.array_equal(values, self._scalars)
        self._scalars[:] = values
        stream = self._stream()
        if self._gradients_moved:
            self._table.upload(0, len(self._table.host), stream)
        elif are_new:
            self._table.upload(0, self._split, stream)
        self._gradients_moved = False

    def _stream(self) -> Any:
        """Return the current stream, on which the tables are used from now on."""
        stream = self._streams[-1] = gpu.cupy().cuda.get_current_stream()
        return stream

    def _launch(self, stream: Any) -> None:
        if self._blocks:
            self._kernel((self._blocks,), (THREADS,), (self._by_value,), stream=stream)


class StridedLaunches:
    """One launch per tensor that is not contiguous, through CuPy's strides."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._kernels = [
            _elementwise(work.rule, work.dtype, work.variants[row]) for row in work.row
        ]

    def replace_gradients(self, grads: Sequence[Any]) -> None:
        """Take other gradients for the next launch."""
        self._work.grads = list(grads)

    def launch(self, scalars: Sequence[Any]) -> None:
        """Launch all kernels, with one tuple of scalars for each row, and let the gradients go."""
        work = self._work
        for i, row in enumerate(work.row):
            self._update(i, map(work.dtype.type, scalars[row]), work.slots[i])
        work.grads = []

    def _update(self, i: int, scalars: Iterable[Any], slots: Sequence[Any]) -> None:
        self._kernels[i](self._work.grads[i], *scalars, self._work.params[i], *slots)


def _in_a_row(scalars: Sequence[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return the scalars of all rows, one after the other, each rounded once."""
    return np.fromiter(chain.from_iterable(scalars), dtype)


@cache
def _compiled(
    rule: type[Rule],
    dtype: np.dtype[Any],
    kinds: tuple[Any, ...],
    device_id: int,  # noqa: ARG001 - a module is loaded on one device
) -> Any:
    """Return the kernel for some variants of a rule, compiled at the first call."""
    name = _plan.kernel_name(rule, kinds, dtype)
    source = joined("rule", rule.kernel, "fused_step")
    module = gpu.cupy().RawModule(code=source, options=OPTIONS, name_expressions=[name])
    return module.get_function(name)


@cache
def _elementwise(rule: type[Rule], dtype: np.dtype[Any], variant: Any) -> Any:
    """Return the kernel that updates one tensor of any strides, from the text of the same rule."""
    names = rule.Scalars._fields
    slots = rule.slots[: rule.used_slots(variant)]
    spare = [f"spare_{name}" for name in rule.slots[len(slots) :]]
    scalar = dtype.name
    functor = _plan.functor(rule, variant, dtype)
    body = [f"{_plan.c_type(dtype)} {name} = 0;" for name in spare]
    body.append(f"const {functor} rule{{{', '.join(names)}}};")
    body.append(f"rule({', '.join(['param', 'grad', *slots, *spare])});")
    return gpu.cupy().ElementwiseKernel(
        ", ".join(f"{scalar} {name}" for name in ("grad", *names)),
        ", ".join(f"{scalar} {name}" for name in ("param", *slots)),
        " ".join(body),
        f"lucid_gpu_{rule.functor.lower()}_strided",
        preamble=joined("rule", rule.kernel),
        options=OPTIONS,
        no_return=True,
    )
