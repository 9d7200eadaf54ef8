"""The same checkpoint on the host, on an emulated GPU, and on a real one."""

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.checkpoint import Checkpointer, dtypes, load, save
from lucid_gpu.checkpoint.background import BackgroundWriter, Staging
from lucid_gpu.checkpoint.reader import Reader
from lucid_gpu.checkpoint.shards import no_rest
from lucid_gpu.device import transfer
from lucid_gpu.device.arrays import device_of
from tests.checkpoint import trees
from tests.optim.core.placing import arrays, trained


@pytest.fixture
def path(tmp_path, quick_sync):
    return tmp_path / "checkpoint"


ON_GPUS = [dtype for dtype in trees.DTYPES if dtypes.fits_gpu(dtype)]


def numbers(shape=(40, 50), seed=0):
    return trees.filled(np.dtype("f4"), shape, seed)


def on(device, array):
    return transfer.copy(array, device)


def host(array):
    return transfer.to(array, "cpu")


@pytest.mark.parametrize("dtype", ON_GPUS, ids=str)
def test_every_dtype_of_the_device_round_trips(path, device, dtype):
    arrays = [trees.filled(dtype, shape, 1) for shape in [(), (0,), (5,), (3, 4)]]
    save(path, [on(device, array) for array in arrays])
    assert trees.same(load(path), arrays)
    loaded = load(path, device=device)
    assert {device_of(array) for array in loaded} == {device}
    assert trees.same([host(array) for array in loaded], arrays)


def test_what_no_gpu_holds_stays_on_the_host(path, device):
    tree = {"names": np.array(["a", "b"]), "big": np.arange(3, dtype=">f4")}
    save(path, tree)
    assert trees.same(load(path, device=device), tree)


def test_every_layout_is_saved_in_its_logical_order(path, device):
    array = on(device, numbers())
    views = [array, array.T, array[::2], array[:, 1:7], array[::-1]]
    save(path, views)
    assert trees.same(load(path), [host(view).copy() for view in views])


def test_arrays_larger_than_the_staging_buffers_are_saved(path, device, monkeypatch):
    monkeypatch.setattr(transfer, "STAGING_BYTES", 1000)
    save(path, on(device, numbers()))
    assert trees.same(load(path), numbers())


def test_parameters_come_back_on_the_device_asked_for(path, device):
    save(path, Parameter(on(device, numbers()), name="w"))
    assert load(path).device == "cpu"
    loaded = load(path, device=device)
    assert loaded.device == device
    assert trees.same(loaded.numpy(), numbers())


def test_what_was_saved_on_the_host_is_restored_on_the_device_and_back(path, device):
    save(path, {"w": Parameter(numbers(), name="w"), "v": numbers(seed=1)})
    there = {
        "w": Parameter(on(device, np.zeros_like(numbers()))),
        "v": on(device, np.zeros_like(numbers())),
    }
    assert load(path, into=there) == there
    assert trees.same(there["w"].numpy(), numbers())
    assert trees.same(host(there["v"]), numbers(seed=1))
    save(path.parent / "back", there)
    here = {"w": Parameter(np.zeros_like(numbers())), "v": np.zeros_like(numbers())}
    load(path.parent / "back", into=here)
    assert trees.same(here["w"].data, numbers())


def test_strided_and_fortran_targets_are_restored_in_place(path, device):
    save(path, [numbers(), numbers(seed=1)])
    wide = on(device, np.zeros((40, 100), np.float32))
    fortran = on(device, np.zeros((40, 50), np.float32, order="F"))
    load(path, into=[wide[:, ::2], fortran])
    assert trees.same(host(wide)[:, ::2].copy(), numbers())
    assert not host(wide)[:, 1::2].any()
    assert trees.same(host(fortran).copy("C"), numbers(seed=1))


def test_the_same_buffer_seen_twice_is_stored_once(path, device):
    w = on(device, numbers())
    save(path, [w, w, Parameter(w)])
    loaded = load(path)
    assert loaded[0] is loaded[1] is loaded[2].data


def test_a_background_save_holds_what_was_there_at_the_call(path, device):
    w = on(device, np.zeros((40, 50), np.float32))
    with Checkpointer(path) as checkpointer:
        for step in range(3):
            w += 1
            checkpointer.save(step, [w, w.T], block=False)
        w *= 0
        loaded = [checkpointer.restore(step) for step in range(3)]
    for step, (array, transposed) in enumerate(loaded):
        assert set(array.ravel().tolist()) == set(transposed.ravel().tolist()) == {step + 1}


@pytest.mark.parametrize("first", ["the update", "the copy"])
def test_a_copy_from_a_busy_gpu_is_ordered_between_two_updates(emulated, first):
    w = on("cuda:0", np.zeros(100, np.float32))
    values = w.view(np.ndarray)
    emulated.lazy = True
    stream = emulated.default_stream(0)
    stream.submit(lambda: values.fill(1))
    copies, arrived = Staging().take({"t0": w})
    stream.submit(lambda: values.fill(2))
    assert values[0] == 0
    if first == "the update":
        stream.drain()
        assert values[0] == 2
    arrived()
    assert set(copies["t0"].tolist()) == {1}


