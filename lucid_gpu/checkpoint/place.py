"""Where something stands in a tree, and how it is spoken of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_LONGEST_INT = 4096
"""Bits of an int that is written in decimal: Python refuses to write those of 4300 digits."""


@dataclass(frozen=True)
class Place:
    """A path from the root of a tree: dict keys and indices, or names of fields."""

    keys: tuple[str | int, ...] = ()
    attribute: str = ""

    def child(self, key: str | int) -> Place:
        """Return the place of one part of the collection here."""
        return Place((*self.keys, key))

    @property
    def name(self) -> str:
        """The keys with ``/`` between them, by which tensors are called in files.

        Example:
            >>> Place(("model", "h.0.weight")).name
            'model/h.0.weight'
        """
        return "/".join(map(segment, self.keys))

    def __str__(self) -> str:
        """Return the path as Python would write it; long keys are cut."""
        return "tree" + "".join(f"[{shown(key)}]" for key in self.keys) + self.attribute


ROOT = Place()


def segment(key: str | int) -> str:
    """Return a key as a part of a name."""
    return key if type(key) is str else shown(key)


def shown(value: Any) -> str:
    """Return a value as Python writes it, cut to 100 characters; a very long int in hexadecimal."""
    is_long = type(value) is int and value.bit_length() > _LONGEST_INT
    return f"{hex(value) if is_long else repr(value):.100}"


def printable(text: str) -> str:
    """Return a name as it is, or quoted if it would move the cursor of a terminal."""
    return text if text.isprintable() else repr(text)
