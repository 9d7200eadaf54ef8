"""Distributed training in one process: the same calls as in many, on the CPU."""

from __future__ import annotations

import pytest

from tests.torch.support import assert_close, torch

ours = pytest.importorskip("lucid_gpu.torch")
if not torch.distributed.is_available():
    pytest.skip("PyTorch is built without distributed", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def mesh(tmp_path):
    """One process as a mesh of one device."""
    where = f"file://{tmp_path}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=where, rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))


def train(model, optimizer, steps=3):
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.full((2, 3), float(step + 1))).square().sum().backward()
        optimizer.step()


def whole(parameters):
    return [getattr(param, "full_tensor", lambda own=param: own)().detach() for param in parameters]


def test_a_fully_sharded_model_trains_as_one_that_is_not(mesh):
    from torch.distributed.fsdp import fully_shard

    plain, sharded = net(), net()
    fully_shard(sharded, mesh=mesh)
    for model in (plain, sharded):
        train(model, ours.AdamW(model.parameters(), lr=0.1))
    assert_close(whole(sharded.parameters()), whole(plain.parameters()))


def test_a_replicated_model_trains_as_one_that_is_not(mesh):
    plain, replicated = net(), torch.nn.parallel.DistributedDataParallel(net())
    for model in (plain, replicated):
        train(model, ours.SGD(model.parameters(), lr=0.01, momentum=0.9))
    assert_close(whole(replicated.parameters()), whole(plain.parameters()))


def test_optimizers_that_share_their_state_take_it_for_one_of_theirs(mesh):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    plain, shared = net(), net()
    train(plain, ours.AdamW(plain.parameters(), lr=0.1))
    optimizer = ZeroRedundancyOptimizer(shared.parameters(), ours.AdamW, lr=0.1)
    train(shared, optimizer)
    optimizer.consolidate_state_dict()
    optimizer.load_state_dict(optimizer.state_dict())
    assert_close(whole(shared.parameters()), whole(plain.parameters()))


def test_a_distributed_checkpoint_brings_a_run_back(tmp_path):
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model, other = net(), net()
    optimizer = ours.AdamW(model.parameters(), lr=0.1)
    train(model, optimizer)
    saved = get_state_dict(model, optimizer)
    checkpoint.save({"model": saved[0], "optimizer": saved[1]}, checkpoint_id=tmp_path)
    twin = ours.AdamW(other.parameters(), lr=0.5)
    found = get_state_dict(other, twin)
    checkpoint.load({"model": found[0], "optimizer": found[1]}, checkpoint_id=tmp_path)
    set_state_dict(other, twin, model_state_dict=found[0], optim_state_dict=found[1])
    assert twin.param_groups[0]["lr"] == 0.1
    for each in ((model, optimizer), (other, twin)):
        train(*each)
    for own, their in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(own, their)
