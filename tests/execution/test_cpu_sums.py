"""Canonical sums on the CPU: NumPy and compiled code give the bits of a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lucid_gpu
from lucid_gpu.execution import building, cpu_sums, sums
from tests.execution import compilers
from tests.execution import sums_oracle as oracle
from tests.execution.claims import compiles_text, layout_claims
from tests.stepping import host, place


@pytest.fixture(params=["numpy", "compiled"])
def code(request):
    lucid_gpu.set_cpu_code(request.param)
    yield request.param
    lucid_gpu.set_cpu_code(None)


def measured(grads):
    own = cpu_sums.CpuSums(oracle.sizes(grads), oracle.dtypes(grads))
    own.take(grads)
    own.run()
    return own


@pytest.mark.usefixtures("code")
def test_sums_and_counts_are_those_of_a_plain_loop(rng):
    grads = oracle.arrays(rng)
    assert oracle.results(measured(grads), host) == oracle.described(grads, host)


@pytest.mark.usefixtures("code")
def test_many_chunks_follow_the_order(rng):
    """In one of ten chunks, another order of lanes changes the last bit."""
    grads = list(rng.normal(size=(100, 4096)))
    expected = oracle.bits([oracle.tensor(grad) for grad in grads])
    assert oracle.bits(measured(grads).sums) == expected


@pytest.mark.usefixtures("code")
def test_a_tensor_of_several_pages_is_folded_page_by_page(rng):
    grads = [rng.normal(size=4096 * 256 + 4097).astype("float32"), np.ones(3, "float32")]
    assert oracle.results(measured(grads), host) == oracle.described(grads, host)


@pytest.mark.usefixtures("code")
@pytest.mark.parametrize("threads", ["1", "3"])
def test_threads_change_no_bit(threads, monkeypatch, rng):
    grads = [rng.normal(size=size).astype("float32") for size in (300_000, 70_000, 5, 400_000)]
    monkeypatch.setenv("LUCID_GPU_NUM_THREADS", threads)
    expected = [oracle.bits([oracle.tensor(grad)])[0] for grad in grads]
    assert oracle.bits(measured(grads).sums) == expected


@pytest.mark.usefixtures("code")
@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_layouts_change_no_bit(data):
    name = data.draw(st.sampled_from(oracle.DTYPES))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    sides = st.lists(st.integers(0, 20), max_size=3) | st.tuples(st.integers(4000, 9000))
    shape = tuple(data.draw(sides))
    values = np.asarray(rng.normal(size=shape)).astype(oracle.dtype(name))
    layouts = data.draw(st.lists(st.sampled_from(["F", "strided", "reversed", 1, 2]), min_size=1))
    own = measured([values, *(place(values, "cpu", layout).view for layout in layouts)])
    assert set(oracle.bits(own.sums)) == {oracle.bits([oracle.tensor(values)])[0]}


@pytest.mark.usefixtures("code")
def test_elements_that_lie_between_multiples_of_their_size_are_measured():
    memory = np.zeros(4 * 10 + 1, np.uint8)
    crooked = memory[1:].view(np.float32)
    crooked[:] = np.arange(10)
    assert not crooked.flags.aligned
    assert measured([crooked]).total.tolist() == [285.0]


@pytest.mark.usefixtures("code")
def test_a_gradient_that_is_gone_counts_as_zeros(rng):
    own = cpu_sums.CpuSums([5, 6], [np.dtype("f4")] * 2)
    for grads in ([np.ones(5, "f4"), np.ones(6, "f4")], [None, np.ones(6, "f4")]):
        own.take(grads)
        own.run()
    assert (own.sums.tolist(), own.total.tolist()) == ([0.0, 6.0], [6.0])


@pytest.mark.usefixtures("code")
def test_squares_that_overflow_are_no_elements_that_are_not_finite():
    own = measured([np.array([1e200, 1.0]), np.array([np.inf])])
    assert own.sums.tolist() == [np.inf, np.inf]
    assert own.counts.tolist() == [0, 1]


@pytest.mark.usefixtures("fresh")
def test_numpy_measures_until_there_is_compiled_code(monkeypatch, tmp_path):
    compiler = compilers.waiting(tmp_path)
    monkeypatch.setenv("CXX", str(compiler.path))
    lucid_gpu.set_cpu_code("auto")
    try:
        own = cpu_sums.CpuSums([3], [np.dtype("f4")])
        for _ in range(2):
            own.take([np.ones(3, "f4")])
            own.run()
            assert own.total.tolist() == [3.0]
            compiler.open()
            building.wait()
        assert compiler.count == 1
        own.take([np.ones(3, "f4")])
        monkeypatch.setattr(cpu_sums, "_measured", None)
        own.run()
    finally:
        lucid_gpu.set_cpu_code(None)


@pytest.mark.usefixtures("fresh")
def test_compiled_code_that_was_chosen_and_cannot_be_built_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(compilers.failing(tmp_path).path))
    lucid_gpu.set_cpu_code("compiled")
    try:
        with pytest.raises(RuntimeError, match="compiled code was chosen for the CPU"):
            measured([np.ones(3, "f4")])
    finally:
        lucid_gpu.set_cpu_code(None)


def test_records_lie_as_the_structs_of_compiled_code():
    claims = [
        *layout_claims(cpu_sums.ARGUMENT, "HostMeasured"),
        *layout_claims(sums.AXES, "Axes"),
        f"kAxes == {sums.MOST_AXES}",
        f"kLanes == {sums.LANES} && kNeighbours == {sums.NEIGHBOURS} && kChunk == 4096",
    ]
    compiles_text(cpu_sums.source(), claims)
