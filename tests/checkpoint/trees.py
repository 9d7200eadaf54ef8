"""Trees to save, and an oracle that says whether two trees are the same to the bit."""

from __future__ import annotations

import math
import operator
import struct
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lucid_gpu import Parameter

EXTENSIONS = [
    np.dtype(scalar)
    for scalar in vars(ml_dtypes).values()
    if isinstance(scalar, type) and issubclass(scalar, np.generic)
]
NUMPY = (
    [np.dtype(code) for code in "?bBhHiIlLqQefdgFDGSUVMm" if code not in "SUVMm"]
    + [
        np.dtype(name)
        for name in (
            "S5",
            "U3",
            "V7",
            "M8[ns]",
            "M8[25s]",
            "m8[D]",
            "m8",
            "V0",
            ">f4",
            ">c16",
            ">U2",
        )
    ]
    + [
        np.dtype([("x", "<f4"), ("y", ">i2", (2, 3))]),
        np.dtype([("x", "u1"), ("y", "<f8")], align=True),
        np.dtype([("point", [("x", "<f4"), ("y", "<f4")]), ("name", "U4")]),
    ]
)
DTYPES = NUMPY + EXTENSIONS
_X87 = [np.dtype(code) for code in "gG"] if np.finfo(np.longdouble).nmant == 63 else []


def same(a: Any, b: Any) -> bool:
    """Say whether two trees have the same types, structure and bits."""
    if isinstance(a, np.generic) and isinstance(b, np.generic):
        # np.longlong and np.int64 are two types with one dtype.
        return _same_array(a, b)
    return type(a) is type(b) and _COMPARISONS.get(type(a), operator.eq)(a, b)


def _same_array(a: Any, b: Any) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    # Padding, between fields and behind the 10 bytes of an x87 number, is not always copied.
    if a.dtype in _X87:
        return _x87_numbers(a) == _x87_numbers(b)
    if a.dtype.names is None:
        return a.tobytes() == b.tobytes()
    return all(_same_array(a[name], b[name]) for name in a.dtype.names)


def _x87_numbers(array: Any) -> list[bytes]:
    raw = array.tobytes()
    return [raw[start : start + 10] for start in range(0, len(raw), 16)]


_COMPARISONS = {
    np.ndarray: _same_array,
    Parameter: lambda a, b: same(
        (a.name, a.requires_grad, a.data), (b.name, b.requires_grad, b.data)
    ),
    dict: lambda a, b: same([*a.items()], [*b.items()]),
    list: lambda a, b: len(a) == len(b) and all(map(same, a, b)),
    tuple: lambda a, b: len(a) == len(b) and all(map(same, a, b)),
    float: lambda a, b: struct.pack("<d", a) == struct.pack("<d", b),
}


def filled(dtype: np.dtype[Any], shape: tuple[int, ...], seed: int) -> np.ndarray[Any, Any]:
    """Return an array of random bits: every NaN payload and signed zero may be among them."""
    count = math.prod(shape)
    array = np.ndarray(shape, dtype)
    if array.nbytes == 0:
        return array
    bits = np.random.default_rng(seed).integers(0, 256, count * dtype.itemsize, np.uint8)
    if dtype.kind == "b":
        bits &= 1
    if dtype.kind == "U" or dtype.names is not None:
        # Not every number is a character.
        bits &= 0
        bits[:: dtype.itemsize] = 65 if dtype.kind != "U" or dtype.isnative else 0
    array.reshape(-1).view(np.uint8)[:] = bits
    return array


def layouts(array: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Return views and copies of an array in every memory layout that NumPy knows."""
    doubled = np.repeat(array, 2, axis=-1) if array.ndim else array
    return {
        "C": array,
        "Fortran": np.asfortranarray(array) if array.ndim else array,
        "transposed": array.T,
        "reversed": array[::-1] if array.ndim else array,
        "strided": doubled[..., ::2] if array.ndim else array,
        "broadcast": np.broadcast_to(array, (2, *array.shape)),
    }


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    shape = draw(npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    array = filled(draw(st.sampled_from(DTYPES)), shape, draw(st.integers(0, 2**32 - 1)))
    return draw(st.sampled_from(list(layouts(array).values())))


def scalars() -> st.SearchStrategy[np.generic]:
    def scalar(dtype: np.dtype[Any], seed: int) -> np.generic:
        return filled(dtype, (), seed)[()]

    numbers = st.builds(scalar, st.sampled_from(DTYPES), st.integers(0, 2**32 - 1))
    return numbers | text().map(np.str_) | st.binary(max_size=4).map(np.bytes_)


def text() -> st.SearchStrategy[str]:
    """Return strings of any code points, lone surrogates among them."""
    return st.text(st.characters(codec=None, exclude_categories=()), max_size=8)


def leaves() -> st.SearchStrategy[Any]:
    numbers = st.integers() | st.integers(-(2**200), 2**200) | st.floats()
    plain = st.none() | st.booleans() | numbers | text() | st.binary(max_size=8)
    parameters = st.builds(Parameter, arrays() | text(), st.booleans(), name=st.none() | text())
    return plain | arrays() | scalars() | parameters


def trees() -> st.SearchStrategy[Any]:
    keys = text() | st.sampled_from(["$array", "$", "__metadata__", ""]) | st.integers()
    return st.recursive(
        leaves(),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.lists(inner, max_size=4).map(tuple)
            | st.dictionaries(keys, inner, max_size=4)
        ),
        max_leaves=12,
    )
