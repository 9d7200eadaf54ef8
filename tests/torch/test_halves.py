"""Parameters of 16 bits: masters, moments, and gradients of other types, as in lucid_gpu.optim."""

from __future__ import annotations

import copy

import pytest

import lucid_gpu
from lucid_gpu import optim
from tests.torch.support import parameters, torch

ours = pytest.importorskip("lucid_gpu.torch")


@pytest.fixture(params=["numpy", "compiled"], autouse=True)
def either_code(request):
    lucid_gpu.set_cpu_code(request.param)
    yield request.param
    lucid_gpu.set_cpu_code(None)


def made(dtype, *shapes):
    whole = parameters(*(shapes or ((3, 4), (5000,))), seed=4)
    return [torch.nn.Parameter(param.detach().to(dtype)) for param in whole]


def train(params, optimizer, seeds, dtype=None):
    for seed in seeds:
        for param, fresh in zip(
            params, parameters(*(p.shape for p in params), seed=seed), strict=True
        ):
            param.grad = fresh.grad.to(dtype or param.dtype)
        optimizer.step()


def bits(params):
    return [param.detach().view(torch.int16).tolist() for param in params]


STORED = [
    (torch.bfloat16, {}),
    (torch.bfloat16, {"state_dtype": "bfloat16"}),
    (torch.bfloat16, {"master": "split"}),
    (torch.bfloat16, {"master": "none"}),
    (torch.float16, {}),
    (torch.float16, {"state_dtype": "bfloat16"}),
]


@pytest.mark.parametrize(("dtype", "options"), STORED, ids=str)
def test_they_step_as_arrays_do_to_the_bit(dtype, options):
    own, others = made(dtype), made(dtype)
    train(own, ours.AdamW(own, lr=1e-3, **options), range(5))
    train(others, optim.AdamW(others, lr=1e-3, **options), range(5))
    assert bits(own) == bits(others)


def test_a_master_is_a_tensor_of_the_exact_values():
    (param,) = params = made(torch.bfloat16, (64,))
    exact = torch.nn.Parameter(param.detach().float())
    optimizer, plain = ours.AdamW(params, lr=1e-4), ours.AdamW([exact], lr=1e-4)
    for seed in range(4):
        train(params, optimizer, [seed])
        exact.grad = param.grad.float()
        plain.step()
    master = optimizer.state[param]["master"]
    assert master.dtype is torch.float32
    assert torch.equal(master, exact.detach())
    assert torch.equal(param.detach(), master.bfloat16())


def test_state_keeps_its_dtype_when_it_is_loaded():
    own = made(torch.bfloat16)
    optimizer = ours.AdamW(own, lr=1e-3)
    train(own, optimizer, range(3))
    twins = [torch.nn.Parameter(param.detach().clone()) for param in own]
    twin = ours.AdamW(twins)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for slot in ("exp_avg", "exp_avg_sq", "master"):
        assert twin.state[twins[0]][slot].dtype is torch.float32
    train(own, optimizer, [7])
    train(twins, twin, [7])
    assert bits(own) == bits(twins)


def test_gradients_may_be_of_float32_where_the_parameter_says_so():
    own, others = made(torch.bfloat16), made(torch.bfloat16)
    for param in (*own, *others):
        param.grad_dtype = torch.float32
    train(own, ours.AdamW(own, lr=1e-3), range(3), torch.float32)
    train(others, optim.AdamW(others, lr=1e-3), range(3), torch.float32)
    assert bits(own) == bits(others)


def test_no_view_is_made_for_gradients_of_float32_that_compiled_code_reads(monkeypatch):
    lucid_gpu.set_cpu_code("compiled")
    own = made(torch.bfloat16)
    for param in own:
        param.grad_dtype = torch.float32
    optimizer = ours.AdamW(own, lr=1e-3)
    train(own, optimizer, [1], torch.float32)
    monkeypatch.setattr("lucid_gpu.device.torch_tensors.as_array", None)
    train(own, optimizer, [2], torch.float32)
    assert optimizer.state[own[0]]["step"] == 2


def test_gradients_of_whichever_type_are_read_as_what_they_are():
    own, others = made(torch.bfloat16), made(torch.bfloat16)
    for param in own:
        param.grad_dtype = None
    optimizers = ours.AdamW(own, lr=1e-3), ours.AdamW(others, lr=1e-3)
    for params, optimizer in zip((own, others), optimizers, strict=True):
        train(params, optimizer, [1, 2])
    own[0].grad = own[0].grad.float()
    before = bits(own)
    with pytest.raises(ValueError, match=r"float32.* set .* grad_dtype = torch\.float32"):
        optimizers[0].step()
    assert bits(own) == before == bits(others)


