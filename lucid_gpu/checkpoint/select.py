"""Parts of a tree, chosen by patterns of their paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from lucid_gpu.checkpoint import describe
from lucid_gpu.checkpoint.place import ROOT, Place, segment
from lucid_gpu.checkpoint.tree import Encoder, Node, split

Chooses: TypeAlias = Callable[[Place], bool]
"""Says whether a place is chosen; what is below it then is too."""


class _Nothing:
    """Stands for a part of which nothing was chosen."""


NOTHING = _Nothing()


def matching(patterns: str | Sequence[str]) -> Chooses:
    """Return what chooses the places that match one of some patterns.

    In a pattern, ``*``, ``?`` and ``[…]`` stand for characters of one key, and ``**`` for any
    number of keys, none included; the keys have ``/`` between them.

    Example:
        >>> chooses = matching("model/**/weight")
        >>> chooses(Place(("model", "weight"))), chooses(Place(("model", "h", 0, "bias")))
        (True, False)
    """
    if isinstance(patterns, str):
        patterns = [patterns]
    if not isinstance(patterns, Sequence) or not patterns or not all(map(_is_text, patterns)):
        raise TypeError(f"select must be a pattern such as 'model/**', or some, not {patterns!r}")
    split_patterns = [pattern.split("/") for pattern in patterns]

    def chooses(place: Place) -> bool:
        keys = "/".join(map(segment, place.keys)).split("/") if place.keys else []
        return any(_matches(pattern, keys) for pattern in split_patterns)

    return chooses


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _matches(pattern: list[str], keys: list[str]) -> bool:
    reached = {0}
    for part in pattern:
        if part == "**":
            reached = set(range(min(reached), len(keys) + 1)) if reached else reached
        else:
            reached = {at + 1 for at in reached if at < len(keys) and fnmatchcase(keys[at], part)}
    return len(keys) in reached


def of_node(node: Node, chooses: Chooses, place: Place = ROOT) -> Node:
    """Return what is chosen of an encoded tree, or ``NOTHING``.

    Dicts lose what is not chosen; lists and tuples have null there. An object of which a part is
    chosen becomes its state dict.
    """
    if chooses(place):
        return node
    tag, payload = split(node)
    if tag == "$object":
        return of_node(payload["state"], chooses, place)
    parts = describe.children(node)
    if parts is None:
        return NOTHING
    chosen = {key: of_node(part, chooses, place.child(key)) for key, part in parts.items()}
    if all(part is NOTHING for part in chosen.values()):
        return NOTHING
    if type(node) is list or tag == "$tuple":
        items = [None if part is NOTHING else part for part in chosen.values()]
        return items if tag is None else {tag: items}
    encode = Encoder().encode
    return {"$dict": [[encode(k), part] for k, part in chosen.items() if part is not NOTHING]}


def of_tree(tree: Any, chooses: Chooses, place: Place = ROOT) -> Any:
    """Return what is chosen of a tree to be restored, or ``NOTHING``, as ``of_node`` does."""
    if chooses(place):
        return tree
    if type(tree) is dict:
        chosen = {key: of_tree(part, chooses, place.child(key)) for key, part in tree.items()}
        kept = {key: part for key, part in chosen.items() if part is not NOTHING}
        return kept or NOTHING
    if type(tree) in (list, tuple):
        parts = [of_tree(part, chooses, place.child(i)) for i, part in enumerate(tree)]
        if any(part is not NOTHING for part in parts):
            return type(tree)(None if part is NOTHING else part for part in parts)
    return NOTHING
