"""The capture of PyTorch's step in a CUDA graph, on a PyTorch that only notes what it is asked."""

import contextlib
import types

import pytest

from benchmarks.peers.pytorch import WARM_UPS, PyTorch


class Cuda:
    """``torch.cuda``; as there, a capture that fails leaves its stream current."""

    def __init__(self):
        self.main, self.side = (types.SimpleNamespace(waited=[]) for _ in range(2))
        for stream in (self.main, self.side):
            stream.wait_stream = stream.waited.append
        self.current, self.captured, self.replays, self.mode = self.main, [], 0, None

    def current_stream(self):
        return self.current

    def set_stream(self, stream):
        self.current = stream

    def Stream(self):
        return self.side

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def CUDAGraph(self):
        return types.SimpleNamespace(replay=lambda: setattr(self, "replays", self.replays + 1))

    @contextlib.contextmanager
    def graph(self, graph, capture_error_mode):
        self.current = self.captured
        self.mode = capture_error_mode
        yield
        self.current = self.main


def captured(step):
    cuda = Cuda()
    contender = object.__new__(PyTorch)
    contender._torch = types.SimpleNamespace(cuda=cuda)
    contender._optimizer = types.SimpleNamespace(step=lambda: step(cuda))
    return cuda, contender


def test_steps_warm_up_on_a_side_stream_and_one_is_captured():
    where = []
    cuda, contender = captured(lambda cuda: where.append(cuda.current))
    contender._capture()
    assert where == [*[cuda.side] * WARM_UPS, cuda.captured]
    assert (cuda.side.waited, cuda.main.waited) == ([cuda.main], [cuda.side])


def test_a_captured_step_is_a_replay():
    cuda, contender = captured(lambda cuda: None)
    contender._capture()
    contender.step()
    assert cuda.replays == 1


def test_a_capture_that_fails_leaves_the_stream_that_events_time():
    def step(cuda):
        if cuda.current is cuda.captured:
            raise RuntimeError("not permitted while capturing")

    cuda, contender = captured(step)
    with pytest.raises(RuntimeError, match="not permitted"):
        contender._capture()
    assert cuda.current is cuda.main


def test_threads_of_other_libraries_do_not_spoil_a_capture():
    cuda, contender = captured(lambda cuda: None)
    contender._capture()
    assert cuda.mode == "thread_local"