def test_a_background_save_waits_for_the_copies_of_gpu_arrays(path, emulated):
    w = on("cuda:0", np.zeros(1000, np.float32))
    values = w.view(np.ndarray)
    emulated.lazy = True
    stream = emulated.default_stream(0)
    with Checkpointer(path) as checkpointer:
        for step in (1, 2):
            stream.submit(lambda step=step: values.fill(step))
            checkpointer.save(step, {"w": w}, block=False)
            stream.submit(lambda: values.fill(9))
            checkpointer.wait()
            assert set(checkpointer.restore()["w"].tolist()) == {step}


def test_a_background_save_of_gpu_arrays_returns_before_they_are_copied(
    path, emulated, monkeypatch
):
    w = on("cuda:0", np.zeros(1000, np.float32))
    values = w.view(np.ndarray)
    emulated.lazy = True
    jobs = []
    monkeypatch.setattr(BackgroundWriter, "start", lambda _, job: jobs.append(job))
    with Checkpointer(path) as checkpointer:
        emulated.default_stream(0).submit(lambda: values.fill(1))
        checkpointer.save(1, {"w": w}, block=False)
        emulated.default_stream(0).submit(lambda: values.fill(9))
        assert not values.any()
        jobs[0](no_rest)
        assert set(checkpointer.restore()["w"].tolist()) == {1}


def test_strided_gpu_arrays_are_restored_together(path, device, monkeypatch):
    save(path, [np.full(4, i, np.float32) for i in range(100)])
    targets = [on(device, np.zeros(8, np.float32))[::2] for _ in range(100)]
    rounds = []
    load_part = Reader.load
    monkeypatch.setattr(
        Reader, "load", lambda reader, names: rounds.append(1) or load_part(reader, names)
    )
    load(path, into=targets)
    assert [host(target)[0] for target in targets] == list(range(100))
    assert len(rounds) <= 2


def test_arrays_are_loaded_to_a_device_together(path, device, monkeypatch):
    save(path, [np.full(4, i, np.float32) for i in range(100)])
    rounds = []
    load_part = Reader.load
    monkeypatch.setattr(
        Reader, "load", lambda reader, names: rounds.append(1) or load_part(reader, names)
    )
    assert [host(array)[0] for array in load(path, device=device)] == list(range(100))
    assert len(rounds) == 1


def test_a_copy_from_a_gpu_is_not_waited_for(emulated):
    w = on("cuda:0", np.zeros(100, np.float32))
    before = emulated.record.synchronizations
    _, arrived = Staging().take({"t0": w})
    assert emulated.record.synchronizations == before
    arrived()
    assert emulated.record.synchronizations > before


def save_later(path, tree):
    with Checkpointer(path.parent / "run") as checkpointer:
        checkpointer.save(2, tree, block=False)


def save_now(path, tree):
    with Checkpointer(path.parent / "run") as checkpointer:
        checkpointer.save(2, tree)


def restore(path, tree):
    with Checkpointer(path.parent / "run") as checkpointer:
        checkpointer.restore(1, into=tree)


IN_A_CAPTURE = {
    "save": lambda path, tree: save(path.with_name("other"), tree),
    "Checkpointer.save": save_now,
    "Checkpointer.save without waiting": save_later,
    "load into": lambda path, tree: load(path, into=tree),
    "Checkpointer.restore": restore,
}


@pytest.mark.parametrize("what", ["optimizer", "params"])
@pytest.mark.parametrize("use", IN_A_CAPTURE.values(), ids=IN_A_CAPTURE)
def test_no_graph_records_a_checkpoint_and_none_is_spoilt(path, accelerator, use, what):
    import cupy

    optimizer = trained(accelerator)
    tree = {"optimizer": optimizer, "params": optimizer._params()}[what]
    save(path, tree)
    with Checkpointer(path.parent / "run") as checkpointer:
        checkpointer.save(1, tree)
    before = [host(array).copy() for array in (*arrays(optimizer), optimizer._params()[0].data)]
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    now = [host(array).copy() for array in (*arrays(optimizer), optimizer._params()[0].data)]
    assert not trees.same(now, before)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        try:
            with pytest.raises(RuntimeError, match=r"^\w+\(\) cannot be recorded in a CUDA graph"):
                use(path, tree)
        finally:
            stream.end_capture()
    after = [host(array) for array in (*arrays(optimizer), optimizer._params()[0].data)]
    assert trees.same(after, now)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["checkpoint", "run"]
    with Checkpointer(path.parent / "run") as checkpointer:
        assert checkpointer.steps() == [1]


def test_no_graph_records_the_loading_of_arrays_to_its_device(path, accelerator):
    import cupy

    save(path, numbers())
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        try:
            with pytest.raises(RuntimeError, match=r"^load\(\) cannot be recorded"):
                load(path, device=accelerator)
        finally:
            stream.end_capture()


def test_a_checkpoint_of_the_cpu_is_none_of_the_business_of_a_graph(path, accelerator):
    import cupy

    optimizer = trained("cpu")
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        try:
            save(path, optimizer)
            load(path, into=optimizer)
        finally:
            stream.end_capture()
