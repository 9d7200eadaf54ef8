"""Engine: slots in PyTorch's memory, and steps on the streams that are current for PyTorch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lucid_gpu.device import gpu
from tests.torch.support import parameters, torch

ours = pytest.importorskip("lucid_gpu.torch")
from lucid_gpu.torch import engine  # noqa: E402


@pytest.mark.parametrize("shape", [(3, 4), (5000,), (600, 600), ()])
def test_memory_of_slots_is_allocated_by_pytorch(shape, monkeypatch):
    made = []
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *a, **k: made.append(zeros(*a, **k)) or made[-1])
    (param,) = parameters(shape)
    optimizer = ours.Adam([param])
    optimizer.step()
    for slot in ("exp_avg", "exp_avg_sq"):
        place = optimizer.state[param][slot].data_ptr()
        assert any(
            memory.data_ptr() <= place < memory.data_ptr() + memory.untyped_storage().nbytes()
            for memory in made
        )


def test_slots_begin_as_their_rule_says():
    (param,) = parameters((3,))
    optimizer = ours.Adagrad([param], lr=0.0, initial_accumulator_value=0.5)
    optimizer.step()
    assert torch.allclose(optimizer.state[param]["sum"], 0.5 + param.grad.square())


def test_a_file_holds_no_more_of_small_slots_than_they_have(tmp_path):
    params = parameters(*[(10,)] * 50)
    optimizer = ours.Adam(params)
    optimizer.step()
    torch.save(optimizer.state[params[0]]["exp_avg"], tmp_path / "slot")
    assert (tmp_path / "slot").stat().st_size < 3000


def test_the_streams_of_pytorch_are_current_inside_and_others_after(emulated, monkeypatch):
    stream = gpu.cupy().cuda.Stream(non_blocking=True)
    asked = []

    def current(device):
        asked.append(device)
        return SimpleNamespace(cuda_stream=stream.ptr)

    monkeypatch.setattr(torch.cuda, "current_stream", current)
    monkeypatch.setattr(gpu.cupy().cuda.Stream, "from_external", lambda _: stream, raising=False)
    get = gpu.cupy().cuda.get_current_stream
    before = get(0).ptr
    gpu.foreign_stream.cache_clear()
    with engine.streams({"cuda:0"}):
        assert get(0).ptr == stream.ptr
    assert get(0).ptr == before
    assert asked == ["cuda:0"]
    gpu.foreign_stream.cache_clear()


def test_a_stream_is_wrapped_once_for_each_handle(emulated, monkeypatch):
    made = []

    def from_external(foreign):
        made.append(foreign.__cuda_stream__())
        return object()

    monkeypatch.setattr(gpu.cupy().cuda.Stream, "from_external", from_external, raising=False)
    gpu.foreign_stream.cache_clear()
    first = gpu.foreign_stream("cuda:0", 4096)
    assert gpu.foreign_stream("cuda:0", 4096) is first
    assert gpu.foreign_stream("cuda:0", 8192) is not first
    assert made == [(0, 4096), (0, 8192)]
    gpu.foreign_stream.cache_clear()


def test_the_default_stream_of_pytorch_is_cupys(emulated):
    gpu.foreign_stream.cache_clear()
    assert gpu.foreign_stream("cuda:0", 0).ptr == 0
    gpu.foreign_stream.cache_clear()


def test_no_gpu_is_asked_for_a_step_on_the_cpu(monkeypatch):
    monkeypatch.setattr(gpu, "cupy", None)
    params = parameters((3,))
    optimizer = ours.Adam(params)
    optimizer.step()
    optimizer.step()
    assert optimizer.state[params[0]]["step"] == 2


@pytest.fixture
def mesh(tmp_path):
    """One process as a mesh of one device."""
    distributed = torch.distributed
    if not distributed.is_available():
        pytest.skip("PyTorch is built without distributed")
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield distributed.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_distributed_tensors_step_by_the_part_of_this_process(mesh):
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    plain, own = parameters((4, 3), (5,)), []
    for param, placement in zip(plain, (Shard(0), Replicate()), strict=True):
        shared = torch.nn.Parameter(distribute_tensor(param.detach().clone(), mesh, [placement]))
        shared.grad = distribute_tensor(param.grad.clone(), mesh, [placement])
        own.append(shared)
    optimizers = ours.AdamW(plain), ours.AdamW(own)
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.step()
    for param, shared in zip(plain, own, strict=True):
        assert torch.equal(param.detach(), shared.to_local().detach())
        slot = optimizers[1].state[shared]["exp_avg"]
        assert isinstance(slot, DTensor)
        assert slot.placements == shared.placements
        assert torch.equal(optimizers[0].state[param]["exp_avg"], slot.to_local())
    optimizers[1].load_state_dict(optimizers[1].state_dict())
    optimizers[1].step()
    assert optimizers[1].state[own[0]]["step"] == 4


@pytest.mark.filterwarnings("ignore")
def test_a_gradient_that_is_distributed_otherwise_is_refused(mesh):
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    shared = torch.nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)]))
    shared.grad = distribute_tensor(torch.ones(4, 3), mesh, [Replicate()])
    with pytest.raises(ValueError, match=r"gradient of parameter '0\.0' has placements"):
        ours.AdamW([shared]).step()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{"master": "none"}, {"state_dtype": "bfloat16"}], ids=str)
def test_distributed_tensors_are_not_rounded_stochastically(mesh, options):
    from torch.distributed.tensor import Shard, distribute_tensor

    shared = torch.nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)]))
    shared.grad = distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)])
    with pytest.raises(ValueError, match=r"parameter '0\.0' is a .*, which is not rounded"):
        ours.AdamW([shared], **options).step()
