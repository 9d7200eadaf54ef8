"""The emulated machine: its GPUs, streams, events and graphs, and what was asked of them."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple


class CUDARuntimeError(RuntimeError):
    """What the CUDA runtime reports."""


class Launch(NamedTuple):
    device: int
    kernel: str
    grid: int


@dataclass
class Record:
    """What was asked of the machine since the last reset; vectors are accesses of 16 bytes."""

    launches: list[Launch] = field(default_factory=list)
    compiles: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    uploads: list[int] = field(default_factory=list)
    downloads: list[int] = field(default_factory=list)
    vectors: int = 0
    allocations: int = 0
    synchronizations: int = 0


class Machine:
    """Two GPUs whose memory is the host's.

    Attributes:
        lazy: streams queue their work and run it when the host waits for it, and no sooner: a
            host that runs far ahead of its device. Otherwise they run it at once.
        architectures: that NVRTC compiles for.
        record: what was asked of the machine.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.devices = 2
        self.architectures = (75, 80, 90, 100, 120)
        self.lazy = False
        self.record = Record()
        self.streams: list[Stream] = []
        self._local = threading.local()
        self._defaults: dict[int, Stream] = {}

    @property
    def device(self) -> int:
        return getattr(self._local, "device", 0)

    @device.setter
    def device(self, number: int) -> None:
        self._local.device = number

    def current_streams(self) -> dict[int, list[Stream]]:
        """Return this thread's stack of current streams, for each device."""
        return self._local.__dict__.setdefault("streams", {})

    def default_stream(self, device: int) -> Stream:
        if device not in self._defaults:
            self._defaults[device] = Stream(null=True, device=device)
        return self._defaults[device]

    def note_allocation(self) -> None:
        self.forbid_while_capturing("an allocation")
        self.record.allocations += 1

    def note_synchronization(self) -> None:
        self.forbid_while_capturing("a synchronization")
        self.record.synchronizations += 1

    def forbid_while_capturing(self, what: str) -> None:
        if any(stream.graph is not None for stream in self.streams):
            raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: {what} while capturing")


MACHINE = Machine()


class Device:
    """A GPU; current inside a ``with`` block."""

    def __init__(self, device: int | None = None) -> None:
        self.id = MACHINE.device if device is None else int(device)
        if not 0 <= self.id < MACHINE.devices:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self._before: list[int] = []

    def __enter__(self) -> Device:
        self._before.append(MACHINE.device)
        MACHINE.device = self.id
        return self

    def __exit__(self, *error: object) -> None:
        MACHINE.device = self._before.pop()

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def use(self) -> None:
        MACHINE.device = self.id

    def synchronize(self) -> None:
        MACHINE.note_synchronization()
        for stream in MACHINE.streams:
            if stream.device_id == self.id:
                stream.drain()

    @property
    def mem_info(self) -> tuple[int, int]:
        return 1 << 33, 1 << 34

    @property
    def compute_capability(self) -> str:
        return "90"


class Stream:
    """A queue of work on one device."""

    def __init__(
        self, null: bool = False, non_blocking: bool = False, *, device: int | None = None
    ) -> None:
        self.device_id = MACHINE.device if device is None else device
        self.is_default = null
        self.is_blocking = not (null or non_blocking)
        self.graph: list | None = None
        self.is_spoilt = False
        self._queue: deque = deque()
        self.ptr = 0 if null else id(self)
        MACHINE.streams.append(self)

    def __enter__(self) -> Stream:
        self._must_be_here()
        MACHINE.current_streams().setdefault(self.device_id, []).append(self)
        return self

    def __exit__(self, *error: object) -> None:
        MACHINE.current_streams()[self.device_id].pop()

    def use(self) -> Stream:
        self._must_be_here()
        MACHINE.current_streams()[self.device_id] = [self]
        return self

    def submit(self, work) -> None:
        """Take in a piece of work, a callable: run, queue or record it."""
        self._must_be_here()
        self._must_be_free(spoils=True)
        if self.is_spoilt:
            raise CUDARuntimeError(
                "cudaErrorStreamCaptureInvalidated: operation failed due to a previous error "
                "during capture"
            )
        if self.graph is not None:
            self.graph.append(work)
        elif MACHINE.lazy:
            self._queue.append(work)
        else:
            work()

    def advance(self) -> None:
        """Run the oldest piece of work."""
        self._queue.popleft()()

    def drain(self) -> None:
        while self._queue:
            self.advance()

    @property
    def done(self) -> bool:
        return not self._queue

    def synchronize(self) -> None:
        MACHINE.note_synchronization()
        # A default stream is whichever one the current device has.
        (MACHINE.default_stream(MACHINE.device) if self.is_default else self).drain()

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Wait for what ``event`` marks now, also if it is recorded anew before that."""
        stream, mark = event._stream, event._recorded
        self.submit(lambda: event.reach(stream, mark))

    def is_capturing(self) -> bool:
        self._must_be_free(spoils=False)
        if self.is_spoilt:
            raise RuntimeError(
                "the stream was capturing, but an error has invalidated the capture sequence"
            )
        return self.graph is not None

    def begin_capture(self, mode: int | None = None) -> None:
        if self.is_default:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        self.graph = []

    def end_capture(self) -> Graph:
        if self.graph is None:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is not capturing")
        works, self.graph = self.graph, None
        if self.is_spoilt:
            self.is_spoilt = False
            raise CUDARuntimeError(
                "cudaErrorStreamCaptureInvalidated: operation failed due to a previous error "
                "during capture"
            )
        return Graph(works)

    def _must_be_free(self, spoils: bool) -> None:
        """Raise for the legacy stream while a blocking one captures, which work for it spoils."""
        if not self.is_default:
            return
        for other in MACHINE.streams:
            if other.is_blocking and other.graph is not None and other.device_id == self.device_id:
                other.is_spoilt = other.is_spoilt or spoils
                raise CUDARuntimeError(
                    "cudaErrorStreamCaptureImplicit: operation would make the legacy stream "
                    "depend on a capturing blocking stream"
                )

    def _must_be_here(self) -> None:
        if self.device_id != MACHINE.device:
            raise RuntimeError(
                f"The device that the stream is created on ({self.device_id}) does not match with "
                f"the current device ({MACHINE.device})"
            )


class Event:
    """A mark in a stream's work."""

    def __init__(
        self, block: bool = False, disable_timing: bool = False, interprocess: bool = False
    ) -> None:
        self._stream: Stream | None = None
        self._recorded = 0
        self._reached = 0

    def record(self, stream: Stream | None = None) -> None:
        self._stream = stream or get_current_stream()
        self._recorded += 1
        mark = self._recorded

        def reach() -> None:
            self._reached = mark

        self._stream.submit(reach)

    @property
    def done(self) -> bool:
        return self._reached == self._recorded

    def reach(self, stream: Stream | None, mark: int) -> None:
        """Have ``stream`` go on until a mark is reached."""
        while self._reached < mark:
            stream.advance()

    def synchronize(self) -> None:
        MACHINE.note_synchronization()
        self.reach(self._stream, self._recorded)


class Graph:
    """Recorded work."""

    def __init__(self, works: list) -> None:
        self._works = works

    def launch(self, stream: Stream | None = None) -> None:
        stream = stream or get_current_stream()
        for work in self._works:
            stream.submit(work)


def get_current_stream(device_id: int = -1) -> Stream:
    device_id = MACHINE.device if device_id == -1 else device_id
    stack = MACHINE.current_streams().get(device_id)
    return stack[-1] if stack else MACHINE.default_stream(device_id)
