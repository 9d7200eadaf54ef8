"""RowGradient: a gradient of some rows of a parameter, as of an embedding."""

from __future__ import annotations

from typing import Any

import numpy as np

from lucid_gpu.device import gpu, transfer
from lucid_gpu.device.arrays import as_array, device_of, kind_of
from lucid_gpu.execution.row_sums import C_TYPES, coalesced

DTYPES = tuple(C_TYPES)
"""What values may be made of."""


class RowGradient:
    """A gradient that is zero but for some rows, of which it holds the values.

    A row may be there several times, as a word is in a text: its values count together.
    :class:`lucid_gpu.optim.SparseAdam` takes such gradients.

    Args:
        rows: the rows, whole numbers ≥ 0, of shape (k,): an array, or a list.
        values: of each row: an array of shape (k, …), where … is the shape of a row of the
            parameter, of the dtype and on the device of the parameter. No copy is made.

    Attributes:
        rows: an array beside ``values``.
        values: as given.

    Raises:
        TypeError: ``rows`` are no whole numbers, or ``values`` is no array of float32 or float64.
        ValueError: there are not as many values as rows, or they are on different devices.

    Example:
        >>> words = np.array([2, 0, 2])
        >>> gradient = RowGradient(words, np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))
        >>> rows, values = gradient.coalesced()
        >>> rows.tolist(), values.tolist()
        ([0, 2], [[2.0, 2.0], [4.0, 4.0]])
    """

    def __init__(self, rows: Any, values: Any) -> None:
        own = as_array(values)
        if own is None:
            raise TypeError(
                f"values of a RowGradient must be a NumPy or CuPy array, not {kind_of(values)}"
            )
        home = device_of(own)
        if own.dtype not in DTYPES:
            raise TypeError(
                f"values of a RowGradient have dtype {own.dtype}: use float32 or float64"
            )
        numbers = as_array(rows)
        if numbers is None:
            with gpu.on(home):
                numbers = gpu.module(home).asarray(np.array(rows, None if len(rows) else np.int64))
        if numbers.dtype.kind not in "iu" or numbers.ndim != 1:
            raise TypeError(
                "rows of a RowGradient must be whole numbers of shape (k,), not of dtype "
                f"{numbers.dtype} and shape {numbers.shape}"
            )
        if device_of(numbers) != home:
            raise ValueError(
                f"rows of a RowGradient are on {device_of(numbers)}, its values on {home}: copy "
                f"the rows to {home!r}"
            )
        if own.ndim == 0 or len(own) != len(numbers):
            raise ValueError(
                f"a RowGradient has {len(numbers)} rows, but values of shape {own.shape}: give one "
                "value, itself a row, for each"
            )
        self.rows, self.values = numbers, own

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of ``values``."""
        return self.values.dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> str:
        """Where it lives: ``"cpu"`` or ``"cuda:N"``."""
        return device_of(self.values)

    def coalesced(self) -> tuple[Any, Any]:
        """Return every row once, in rising order, and the sum of its values.

        Values of one row are added in the order in which they appear, on NumPy as on a GPU, so that
        the sums are the same to the bit in every run.
        """
        return coalesced(self.rows, self.values)

    def dense(self, shape: tuple[int, ...]) -> Any:
        """Return it as an array of the shape of its parameter, for optimizers that take those.

        Raises:
            IndexError: a row is not in that shape (only on the CPU is that found out).
        """
        rows, values = self.coalesced()
        with gpu.on(self.device):
            array = gpu.module(self.device).zeros(shape, self.dtype)
            array[rows] = values
        return array

    def to(self, device: str) -> RowGradient:
        """Return it on a device: itself if it is there, else a copy."""
        device = gpu.resolve(device)
        return RowGradient(transfer.to(self.rows, device), transfer.to(self.values, device))

    def problems(self, data: Any) -> list[str]:
        """Return, in words, why it does not fit the array of a parameter.

        Waits for the device, for its least and its largest row.
        """
        found = self.misfits(data)
        if found or not len(self.rows):
            return found
        with gpu.on(self.device):
            xp = gpu.module(self.device)
            least, most = transfer.to(xp.stack([self.rows.min(), self.rows.max()]), "cpu").tolist()
        if least >= 0 and most < len(data):
            return []
        odd = least if least < 0 else most
        return [f"has row {odd}, but the parameter has rows 0 to {len(data) - 1}: check the rows"]

    def misfits(self, data: Any) -> list[str]:
        """Return, in words, what of it is unlike the array of a parameter, rows left aside."""
        if data.ndim == 0:
            return ["has rows, but the parameter has no dimensions: give a dense gradient"]
        facts = (
            ("values of shape", self.values.shape, (len(self.rows), *data.shape[1:]), "reshape"),
            ("dtype", self.dtype, data.dtype, f"cast with .astype({data.dtype.name!r})"),
            ("device", self.device, device_of(data), f"move with .to({device_of(data)!r})"),
        )
        return [
            f"has {kind} {have}, but for its parameter it must have {kind} {want}: {remedy} it"
            for kind, have, want, remedy in facts
            if have != want
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"RowGradient({len(self)} rows of shape {self.values.shape[1:]} on {self.device})"
