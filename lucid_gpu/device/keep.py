"""Keeps memory until a stream is done with it, whoever lets go of it before.

CuPy's pools take memory back with the last reference to it. On a device they give it to later work
of the stream it was made on, although another may still use it; in pinned memory, to anybody.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
import time
import weakref
from collections.abc import Collection
from typing import Any, TypeAlias

import numpy as np

from lucid_gpu.device import gpu, transfer
from lucid_gpu.device.arrays import is_cupy

POLL_SECONDS = 1e-3
"""How often a thread looks whether streams have come by."""

FLAGS = 128
"""How many flags share a piece of pinned memory, of which CuPy gives out 512 bytes at least."""

MadeOn: TypeAlias = tuple[int, int]
"""The number of a device and the handle of a stream: what CuPy's pools tell memory apart by."""


def made_on(array: Any) -> MadeOn | None:
    """Return on which device and stream an array was made just now; None for one of the host."""
    return _current(array.data.device_id) if is_cupy(array) else None


class Kept:
    """Memory that stays until a stream is done with what was on it at some time.

    The stream then clears a flag in pinned memory: who looks at it disturbs no graph that another
    thread captures, as asking for the state of an event would.

    Args:
        home: the device.
        memory: what refers to it.
    """

    def __init__(self, home: str, memory: Any) -> None:
        # What may fail is done here, and not when memory must be kept.
        self._home, self._memory = home, memory
        self._zero = _zero(home)
        self._flag = _take_flag()
        self._stream: Any = None
        self._marking = threading.Lock()
        self._is_marked = self._is_released = False
        _watch()

    @property
    def is_done(self) -> bool:
        """Whether the stream has come by."""
        return self._is_released or not self._flag[0]

    @property
    def is_marked(self) -> bool:
        """Whether the stream will clear the flag when it comes by."""
        return self._is_marked

    def until(self, stream: Any) -> None:
        """Keep the memory until what is on a stream now is done."""
        self._stream = stream
        _kept.add(self)
        look()

    def mark(self) -> None:
        """Have the stream clear the flag, unless it cannot now: then the next look tries again.

        A stream that records a graph must not make this a part of it. The legacy stream takes no
        work while a blocking one records, whose graph the attempt would spoil; to ask whether it
        records itself raises then, as it does for a graph that somebody has spoilt.
        """
        if not self._marking.acquire(blocking=False):
            return  # it is marked, or is being marked by another thread
        try:
            with gpu.on(self._home):
                if not self._stream.is_capturing():
                    _, zero, is_there = self._zero
                    self._stream.wait_event(is_there)
                    to = self._flag.ctypes.data
                    zero.data.copy_to_host_async(to, zero.nbytes, self._stream)
                    self._is_marked = True
        except RuntimeError:
            pass
        if self._is_marked:
            _wake.put(None)
        else:
            self._marking.release()

    def release(self) -> None:
        """Let go of the memory, once."""
        try:
            _kept.remove(self)
        except KeyError:
            return  # another thread has
        self._is_released = True
        self.drop()

    def drop(self) -> None:
        """Let go of memory that no stream uses."""
        self._memory = None
        _flags.append(self._flag)


class Use:
    """The use that streams of a device, one after the other, make of memory.

    Args:
        home: the device.
        made: on which devices and streams it was made, as far as is known; more may be added.
    """

    def __init__(self, home: str, made: Collection[MadeOn] = ()) -> None:
        self.home = home
        self._number = int(home.removeprefix("cuda:"))
        self._made = made
        self._made_here: set[MadeOn] = set()
        self._latest: Any = None

    def stream(self) -> Any:
        """Return the current stream, which uses the memory from now on."""
        if _kept:
            look()
        self._latest = gpu.cupy().cuda.get_current_stream(self._number)
        return self._latest

    def keep(self, owner: object, memory: Any, is_pinned: bool = False) -> None:
        """When an owner is gone, keep its memory until the stream that used it last is done.

        Args:
            owner: whose end lets go of the memory.
            memory: refers to it. It was made on the current stream, beside those of ``made``.
            is_pinned: False lets memory go at once that was made on the stream that used it last,
                which is what CuPy waits for.
        """
        self._made_here.add(_current(self._number))
        kept = Kept(self.home, memory)
        weakref.finalize(owner, self._end, kept, is_pinned).atexit = False

    def let_go(self, memory: Any) -> None:
        """Let go of memory of the device when the stream that used it last is done."""
        if self._is_shared():
            Kept(self.home, memory).until(self._latest)

    def _end(self, kept: Kept, is_pinned: bool) -> None:
        if self._latest is not None and (is_pinned or self._is_shared()):
            kept.until(self._latest)
        else:
            kept.drop()

    def _is_shared(self) -> bool:
        """Say whether memory may be of another stream than the one that used it last."""
        if self._latest is None:
            return False
        made = {ptr for number, ptr in {*self._made_here, *self._made} if number == self._number}
        return made != {self._latest.ptr}


def wait_for(owner: object, home: str, stream: Any, memory: Any) -> None:
    """Have the host wait for a stream when an owner is gone.

    For copies into host memory that others see: they are there when the owner is not.

    Args:
        owner: whose end waits.
        home: the device.
        stream: a stream of it.
        memory: what the stream uses; it is kept if the wait fails.
    """
    weakref.finalize(owner, _wait, Kept(home, memory), stream).atexit = False


def look() -> None:
    """Let go of the memory that streams are done with; mark what could not be marked before."""
    for kept in _kept.copy():
        kept.mark()
        if kept.is_done:
            kept.release()


_kept: set[Kept] = set()
_flags: list[np.ndarray[Any, Any]] = []
_wake: queue.SimpleQueue[None] = queue.SimpleQueue()  # whose put() may interrupt itself, as in a GC


def _wait(kept: Kept, stream: Any) -> None:
    try:
        stream.synchronize()
    except RuntimeError:
        kept.until(stream)
    else:
        kept.drop()


def _current(number: int) -> MadeOn:
    return number, gpu.cupy().cuda.get_current_stream(number).ptr


@functools.cache
def _zero(home: str) -> tuple[Any, Any, Any]:
    """Return a stream, a zero that it makes on a device, and the event behind which it is there."""
    with gpu.on(home):
        cp = gpu.cupy()
        with cp.cuda.Stream(non_blocking=True) as stream:  # in memory that no other has used
            zero = cp.zeros(1, np.uint32)
            return stream, zero, stream.record(cp.cuda.Event(disable_timing=True))


def _take_flag() -> np.ndarray[Any, Any]:
    try:
        flag = _flags.pop()
    except IndexError:
        block = transfer.pinned((FLAGS,), np.uint32)
        flag, *others = np.split(block, FLAGS)
        _flags.extend(others)
    flag[0] = 1
    return flag


_watcher: threading.Thread | None = None


def _watch() -> None:
    """See to it that a thread looks, so that memory is free soon after a stream is done with it."""
    global _watcher  # noqa: PLW0603 - one thread for the process
    if _watcher is None or not _watcher.is_alive():  # as in a child of fork
        watcher = threading.Thread(target=_release_in_time, name="lucid_gpu.keep", daemon=True)
        with contextlib.suppress(RuntimeError):  # without a thread, the next look finds it
            watcher.start()
            _watcher = watcher


def _release_in_time() -> None:
    """Let go of what is done. Marking is left to others, whose captures it might get into."""
    while True:
        _wake.get()
        while any(kept.is_marked for kept in _kept.copy()):
            time.sleep(POLL_SECONDS)
            for kept in _kept.copy():
                if kept.is_done:
                    kept.release()
