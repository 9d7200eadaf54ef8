"""Tensors of PyTorch in the optimizers of arrays: stepped, saved, loaded, refused by name."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lucid_gpu
from lucid_gpu import Parameter, optim
from lucid_gpu.averages import Average
from lucid_gpu.checkpoint import Checkpointer
from lucid_gpu.device.arrays import STRIDED
from lucid_gpu.gradients import clip_grad_norm_
from lucid_gpu.optim.core.torch_inputs import DENSE, TorchInputs
from tests import rules

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[oracle]'")


def tensors(*shapes, seed=0):
    random = np.random.default_rng(seed)
    made = [
        torch.nn.Parameter(torch.from_numpy(np.asarray(random.normal(size=s), np.float32)))
        for s in shapes
    ]
    set_gradients(made, seed)
    return made


def twins(params):
    """Parameters of this package with the same values and gradients."""
    made = [Parameter(param.detach().numpy().copy()) for param in params]
    for own, param in zip(made, params, strict=True):
        own.grad = None if param.grad is None else param.grad.numpy().copy()
    return made


def set_gradients(params, seed):
    random = np.random.default_rng(seed + 100)
    for param in params:
        gradient = np.asarray(random.normal(size=tuple(param.shape)), np.float32)
        param.grad = torch.from_numpy(gradient) if isinstance(param, torch.Tensor) else gradient


def assert_same(params, others):
    for param, other in zip(params, others, strict=True):
        assert param.detach().numpy().tobytes() == other.data.tobytes()


@pytest.fixture(params=["numpy", "compiled"])
def either_code(request):
    lucid_gpu.set_cpu_code(request.param)
    yield request.param
    lucid_gpu.set_cpu_code(None)


@pytest.mark.parametrize("rule", rules.optimizers(), ids=lambda rule: rule.__name__)
def test_tensors_step_as_parameters_do(rule, either_code):
    params = tensors((3, 4), (5,), ())
    others = twins(params)
    optimizers = rule(params), rule(others)
    for seed in range(4):
        for own, optimizer in zip((params, others), optimizers, strict=True):
            set_gradients(own, seed)
            if seed == 2:
                own[1].grad = None
            optimizer.step()
    assert_same(params, others)


def test_tensors_step_beside_parameters_of_this_package(either_code):
    params = tensors((3, 4), (5,))
    others = twins(params)
    mixed = [params[0], twins([params[1]])[0]]
    version = params[0]._version
    optimizers = optim.Adam(mixed), optim.Adam(others)
    for seed in range(3):
        for own, optimizer in zip((mixed, others), optimizers, strict=True):
            set_gradients(own, seed)
            optimizer.step()
    assert_same(mixed[:1], others[:1])
    assert params[0]._version == version + 3


axes = st.permutations(range(3))
layouts = st.sampled_from(["as the parameter", "contiguous", "other", "strided", "expanded"])


@settings(max_examples=40, deadline=None)
@given(axes, axes, st.lists(layouts, min_size=1, max_size=4), st.booleans())
def test_any_layout_of_parameter_and_gradient_gives_the_same_bits(order, other, kinds, is_compiled):
    lucid_gpu.set_cpu_code("compiled" if is_compiled else "numpy")
    try:
        (plain,) = tensors((3, 2, 4))
        laid = plain.detach().permute(order).contiguous().permute(np.argsort(order).tolist())
        own = torch.nn.Parameter(laid)
        optimizers = optim.Adam([plain], amsgrad=True), optim.Adam([own], amsgrad=True)
        for step, kind in enumerate(kinds):
            set_gradients([plain], step)
            grad = plain.grad
            if kind == "expanded":
                plain.grad = grad = grad[:1].expand(3, 2, 4).contiguous()
            own.grad = {
                "as the parameter": lambda g: torch.empty_like(own).copy_(g).detach(),
                "contiguous": lambda g: g.clone(),
                "other": lambda g: (
                    g.permute(other).contiguous().permute(np.argsort(other).tolist())
                ),
                "strided": lambda g: torch.stack([g, g], -1)[..., 0],
                "expanded": lambda g: g[:1].expand(3, 2, 4),
            }[kind](grad)
            for optimizer in optimizers:
                optimizer.step()
        assert torch.equal(plain, own)
        for slot in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            kept = [o.state[p][slot] for o, p in zip(optimizers, (plain, own), strict=True)]
            assert (kept[0] == kept[1]).all()
            assert kept[0].shape == kept[1].shape == (3, 2, 4)
    finally:
        lucid_gpu.set_cpu_code(None)


def test_a_tensor_whose_data_stay_is_prepared_once(either_code, monkeypatch):
    params = tensors((3, 4), (5,))
    optimizer = optim.Adam(params)
    optimizer.step()
    monkeypatch.setattr(optimizer, "_prepare", None)
    for seed in range(3):
        set_gradients(params, seed)
        optimizer.step()
    assert optimizer.state[params[0]]["step"] == 4


def test_data_in_place_that_are_of_another_shape_are_found(either_code):
    (param,) = tensors((4, 4))
    optimizer = optim.SGD([param], lr=1.0)
    optimizer.step()
    for data in (param.data.t(), param.data[:2], param.data.reshape(-1)):
        param.data = data
        param.grad = torch.arange(float(data.numel())).reshape(data.shape)
        before = param.detach().clone()
        optimizer.step()
        assert torch.equal(param.detach(), before - param.grad)


def test_autograd_is_told_of_the_write_by_array_code_and_averages_too():
    class Descent(optim.ArrayOptimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.5})

        def update(self, xp, param, grad, slots, options, t):
            param -= options["lr"] * grad

    (param,) = tensors((3,))
    Descent([param]).step()
    averaged = optim.SGDScheduleFree([param])
    averaged.step()
    averaged.eval()
    assert param._version == 3


def test_autograd_is_told_of_the_write_by_all_that_writes_to_parameters():
    """Row 4b of docs/contract.md."""
    (param,) = tensors((3,))
    average = Average([param])
    average.update()
    with average.swap():
        assert param._version == 1
    assert param._version == 2
    average.copy_to()
    assert param._version == 3

    def loss():
        value = ((param - 2) ** 2).sum()
        (param.grad,) = torch.autograd.grad(value, [param])
        return value

    optim.LBFGS([param]).step(loss)
    assert param._version > 3
    version = param.grad._version
    clip_grad_norm_([param], 1e-3)
    assert param.grad._version == version + 1


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_gradient_whose_sign_pytorch_puts_off_is_read_with_it(shape, either_code):
    real, imaginary = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    optimizer = optim.SGD([real, imaginary], lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        torch.complex(real, imaginary).backward(torch.full(shape, 1 + 1j).conj())
        assert imaginary.grad.is_neg()
        optimizer.step()
    assert (real.item(), imaginary.item()) == (-2.0, 4.0)


def test_a_gradient_of_more_elements_whose_sign_is_put_off_is_refused_with_the_remedy(either_code):
    (param,) = tensors((3,))
    optimizer = optim.SGD([param])
    optimizer.step()
    param.grad = torch.ones(3, dtype=torch.complex64).conj().imag
    before = param.detach().clone()
    with pytest.raises(ValueError, match=r"negative of its values \(pass its resolve_neg\(\)\)"):
        optimizer.step()
    assert torch.equal(param.detach(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_tensor_of_inference_steps_though_its_writes_are_not_counted(dtype, either_code):
    with torch.inference_mode():
        param = torch.nn.Parameter(torch.ones(3, dtype=dtype), requires_grad=False)
    param.grad = torch.ones(3, dtype=dtype)
    optimizer = optim.SGD([param], lr=0.5)
    optimizer.step()
    optimizer.step()
    assert param.tolist() == [0.0, 0.0, 0.0]


def test_state_is_saved_and_loaded(either_code):
    params = tensors((3, 4), (5,))
    optimizer = optim.Adam(params)
    optimizer.step()
    saved = optimizer.state_dict()
    twin = optim.Adam(params)
    twin.load_state_dict(saved)
    for each in (optimizer, twin):
        assert each.state[params[0]]["exp_avg"].shape == (3, 4)
    twin.step()
    assert twin.state[params[0]]["step"] == 2


def test_a_state_dict_of_pytorch_loads():
    params = tensors((3, 4))
    theirs = torch.optim.Adam(params)
    theirs.step()
    optimizer = optim.Adam(params)
    optimizer.load_state_dict(theirs.state_dict())
    assert (
        optimizer.state[params[0]]["exp_avg"].tolist()
        == theirs.state[params[0]]["exp_avg"].tolist()
    )


def test_state_is_restored_from_a_checkpoint(tmp_path):
    params = tensors((3, 4), (5,))
    optimizer = optim.Adam(params)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"optimizer": optimizer})
        optimizer.step()
        checkpointer.restore(into={"optimizer": optimizer})
    for key, slots in optimizer.state_dict()["state"].items():
        for slot, value in slots.items():
            assert np.array_equal(value, before["state"][key][slot])


def test_a_state_that_does_not_fit_is_refused():
    params, others = tensors((3, 4)), tensors((5,))
    optimizer = optim.Adam(params)
    other = optim.Adam(others)
    other.step()
    with pytest.raises(ValueError, match="shape"):
        optimizer.load_state_dict(other.state_dict())


@pytest.mark.parametrize("set_to_none", [False, True])
def test_gradients_are_reset(set_to_none):
    (param,) = tensors((3,))
    (param.grad,) = torch.autograd.grad(param.pow(3).sum(), param, create_graph=True)
    grad = param.grad
    optim.SGD([param]).zero_grad(set_to_none=set_to_none)
    assert param.grad is None if set_to_none else (param.grad is grad and not grad.any())


def test_they_are_not_moved_and_the_error_says_who_moves_them():
    params = tensors((3,))
    with pytest.raises(TypeError, match=r"module.to\(device\)"):
        optim.SGD(params).to("cpu")


def sparse(param):
    param.grad = param.grad.to_sparse()


def meta(param):
    param.data = torch.empty(3, device="meta")
    param.grad = torch.empty(3, device="meta")


def of_another_type(param):
    param.data = param.data.to(torch.complex64)
    param.grad = torch.ones(3, dtype=torch.complex64)


REFUSED = [
    (sparse, ValueError, "gradient of parameter '0.0' is a Tensor of layout sparse_coo"),
    (meta, TypeError, "parameter '0.0' holds a Parameter on device meta"),
    (of_another_type, TypeError, "parameter '0.0' has dtype complex64"),
]


@pytest.mark.parametrize("has_stepped", [False, True])
@pytest.mark.parametrize(
    ("spoil", "error", "message"), REFUSED, ids=lambda v: getattr(v, "__name__", "")
)
def test_what_cannot_step_is_refused_by_name(spoil, error, message, has_stepped, either_code):
    params = tensors((3,), (4,))
    optimizer = optim.Adam(params)
    if has_stepped:
        optimizer.step()
    params[0].grad = None if spoil is meta else params[0].grad
    if spoil is meta:
        params[0] = torch.nn.Parameter(torch.empty(3, device="meta"))
        optimizer.param_groups[0]["params"][0] = params[0]
        params[0].grad = torch.empty(3, device="meta")
    else:
        params[0].grad = None if spoil is not sparse else params[0].grad
        spoil(params[0])
    before = params[1].detach().clone()
    with pytest.raises(error, match=message):
        optimizer.step()
    assert torch.equal(params[1].detach(), before)


def test_options_and_groups_are_those_of_all_inputs():
    params = tensors((3,))
    groups = [{"params": params, "param_names": ["w"], "lr": 1.0}]
    inputs = TorchInputs(groups, ["lr"])
    assert inputs.has_same_groups(groups)
    groups[0]["lr"] = 2.0
    assert inputs.options_changed()


def test_gradients_that_stay_are_not_looked_for_again():
    lucid_gpu.set_cpu_code("compiled")
    try:
        params = tensors((3,), (4,))
        inputs = TorchInputs([{"params": params, "param_names": ["a", "b"]}], [])
        inputs.take_data(), inputs.take_data()
        assert not inputs.gradients_may_have_moved()
        set_gradients(params, 1)
        inputs.take_data()
        assert inputs.gradients_may_have_moved()
    finally:
        lucid_gpu.set_cpu_code(None)


def test_a_gradient_of_another_type_is_told_apart_from_python_too():
    params = [torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16)) for _ in range(2)]
    params[1].grad_dtype = torch.float32
    params[0].grad, params[1].grad = torch.ones(3, dtype=torch.bfloat16), torch.ones(3)
    inputs = TorchInputs([{"params": params, "param_names": ["a", "b"]}], [])
    _, layouts = inputs.noted_gradients(inputs.hold(True))
    assert layouts.tolist() == [DENSE, DENSE]
    for param, dtype in zip(params, (torch.float32, torch.bfloat16), strict=True):
        param.grad = None
        param.grad_dtype = dtype
        param.grad = torch.ones(3, dtype=dtype)
    _, layouts = inputs.noted_gradients(inputs.hold(True))
    assert layouts.tolist() == [STRIDED, STRIDED]


def of_arrays(params, **options):
    return optim.AdamW(params, **options)


def of_pytorch(params, **options):
    return pytest.importorskip("lucid_gpu.torch").AdamW(params, **options)


def frozen_then_thawed(model):
    model[0].requires_grad_(False)
    yield
    model[0].requires_grad_(True)
    yield
    yield


def frozen_between(model):
    yield
    model[0].requires_grad_(False)
    yield
    model[0].requires_grad_(True)
    yield


def with_tied_weights(model):
    model[2].weight = model[0].weight
    yield
    yield


def replaced_in_place(model):
    yield
    with torch.no_grad():
        model[0].weight.copy_(torch.ones_like(model[0].weight))
    model[2].weight.data = model[2].weight.data.clone()
    yield


def loaded_in_between(model):
    yield
    model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})
    yield


LIVES = [
    frozen_then_thawed,
    frozen_between,
    with_tied_weights,
    replaced_in_place,
    loaded_in_between,
]


@pytest.mark.parametrize("make", [of_arrays, of_pytorch], ids=["arrays", "pytorch"])
@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.__name__)
def test_a_model_that_changes_meanwhile_trains_as_by_pytorch(life, make, either_code):
    models = []
    for library in (make, torch.optim.AdamW):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4)
        ).double()
        phases = life(model)
        next(phases)
        optimizer = library(model.parameters(), lr=0.1)
        for _ in [None, *phases]:
            for step in range(3):
                optimizer.zero_grad()
                model(torch.full((2, 4), float(step + 1)).double()).square().sum().backward()
                optimizer.step()
        models.append(model)
    for own, their in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(own, their, rtol=1e-9, atol=1e-12)
