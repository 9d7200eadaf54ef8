"""State: what an optimizer remembers of each parameter."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy.typing as npt

from lucid_gpu.device import keep


class Shared:
    """A number of one parameter, such as its step count, in an array that many share.

    One addition counts the step of all of them, so that counting costs the host the same for five
    parameters and five thousand.
    """

    __slots__ = ("_array", "_index")

    def __init__(self, array: npt.NDArray[Any], index: int) -> None:
        self._array = array
        self._index = index

    def read(self) -> int | float:
        """Return the number as one of Python's."""
        number: int | float = self._array[self._index].item()
        return number


class Watch:
    """What the slots of a state tell it, without holding it: arrays are freed with the last holder.

    Attributes:
        version: another object after any slot was set or deleted.
        made: see :attr:`State.made`.
        settle_counts: is called before a number that many share is read; None for nothing.
        is_tentative: whether some slots may be taken back by that, so that it is called before
            anything is looked at.
    """

    def __init__(self) -> None:
        self.version: object = object()
        self.made: set[keep.MadeOn] = set()
        self.settle_counts: Callable[[], None] | None = None
        self.is_tentative = False
        self._arrivals: list[Callable[[], bool]] = []

    def note_change(self) -> None:
        """Tell who cached what was read that a slot was set or deleted."""
        self.version = object()

    def look(self) -> None:
        """Wait until it is known which slots stay, before one is looked at."""
        if self.is_tentative and self.settle_counts is not None:
            self.settle_counts()

    def expect(self, arrival: Callable[[], bool]) -> None:
        """See :meth:`State.expect`."""
        if arrival not in self._arrivals:
            self._arrivals.append(arrival)

    def settle(self) -> None:
        """Wait for the arrays that are on their way."""
        if self._arrivals:
            self._arrivals = [arrival for arrival in self._arrivals if not arrival()]

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """See :meth:`State.settled`."""
        self.settle()
        arrivals, self._arrivals = self._arrivals, []
        try:
            yield
        finally:
            self._arrivals += arrivals


class Slots(MutableMapping[str, Any]):
    """The named slots of one parameter, such as ``step`` (an int) and ``exp_avg`` (an array).

    Args:
        values: what they hold.
        watch: whom they tell of changes.
    """

    def __init__(self, values: Mapping[str, Any] | None = None, watch: Watch | None = None) -> None:
        self._watch = watch or Watch()
        self._values: dict[str, Any] = {}
        self.update(values or {})

    def __getitem__(self, name: str) -> Any:
        self._watch.look()
        value = self._values[name]
        if type(value) is Shared:
            if self._watch.settle_counts is not None:
                self._watch.settle_counts()
            return value.read()
        self._watch.settle()
        return value

    def __setitem__(self, name: str, value: Any) -> None:
        self._values[name] = value
        made = keep.made_on(value)
        if made is not None:
            self._watch.made.add(made)
        self._watch.note_change()

    def __delitem__(self, name: str) -> None:
        del self._values[name]
        self._watch.note_change()

    def __iter__(self) -> Iterator[str]:
        self._watch.look()
        return iter(self._values)

    def __len__(self) -> int:
        self._watch.look()
        return len(self._values)

    def __repr__(self) -> str:
        return repr(dict(self))

    def add(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Put values beside those that are there, and return what brings back how it was."""
        before = dict(self._values)
        self.update(values)
        return before

    def bring_back(self, values: dict[str, Any]) -> None:
        """Have what :meth:`add` returned."""
        self._values = values
        self._watch.note_change()


class State(MutableMapping[Any, Slots]):
    """A mapping from parameter to its slots, by identity; ``state[p]`` makes an empty entry.

    Identity, because a foreign parameter may compare element by element or have no hash.

    Attributes:
        kind: what slots are made as.
    """

    kind: type[Slots] = Slots

    def __init__(self) -> None:
        self._entries: dict[int, tuple[Any, Slots]] = {}
        self._watch = Watch()

    @property
    def version(self) -> object:
        """Another object after any slot was set or deleted."""
        return self._watch.version

    @property
    def made(self) -> set[keep.MadeOn]:
        """On which devices and streams arrays were made: what was current when they were set."""
        return self._watch.made

    def make_slots(self, values: Mapping[str, Any]) -> Slots:
        """Return slots that :meth:`put` can give to a parameter, which cannot fail then."""
        return self.kind(values, self._watch)

    def put(self, param: Any, slots: Slots) -> None:
        """Give slots to a parameter, in place of those that it had."""
        self._entries[id(param)] = (param, slots)
        self._watch.note_change()

    def expect(self, arrival: Callable[[], bool]) -> None:
        """Have a function called before an array is read, because arrays are on their way.

        Args:
            arrival: waits for them; it returns whether that needs to be done no more.
        """
        self._watch.expect(arrival)

    def expect_counts(self, settle: Callable[[], None] | None) -> None:
        """Have a function called before a step count is read, because it may change; or none."""
        self._watch.settle_counts = settle

    def expect_removal(self, is_tentative: bool) -> None:
        """Have that function called before anything is looked at, because slots may go; or not."""
        self._watch.is_tentative = is_tentative

    def add(self, param: Any, values: Mapping[str, Any]) -> Callable[[], None]:
        """Put values beside those that a parameter has; return what takes them back.

        Nothing is waited for, and an entry that this makes goes with them.
        """
        is_new = id(param) not in self._entries
        entry = self._entries.setdefault(id(param), (param, self.kind(watch=self._watch)))
        before = entry[1].add(values)

        def take_back() -> None:
            entry[1].bring_back(before)
            if is_new and self._entries.get(id(param)) is entry:
                del self._entries[id(param)]

        return take_back

    def settled(self) -> contextlib.AbstractContextManager[None]:
        """Wait for arrays that are on their way once, for all that are read in a ``with`` block."""
        return self._watch.settled()

    def __getitem__(self, param: Any) -> Slots:
        self._watch.look()
        entry = self._entries.get(id(param))
        if entry is None:
            entry = self._entries[id(param)] = (param, self.kind(watch=self._watch))
        return entry[1]

    def __setitem__(self, param: Any, values: Mapping[str, Any]) -> None:
        self.put(param, self.make_slots(values))

    def __delitem__(self, param: Any) -> None:
        if param not in self:
            raise KeyError(param)
        del self._entries[id(param)]
        self._watch.note_change()

    def __contains__(self, param: object) -> bool:
        self._watch.look()
        return id(param) in self._entries

    def get(self, param: Any, default: Any = None) -> Any:
        """Return the slots of ``param``, or ``default``; unlike ``state[p]``, makes no entry."""
        self._watch.look()
        entry = self._entries.get(id(param))
        return default if entry is None else entry[1]

    def __iter__(self) -> Iterator[Any]:
        self._watch.look()
        return iter([param for param, _ in self._entries.values()])

    def __len__(self) -> int:
        self._watch.look()
        return len(self._entries)

    def __repr__(self) -> str:
        self._watch.look()
        return f"State({[dict(slots) for _, slots in self._entries.values()]})"

    def __getstate__(self) -> dict[str, Any]:
        self._watch.look()
        return {"entries": [(param, dict(slots)) for param, slots in self._entries.values()]}

    def __setstate__(self, pickled: dict[str, Any]) -> None:
        State.__init__(self)
        for param, values in pickled["entries"]:
            self[param] = values
