"""Parameter: a device array that is trained, and its gradient."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from lucid_gpu.device import gpu, gradient_table, keep, transfer
from lucid_gpu.device.arrays import (
    IMMUTABLE,
    are_alike,
    as_array,
    device_of,
    is_immutable,
    kind_of,
)
from lucid_gpu.row_gradient import RowGradient

_latest_data: object = object()
_latest_grad: object = object()
_rows_were_given = False


def latest_changes() -> tuple[object, object]:
    """Return two tokens: other objects after any Parameter was given other data, another gradient.

    An optimizer that sees the tokens of its last step need not look at a single parameter.
    """
    return _latest_data, _latest_grad


_grad_of = attrgetter("_grad")


def gradients_of(params: Iterable[Parameter]) -> list[Any]:
    """Return the gradient of each of some parameters, whose class keeps the property ``grad``.

    Reading the property of each takes Python three times as long.
    """
    return [*map(_grad_of, params)]


def rows_were_given() -> bool:
    """Say whether a Parameter of this process ever took a gradient of rows.

    Until then, a step that takes arrays alone need not look for one.
    """
    return _rows_were_given


def gradient_dtypes(dtype: np.dtype[Any]) -> list[np.dtype[Any]]:
    """Return the dtypes that the gradients of a parameter may have: its own first."""
    single, halves = np.dtype(np.float32), (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16))
    if dtype == single:
        return [single, *halves]
    return [dtype, single] if dtype in halves else [dtype]


class Parameter:
    """An array to be optimized, with its gradient.

    Args:
        data: a NumPy or CuPy array, or an array of another framework that speaks DLPack, taken
            without a copy: of a subclass of ``numpy.ndarray`` a plain view, a ``memmap`` as it is,
            a masked array not at all; a number or nested list of numbers, which becomes a float32
            array; or a ``str``, for optimizers that train text.
        requires_grad: False freezes the parameter: it takes no gradient, so no step changes it.
        name: the name under which errors, ``repr`` and state dicts speak of it.
        device: ``"cpu"`` or ``"cuda:N"``; None leaves an array where it is and puts a list on the
            host. An array that lives elsewhere is copied there.
        grad_dtype: the dtype that gradients must have; None for that of ``data``. A float32
            parameter takes gradients of float32, bfloat16 or float16, one of bfloat16 or float16
            also those of float32, each other parameter those of its own dtype.

    Raises:
        TypeError: ``data`` is none of these, or ``name`` is neither None nor a string.
        ValueError: ``data`` is a ragged list, ``device`` is unknown, or ``grad_dtype`` is none
            that the parameter takes.
        lucid_gpu.device.DeviceUnavailableError: ``device`` names a GPU that cannot be used.

    Example:
        >>> w = Parameter([[1.0, 2.0], [3.0, 4.0]], name="w")
        >>> w.grad = np.ones((2, 2), np.float32)
        >>> w.data -= 0.5 * w.grad
        >>> w.numpy().tolist()
        [[0.5, 1.5], [2.5, 3.5]]
    """

    def __init__(
        self,
        data: Any,
        requires_grad: bool = True,
        name: str | None = None,
        device: str | None = None,
        grad_dtype: npt.DTypeLike | None = None,
    ) -> None:
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a string or None, not {name!r}")
        self._entry = gradient_table.enter()
        self.name = name
        self._data = _as_data(data)
        self._made = keep.made_on(self._data)
        self._grad: Any = None
        self._requires_grad = bool(requires_grad)
        self._stays = False
        self._grad_dtype: np.dtype[Any] | None = None
        self.grad_dtype = grad_dtype
        if device is not None:
            self.to(device)

    @property
    def data(self) -> Any:
        """The array. What replaces it must have the same shape, dtype and device."""
        return self._data

    @data.setter
    def data(self, value: Any) -> None:
        if value is self._data:
            return
        value = self._fitting("data", value)
        if self._stays:
            with gpu.on(self.device):
                self._data[...] = value
        else:
            self._set_data(value)

    @property
    def grad(self) -> Any:
        """The gradient, or None. It must have the shape, dtype and device of ``data``.

        Or it is a :class:`lucid_gpu.RowGradient`, whose values are rows of that shape.
        """
        return self._grad

    @grad.setter
    def grad(self, value: Any) -> None:
        if value is self._grad:
            return
        if value is not None:
            if not self._requires_grad:
                raise ValueError(
                    f"{self._label()} has requires_grad=False and takes no gradient: "
                    "set requires_grad=True to train it"
                )
            is_text = isinstance(self._data, str)
            if isinstance(value, RowGradient):
                self._require_rows(value)
            elif not (is_text or are_alike(value, self._data, self._grad_dtype)):
                value = self._fitting("grad", value)
        if self._stays:
            with gpu.on(self.device):
                self._grad[...] = 0 if value is None else value
        else:
            self._set_grad(value)

    @property
    def grad_dtype(self) -> np.dtype[Any] | None:
        """The dtype that a gradient must have; None for that of ``data``.

        Setting it drops a gradient of another dtype.
        """
        return self._grad_dtype

    @grad_dtype.setter
    def grad_dtype(self, value: Any) -> None:
        dtype = None if value is None else np.dtype(value)
        if dtype is not None:
            taken = [] if self.is_text else gradient_dtypes(self.dtype)
            if dtype not in taken:
                raise ValueError(
                    f"grad_dtype of {self._label()} must be None or one of "
                    f"{', '.join(map(str, taken))}, not {dtype}"
                )
        self._grad_dtype = dtype
        if self._grad is not None and self._grad.dtype != (dtype or self.dtype):
            self.grad = None

    @property
    def requires_grad(self) -> bool:
        """Whether the parameter takes a gradient. Setting False drops the one it has."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self._requires_grad = bool(value)
        if not value:
            self.grad = None

    @property
    def is_text(self) -> bool:
        """Whether ``data`` is a ``str``."""
        return isinstance(self._data, str)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of ``data``."""
        return self._data.shape  # type: ignore[no-any-return]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of ``data``."""
        return self._data.dtype  # type: ignore[no-any-return]

    @property
    def size(self) -> int:
        """The number of elements."""
        return self._data.size  # type: ignore[no-any-return]

    @property
    def device(self) -> str:
        """Where ``data`` lives: ``"cpu"`` or ``"cuda:N"``."""
        return device_of(self._data)

    @property
    def stays(self) -> bool:
        """Whether the arrays keep their place: what is assigned is copied in, None as zeros.

        So it is after :func:`lucid_gpu.flatten`, which makes them views of a shared buffer.
        """
        return self._stays

    @property
    def entry(self) -> int:
        """Where the ledger notes this parameter's gradient."""
        return self._entry

    @property
    def made(self) -> tuple[int, int] | None:
        """On which device and stream ``data`` was made, by their numbers: what was current then.

        None on the host. An array that was made before on another stream is not told apart.
        """
        return self._made

    def to(self, device: str) -> Parameter:
        """Move data and gradient to a device, through pinned memory, and return the parameter.

        An optimizer that holds state for it must be moved with ``optimizer.to(device)`` instead.
        """
        device = gpu.resolve(device)
        if not self.is_text and self.device != device:
            if self._stays:
                raise ValueError(f"{self._label()} is part of a flat parameter: move that instead")
            data, grad = transfer.copy(self._data, device), self._grad
            if isinstance(grad, RowGradient):
                grad = grad.to(device)
            elif grad is not None:
                grad = transfer.copy(grad, device)
            self.rehome(data, grad)
        return self

    def rehome(self, data: Any, grad: Any, stays: bool = False) -> None:
        """Replace data and gradient together, for whoever moves them to another place."""
        self._set_data(data)
        self._set_grad(grad)
        self._stays = stays

    def numpy(self) -> np.ndarray[Any, Any]:
        """Return ``data`` on the host: the array itself if it lives there, else a copy."""
        if self.is_text:
            raise TypeError(f"{self._label()} holds text, which has no array form: read .data")
        return transfer.to(self._data, "cpu")  # type: ignore[no-any-return]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        if copy is False and self.device != "cpu":
            raise ValueError(
                f"{self._label()} is on {self.device}: reading it on the host is a copy"
            )
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        return self._data.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._data.__dlpack_device__()  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return len(self._data)

    def __repr__(self) -> str:
        name = f", name={self.name!r}" if self.name is not None else ""
        if self.is_text:
            return f"Parameter({self._data!r}{name})"
        return f"Parameter(shape={self.shape}, dtype={self.dtype}, device={self.device!r}{name})"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_entry"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _entry=gradient_table.enter())
        self.rehome(self._data, self._grad, self._stays)

    # Bound once, because at exit this may outlive the names of its module.
    def __del__(self, leave: Callable[[int], None] = gradient_table.leave) -> None:
        if "_entry" in self.__dict__:
            leave(self._entry)

    def _set_data(self, data: Any) -> None:
        global _latest_data  # noqa: PLW0603 - one token for the process: comparing it costs nothing
        self._data = data
        self._made = keep.made_on(data)
        _latest_data = object()

    def _set_grad(self, grad: Any) -> None:
        global _latest_grad  # noqa: PLW0603
        # In this order the table never names an array that is gone.
        gradient_table.note(self._entry, grad)
        self._grad = grad
        _latest_grad = object()

    def _label(self) -> str:
        return f"parameter {self.name!r}" if self.name is not None else "this parameter"

    def _require_rows(self, grad: RowGradient) -> None:
        """Raise if a gradient of rows does not fit ``data``; which rows it has, a step looks at."""
        if self.is_text:
            raise TypeError(f"data of {self._label()} is text, which has no rows")
        if self._stays:
            raise ValueError(
                f"{self._label()} is part of a flat parameter, whose gradient is dense: give "
                "gradient.dense(param.shape)"
            )
        problems = grad.misfits(self._data)
        if problems:
            raise ValueError(f"grad of {self._label()} {'; '.join(problems)}")
        global _rows_were_given  # noqa: PLW0603 - one for the process, as the tokens above
        _rows_were_given = True

    def _fitting(self, what: str, value: Any) -> Any:
        """Return ``value`` as an array that fits ``data``, or raise with both values."""
        if self.is_text:
            if isinstance(value, str):
                return value
            raise TypeError(f"data of {self._label()} is text; got {type(value).__name__}")
        if what == "data" and is_immutable(value):
            raise TypeError(f"data of {self._label()} must not be {IMMUTABLE}")
        array = as_array(value)
        if array is None:
            raise TypeError(
                f"{what} of {self._label()} must be a NumPy or CuPy array, not {kind_of(value)}"
            )
        dtype, cast = self.dtype, f"cast it with .astype({self.dtype.name!r})"
        if what == "grad":
            if self._grad_dtype is not None:
                dtype, cast = self._grad_dtype, f"cast it with .astype({self._grad_dtype.name!r})"
            elif array.dtype in gradient_dtypes(dtype):
                cast += f", or set grad_dtype={array.dtype.name!r}"
        for attribute, have, want, remedy in (
            ("shape", array.shape, self.shape, "reshape it"),
            ("dtype", array.dtype, dtype, cast),
            ("device", device_of(array), self.device, f"copy it to {self.device!r}"),
        ):
            if have != want:
                raise ValueError(
                    f"{what} of {self._label()} has {attribute} {have}, "
                    f"but the parameter has {attribute} {want}: {remedy}"
                )
        return array


def _as_data(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if is_immutable(value):
        raise TypeError(f"data must not be {IMMUTABLE}")
    array = as_array(value)
    if array is not None:
        return array
    if isinstance(value, int | float | list | tuple) and _are_numbers(value):
        return np.array(value, np.float32)
    raise TypeError(
        "data must be a NumPy or CuPy array, a nested list of numbers or a str, "
        f"not {_described(value)}"
    )


def _are_numbers(value: Any) -> bool:
    """Say whether NumPy finds real numbers alone in a number or nested list."""
    array = np.array(value)
    if array.dtype.hasobject:  # ints that are too large for any integer type, and others
        return all(isinstance(item, numbers.Real) for item in array.flat)
    return np.can_cast(array.dtype, np.float32, "same_kind")


def _described(value: Any) -> str:
    if not isinstance(value, list | tuple):
        return kind_of(value)
    kinds = {type(item).__name__ for item in np.array(value, object).flat}
    return f"a {type(value).__name__} of {', '.join(sorted(kinds))}"
