"""What differs between two checkpoints; arrays are read only where their digests differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_gpu.checkpoint import describe, dtypes
from lucid_gpu.checkpoint.place import ROOT, Place, printable
from lucid_gpu.checkpoint.tree import Node, split

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lucid_gpu.checkpoint.reader import Reader


def differences(old: Reader, new: Reader) -> Iterator[str]:
    """Yield one line for each place in the tree that differs.

    Raises:
        CheckpointError: an array that has to be read is damaged.
    """
    yield from _nodes(old, new, old.manifest.tree, new.manifest.tree, ROOT)


def _nodes(old: Reader, new: Reader, before: Node, after: Node, path: Place) -> Iterator[str]:
    tags = split(before)[0], split(after)[0]
    parts = describe.children(before), describe.children(after)
    if tags == ("$array", "$array"):
        yield from _arrays(old, new, before["$array"], after["$array"], path)
    elif tags in (("$parameter", "$parameter"), ("$object", "$object")):
        yield from _fields(old, new, before[tags[0]], after[tags[0]], path)
    elif tags[0] in ("$named", "$dataclass", "$random") and tags[0] == tags[1]:
        yield from _classes(before[tags[0]], after[tags[0]], path)
        if parts[0] is not None and parts[1] is not None:
            yield from _collections(old, new, parts[0], parts[1], path)
        elif before != after:
            yield f"{path}: another state"
    elif parts[0] is not None and parts[1] is not None and _kind(before) == _kind(after):
        yield from _collections(old, new, *parts, path)  # type: ignore[arg-type]
    elif before != after or type(before) is not type(after):
        yield f"{path}: {_name(old, before)} became {_name(new, after)}"


def _collections(
    old: Reader, new: Reader, before: dict[Any, Node], after: dict[Any, Node], path: Place
) -> Iterator[str]:
    for key in before | after:
        place = path.child(key)
        if key not in after:
            yield f"{place}: removed, it was {_name(old, before[key])}"
        elif key not in before:
            yield f"{place}: added, it is {_name(new, after[key])}"
        else:
            yield from _nodes(old, new, before[key], after[key], place)


def _fields(
    old: Reader, new: Reader, before: dict[str, Any], after: dict[str, Any], path: Place
) -> Iterator[str]:
    """Compare the fields of two Parameters or objects; the id is only a reference."""
    for field in ("class", "name", "requires_grad"):
        if before.get(field) != after.get(field):
            yield f"{path}: {field} {before.get(field)!r} became {after.get(field)!r}"
    if "data" in before:
        yield from _nodes(old, new, before["data"], after["data"], Place(path.keys, ".data"))
    else:
        yield from _nodes(old, new, before["state"], after["state"], path)


def _classes(before: dict[str, Any], after: dict[str, Any], path: Place) -> Iterator[str]:
    if before["class"] != after["class"]:
        yield f"{path}: class {before['class']!r} became {after['class']!r}"


def _arrays(old: Reader, new: Reader, before: str, after: str, path: Place) -> Iterator[str]:
    a, b = old.manifest.tensors[before], new.manifest.tensors[after]
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        yield f"{path}: {describe.tensor(a)} became {describe.tensor(b)}"
    elif a.digest != b.digest:
        yield f"{path}: {_elements(old.load([before])[before], new.load([after])[after])}"


def _elements(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> str:
    bits = [each.reshape(-1).view(np.uint8).reshape(a.size, a.itemsize) for each in (a, b)]
    count = int((bits[0] != bits[1]).any(axis=1).sum())
    text = f"{count} of {a.size} elements differ"
    if a.dtype.kind not in "biufc" and not dtypes.is_extension(a.dtype):
        return text
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    with np.errstate(all="ignore"):
        distance = np.abs(a.astype(wide) - b.astype(wide))
    finite = distance[np.isfinite(distance)]
    return f"{text}, by {finite.max():.6g} at most" if finite.size else text


def _kind(node: Node) -> str:
    """Return what a collection is, whatever the form in which it is stored."""
    if type(node) is list:
        return "list"
    tag = split(node)[0]
    return "dict" if tag in (None, "$dict") else tag.removeprefix("$")


def _name(reader: Reader, node: Node) -> str:
    tag, payload = split(node)
    if tag == "$array":
        return describe.tensor(reader.manifest.tensors[payload])
    if tag in ("$object", "$random"):
        return printable(payload["class"])
    if tag == "$parameter":
        return "a Parameter"
    if not describe.is_plain(node):
        return f"a {_kind(node)} of {len(describe.children(node) or ())}"
    return describe.value(node)