def test_another_type_of_gradients_is_taken_between_steps():
    own, others = made(torch.bfloat16), made(torch.bfloat16)
    optimizers = ours.AdamW(own, lr=1e-3), optim.AdamW(others, lr=1e-3)
    for params, optimizer in zip((own, others), optimizers, strict=True):
        train(params, optimizer, [1, 2])
        for param in params:
            param.grad = None
            param.grad_dtype = torch.float32
        train(params, optimizer, [3, 4], torch.float32)
    assert bits(own) == bits(others)
    assert optimizers[0].state[own[0]]["step"] == 4


def test_a_master_of_other_weights_is_made_anew_with_a_warning():
    own = made(torch.bfloat16, (64,))
    optimizer = ours.AdamW(own, lr=1e-3)
    train(own, optimizer, [1])
    own[0].data = torch.ones(64, dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="data of '0.0' was replaced"):
        train(own, optimizer, [2])
    assert (own[0].detach() - 1).abs().max() < 0.01


def of_arrays(params, **options):
    return optim.AdamW(params, **options)


def beside_an_array(params, **options):
    other = lucid_gpu.Parameter([1.0])
    return optim.AdamW([*params, other], **options)


every_library = pytest.mark.parametrize(
    "make", [ours.AdamW, of_arrays, beside_an_array], ids=["pytorch", "arrays", "both kinds"]
)


def load_in_place(params):
    with torch.no_grad():
        for param in params:
            param.copy_(torch.linspace(1, 2, param.numel()).view(param.shape))


@every_library
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_masters_of_weights_that_were_loaded_in_place_are_made_anew_with_a_warning(make, dtype):
    """Row 30c of docs/contract.md."""
    own = made(dtype, (64,), (3,), (2,))
    optimizer = make(own, lr=1e-3)
    train(own, optimizer, [1])
    model = torch.nn.ParameterList(own[:2])
    model.load_state_dict({str(i): torch.ones_like(own[i]) for i in range(2)})
    with pytest.warns(UserWarning, match=r"data of '0\.0', '0\.1' was .* written to") as warned:
        train(own, optimizer, [2])
    assert [each.filename for each in warned] == [__file__]
    for param in own[:2]:
        assert (param.detach() - 1).abs().max() < 0.01
    train(own, optimizer, [3])


@every_library
def test_a_step_after_weights_were_loaded_in_place_is_that_from_their_values(make):
    own, others = made(torch.bfloat16), made(torch.bfloat16)
    loaded, fresh = make(own, lr=1e-3), make(others, lr=1e-3)
    train(own, loaded, [1])
    train(others, fresh, [1])
    load_in_place(own)
    for param, other in zip(own, others, strict=True):
        fresh.state[other]["master"][...] = param.detach().float()
    load_in_place(others)
    with pytest.warns(UserWarning, match="written to"):
        train(own, loaded, [2])
    train(others, fresh, [2])
    assert bits(own) == bits(others)


@every_library
def test_writes_that_change_nothing_make_no_master_anew(make):
    own, others = made(torch.bfloat16), made(torch.bfloat16)
    optimizers = make(own, lr=1e-3), make(others, lr=1e-3)
    for seed in range(3):
        for params, optimizer in zip((own, others), optimizers, strict=True):
            train(params, optimizer, [seed])
        with torch.no_grad():
            for param in own:
                param.clamp_(-100, 100)
                param.copy_(param.clone())
    assert bits(own) == bits(others)
    masters = [
        optimizer.state[params[0]]["master"]
        for params, optimizer in zip((own, others), optimizers, strict=True)
    ]
    assert (masters[0] == masters[1]).all()


@every_library
def test_weights_and_state_that_are_loaded_together_keep_their_masters(make):
    own, others = made(torch.bfloat16), made(torch.bfloat16)
    optimizer, plain = make(own, lr=1e-3), make(others, lr=1e-3)
    train(own, optimizer, [1, 2])
    train(others, plain, [1, 2])
    weights = [param.detach().clone() for param in own]
    saved = copy.deepcopy(optimizer.state_dict())
    train(own, optimizer, [5])
    with torch.no_grad():
        for param, before in zip(own, weights, strict=True):
            param.copy_(before)
    optimizer.load_state_dict(saved)
    train(own, optimizer, [3])
    train(others, plain, [3])
    assert bits(own) == bits(others)


def test_a_split_master_of_weights_that_were_loaded_in_place_rounds_to_them():
    own = made(torch.bfloat16)
    optimizer = ours.AdamW(own, lr=1e-3, master="split")
    train(own, optimizer, [1, 2])
    load_in_place(own)
    before = bits(own)
    optimizer.param_groups[0].update(lr=0.0)
    train(own, optimizer, [3])
    assert bits(own) == before


def test_versions_of_float32_are_not_looked_at(monkeypatch):
    monkeypatch.setattr("lucid_gpu.device.torch_tensors.Versions", None)
    params = parameters((3,))
    optimizer = ours.AdamW(params)
    optimizer.step()
    with torch.no_grad():
        params[0].fill_(1.0)
    optimizer.step()
    assert optimizer.state[params[0]]["step"] == 2
