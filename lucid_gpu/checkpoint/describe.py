"""A checkpoint's tree as text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_gpu.checkpoint.decode import Decoder
from lucid_gpu.checkpoint.place import ROOT, Place, printable, shown
from lucid_gpu.checkpoint.tree import Node, split

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lucid_gpu.checkpoint.manifest import Manifest, Tensor

WIDTH = 100


def tree(manifest: Manifest) -> Iterator[str]:
    """Yield one line for each array and each value or short collection of values."""
    yield from _lines(manifest, manifest.tree, "tree", "")


def tensor(entry: Tensor) -> str:
    """Return dtype, shape and size of an array."""
    return f"{entry.dtype} {list(entry.shape)} {size(entry.nbytes)}"


def size(nbytes: int) -> str:
    """Return a number of bytes in the unit that suits it.

    Example:
        >>> size(1536)
        '1.5 KiB'
    """
    if nbytes < 1024:
        return f"{nbytes} B"
    exponent = min((nbytes.bit_length() - 1) // 10, 4)
    return f"{nbytes / 1024**exponent:.1f} {'KMGT'[exponent - 1]}iB"


def value(node: Node) -> str:
    """Return a plain value as Python writes it, cut to the width of a line."""
    try:
        text = repr(Decoder(_nothing).decode(node))
    except ValueError:
        # Python refuses to write very long integers: the manifest has them in hexadecimal.
        text = json.dumps(node)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"


def children(node: Node) -> dict[Any, Node] | None:
    """Return the parts of a collection by key or index; None for what has no parts."""
    tag, payload = split(node)
    if tag in ("$named", "$dataclass"):
        return dict(payload["fields"])
    if tag in ("$dict", "$ordered"):
        return Decoder(_nothing).pairs(payload, ROOT)
    if type(node) is dict and tag is None:
        return dict(node)
    if type(node) is list or tag == "$tuple":
        return dict(enumerate(payload))
    return None


def is_plain(node: Node) -> bool:
    """Say whether a node holds no array, Parameter or object."""
    parts = children(node)
    if parts is None:
        return split(node)[0] not in ("$array", "$parameter", "$object", "$random")
    return all(map(is_plain, parts.values()))


def _nothing(_name: str, _path: Place) -> np.ndarray[Any, Any]:
    return np.empty(0)


def _lines(manifest: Manifest, node: Node, label: str, indent: str) -> Iterator[str]:
    tag, payload = split(node)
    if tag == "$array":
        yield f"{indent}{label}: {tensor(manifest.tensors[payload])}"
    elif tag == "$parameter":
        yield f"{indent}{label}: {_parameter(manifest, payload)}"
    elif tag == "$object":
        yield f"{indent}{label}: {printable(payload['class'])}"
        yield from _parts(manifest, payload["state"], indent)
    elif tag == "$random":
        yield f"{indent}{label}: {printable(payload['class'])}"
    elif tag in ("$named", "$dataclass"):
        yield f"{indent}{label}: {printable(payload['class'])}"
        yield from _parts(manifest, node, indent)
    elif children(node) is None or (is_plain(node) and len(value(node)) < WIDTH - len(indent)):
        yield f"{indent}{label}: {value(node)}"
    else:
        yield f"{indent}{label}:"
        yield from _parts(manifest, node, indent)


def _parts(manifest: Manifest, node: Node, indent: str) -> Iterator[str]:
    parts = children(node)
    if parts is None:
        yield from _lines(manifest, node, "state", f"{indent}  ")
        return
    for key, part in parts.items():
        label = f"[{shown(key)}]" if type(key) is int else printable(key)
        yield from _lines(manifest, part, label, f"{indent}  ")


def _parameter(manifest: Manifest, payload: Any) -> str:
    tag, name = split(payload["data"])
    data = tensor(manifest.tensors[name]) if tag == "$array" else value(payload["data"])
    frozen = "" if payload["requires_grad"] else ", frozen"
    called = "" if payload["name"] is None else f" {value(payload['name'])}"
    return f"Parameter{called} {data}{frozen}"
