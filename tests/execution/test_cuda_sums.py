"""Canonical sums on a GPU: the bits of a plain loop, in a few launches and without a wait."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lucid_gpu import Parameter
from lucid_gpu.device import gpu, gradient_table, keep, staged
from lucid_gpu.execution import cuda_sums, plan, sums
from tests.emulation.machine import Record
from tests.execution import sums_oracle as oracle
from tests.execution.claims import compiles_text, layout_claims
from tests.stepping import host, place


def measured(grads, home):
    own = cuda_sums.CudaSums(home, oracle.sizes(grads), oracle.dtypes(grads))
    own.take(grads)
    own.run()
    return own


def on_device(arrays, home):
    return [place(array, home).view for array in arrays]


def test_sums_and_counts_are_those_of_a_plain_loop(accelerator, rng):
    grads = oracle.arrays(rng, accelerator)
    assert oracle.results(measured(grads, accelerator), host) == oracle.described(grads, host)


def test_many_chunks_follow_the_order(accelerator, rng):
    """In one of ten chunks, another order of lanes changes the last bit."""
    arrays = list(rng.normal(size=(100, 4096)))
    own = measured(on_device(arrays, accelerator), accelerator)
    assert oracle.bits(host(own.sums)) == oracle.bits([oracle.tensor(one) for one in arrays])


def test_a_tensor_of_several_pages_is_folded_page_by_page(accelerator, rng):
    arrays = [rng.normal(size=4096 * 256 + 4097).astype("float32"), np.ones(3, "float32")]
    own = measured(on_device(arrays, accelerator), accelerator)
    assert oracle.results(own, host) == oracle.described(arrays, host)


def test_thousands_of_tensors_are_folded_in_their_order(accelerator, rng):
    arrays = [rng.normal(size=size).astype("float32") for size in rng.integers(0, 4, 3000)]
    own = measured(on_device(arrays, accelerator), accelerator)
    assert oracle.results(own, host) == oracle.described(arrays, host)


@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_layouts_change_no_bit(accelerator, data):
    name = data.draw(st.sampled_from(oracle.DTYPES))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    sides = st.lists(st.integers(0, 20), max_size=3) | st.tuples(st.integers(4000, 9000))
    values = np.asarray(rng.normal(size=tuple(data.draw(sides)))).astype(oracle.dtype(name))
    layouts = data.draw(st.lists(st.sampled_from(["F", "strided", "reversed", 1, 2]), min_size=1))
    own = measured([place(values, accelerator, one).view for one in ["C", *layouts]], accelerator)
    assert set(oracle.bits(host(own.sums))) == {oracle.bits([oracle.tensor(values)])[0]}


def test_gradients_that_are_noted_need_not_be_looked_at(accelerator, rng):
    params = [Parameter(rng.normal(size=size), device=accelerator) for size in (5, 7)]
    params[0].grad = params[0].data
    own = cuda_sums.CudaSums(accelerator, [5, 7], [np.dtype("f8")] * 2)
    assert own.move(*gradient_table.Look([param.entry for param in params]).read())
    own.run()
    expected = oracle.tensor(params[0].numpy())
    assert host(own.sums).tolist() == [expected, 0.0]


def test_a_noted_gradient_that_is_not_contiguous_must_be_looked_at(accelerator):
    data = place(np.ones((3, 4)), accelerator, "F").view
    param = Parameter(data)
    param.grad = data
    own = cuda_sums.CudaSums(accelerator, [12], [np.dtype("f8")])
    assert not own.move(*gradient_table.Look([param.entry]).read())
    own.take([param.grad])
    own.run()
    assert host(own.total).tolist() == [12.0]


def test_a_run_is_a_launch_for_each_dtype(emulated, rng):
    own = measured(oracle.arrays(rng, "cuda:0"), "cuda:0")
    emulated.record = Record()
    own.run()
    assert len(emulated.record.launches) == 4


@pytest.mark.parametrize("seed", range(3))
def test_whichever_block_comes_last_folds_to_the_same_bits(seed, emulated, rng, monkeypatch):
    large = rng.normal(size=4096 * 258 + 5).astype("float32")
    grads = [*oracle.arrays(rng, "cuda:0"), *on_device([large], "cuda:0")]
    own = measured(grads, "cuda:0")
    expected = oracle.results(own, host)
    monkeypatch.setenv("EMULATION_BLOCK_ORDER", str(seed))
    own._runs.reverse()
    for number, size in enumerate(oracle.sizes(grads)):
        own.sums[number] = own.counts[number] = -1 if size else 0
    own.total[...] = own.total_count[...] = -1
    own.run()
    assert oracle.results(own, host) == expected


def test_each_run_folds_anew(accelerator, rng):
    arrays = rng.normal(size=(4, 2, 4096 * 3 + 1))
    own = measured(on_device(arrays[0], accelerator), accelerator)
    for grads in arrays[1:]:
        taken = on_device(grads, accelerator)
        own.take(taken)
        own.run()
        assert oracle.results(own, host) == oracle.described(grads, host)


@pytest.mark.parametrize("sizes", [[], [0], [0, 0]])
def test_gradients_without_elements_add_up_to_nothing_without_a_launch(sizes, emulated):
    emulated.record = Record()
    own = measured([gpu.cupy().zeros(size) for size in sizes], "cuda:0")
    assert (host(own.total).tolist(), host(own.total_count).tolist()) == ([0.0], [0])
    assert emulated.record.launches == []


def test_later_runs_neither_allocate_nor_wait_and_copy_only_what_moved(emulated):
    grads = on_device([np.ones(5000, "f4"), np.ones(3, "f4")], "cuda:0")
    own = measured(grads, "cuda:0")
    others = [grads[0].copy(), grads[1]]
    emulated.record = Record()
    for _ in range(staged.STAGES):
        own.take(grads)
        own.run()
    assert emulated.record.uploads == []
    own.take(others)
    own.run()
    assert len(emulated.record.uploads) == 1
    assert (emulated.record.allocations, emulated.record.synchronizations) == (0, 0)


def test_new_layouts_are_brought_to_the_device(accelerator, rng):
    own = cuda_sums.CudaSums(accelerator, [24], [np.dtype("f8")])
    for width in range(1, 5):
        values = rng.normal(size=(24 // width, width))
        grad = place(values, accelerator, "strided").view
        own.take([grad])
        own.run()
        assert host(own.total).tolist() == [oracle.tensor(values)]


def test_a_run_can_be_recorded_in_a_graph_whose_replays_measure_what_was_brought(accelerator):
    cp = gpu.cupy()
    grads = on_device([np.full(9, 2.0), np.full(9, 3.0)], accelerator)
    own = measured(grads[:1], accelerator)
    stream = cp.cuda.Stream(non_blocking=True)
    cp.cuda.get_current_stream().synchronize()
    with stream:
        stream.begin_capture()
        own.capture()
        graph = stream.end_capture()
        own.take(grads[1:])
        own.upload()
        graph.launch(stream)
    stream.synchronize()
    assert own.total.get().tolist() == [81.0]


def test_what_another_stream_has_yet_to_read_is_kept(emulated):
    cp = gpu.cupy()
    (grad,) = on_device([np.full((9, 2), 2.0)], "cuda:0")
    with cp.cuda.Stream(non_blocking=True) as stream:
        own = cuda_sums.CudaSums("cuda:0", [9], [np.dtype("f8")])
    stream.synchronize()
    emulated.lazy = True
    own.take([grad[:, 0]])
    own.run()
    total, chunks = own.total, weakref.ref(own._memory[-1])
    del own
    gc.collect()
    assert chunks() is not None
    assert total.get().tolist() == [36.0]
    keep.look()
    gc.collect()
    assert chunks() is None


def test_records_lie_as_the_structs_of_the_kernels():
    claims = [
        *layout_claims(cuda_sums.MEASURED, "Measured"),
        *layout_claims(cuda_sums.CONCLUDED, "Concluded"),
        *layout_claims(plan.FOLDING, "Folding"),
        *layout_claims(cuda_sums.JUDGED, "Judged"),
        *layout_claims(sums.NODE, "Node"),
        *layout_claims(sums.AXES, "Axes"),
    ]
    compiles_text(cuda_sums.source(), claims)
    compiles_text(cuda_sums.change_source(), layout_claims(cuda_sums.CHANGED, "Changed"))
