"""How a NumPy dtype is spelled in the manifest, and how its bytes are typed in a shard."""

from __future__ import annotations

import math
import re
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from numpy.lib import format as npy

DType: TypeAlias = np.dtype[Any]

_EXTENSIONS: dict[str, DType] = {
    np.dtype(scalar).name: np.dtype(scalar)
    for scalar in vars(ml_dtypes).values()
    if isinstance(scalar, type) and issubclass(scalar, np.generic)
}

_SAFETENSORS = {
    "|b1": "BOOL",
    "|u1": "U8",
    "|i1": "I8",
    "<u2": "U16",
    "<i2": "I16",
    "<u4": "U32",
    "<i4": "I32",
    "<u8": "U64",
    "<i8": "I64",
    "<f2": "F16",
    "<f4": "F32",
    "<f8": "F64",
    "<c8": "C64",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
}
"""The dtypes that safetensors knows; all others are stored as raw bytes (U8)."""

_MAX_DEPTH = 8

_SIMPLE = re.compile(r"[<>|][biufcmMSUV][0-9]{1,10}(\[[0-9]*[a-zA-Z]+\])?")


def to_json(dtype: DType) -> Any:
    """Return the manifest's spelling: ``dtype.str``, an ml_dtypes name, or a list of fields.

    Raises:
        TypeError: arrays of this dtype hold references or have no exact spelling.
    """
    if dtype.name in _EXTENSIONS and dtype == _EXTENSIONS[dtype.name]:
        return dtype.name
    try:
        spelled = _spell(dtype)
        if from_json(spelled) == dtype:
            return spelled
    except (ValueError, RecursionError):
        pass
    raise TypeError(f"dtype {dtype} has no plain bytes to store: convert the array")


def from_json(spelled: Any) -> DType:
    """Return the dtype of a manifest's spelling.

    Raises:
        ValueError: it is no spelling that ``to_json`` writes.
    """
    if isinstance(spelled, str) and spelled in _EXTENSIONS:
        return _EXTENSIONS[spelled]
    try:
        dtype = npy.descr_to_dtype(_descr(spelled))
        if not dtype.hasobject and dtype.kind != "T" and _spell(dtype) == spelled:
            return dtype
    except (TypeError, ValueError, OverflowError, MemoryError):
        pass
    # What is nested deep cannot be written into a text.
    shown = repr(spelled) if isinstance(spelled, str) else "of malformed fields"
    raise ValueError(f"unknown dtype {shown:.100}")


def is_extension(dtype: DType) -> bool:
    """Say whether ``dtype`` comes from ml_dtypes, like bfloat16."""
    return dtype.name in _EXTENSIONS


def storage(dtype: DType, shape: tuple[int, ...]) -> tuple[str, list[int]]:
    """Return the safetensors dtype code and shape under which an array is stored."""
    if is_raw(dtype):
        return "U8", [math.prod(shape) * dtype.itemsize]
    return _SAFETENSORS[to_json(dtype)], list(shape)


def is_raw(dtype: DType) -> bool:
    """Say whether safetensors has no name for a dtype, so that it is stored as bytes."""
    spelled = to_json(dtype)
    return not isinstance(spelled, str) or spelled not in _SAFETENSORS


def _spell(dtype: DType) -> Any:
    return dtype.str if dtype.names is None else [_spell_field(field) for field in dtype.descr]


def _spell_field(field: Any) -> list[Any]:
    name, inner, *shape = field
    if not isinstance(name, str):
        raise ValueError(f"field {name!r} has a title")
    if isinstance(inner, list):
        inner = [_spell_field(each) for each in inner]
    return [name, inner, *(list(extent) for extent in shape)]


def _descr(spelled: Any, depth: int = 0) -> Any:
    """Return NumPy's own form of a spelling: JSON has lists where NumPy wants tuples."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"fields are nested more than {_MAX_DEPTH} deep")
    if isinstance(spelled, str) and _SIMPLE.fullmatch(spelled):
        return spelled
    if not isinstance(spelled, list) or not all(isinstance(field, list) for field in spelled):
        raise ValueError("neither a dtype string nor a list of fields")
    return [(name, _descr(inner, depth + 1), *map(tuple, shape)) for name, inner, *shape in spelled]


def fits_gpu(dtype: DType) -> bool:
    """Say whether CuPy has arrays of this dtype."""
    if is_extension(dtype):
        return dtype.name == "bfloat16"
    return dtype.isnative and dtype.char in "?bBhHiIlLqQefdFD"
