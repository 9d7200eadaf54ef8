"""Section 1 of docs/contract.md: where the systems disagree, this is the decision."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from lucid_gpu import Parameter, optim
from lucid_gpu.optim.dialects import tiny_pytorch
from tests.contract.support import Foreign, array, host, trained, values


def trajectory(optimizer, param, gradients, device):
    """Step once for each gradient and return the values of the parameter after each."""
    seen = []
    for gradient in gradients:
        param.grad = array([gradient], device, np.float64)
        optimizer.step()
        seen.append(values(param)[0])
    return seen


def test_amsgrad_true_is_the_running_maximum_of_the_corrected_second_moment(device):
    param = trained([1.0], [0.0], device, dtype=np.float64)
    optimizer = optim.Adam([param], lr=0.1, amsgrad=True)
    seen = trajectory(optimizer, param, [1, 0.1, 0.1, 0.1], device)
    assert seen == pytest.approx([0.900000001, 0.847368423, 0.810468054, 0.781389834], abs=5e-10)


def test_amsgrad_raw_is_the_maximum_ahead_of_the_correction(device):
    param = trained([1.0], [0.0], device, dtype=np.float64)
    optimizer = optim.Adam([param], lr=0.1, amsgrad="raw")
    seen = trajectory(optimizer, param, [1, 0.1, 0.1, 0.1], device)
    assert seen == pytest.approx([0.900000001, 0.825918938, 0.762604584, 0.705259982], abs=5e-10)


def test_a_pytorch_state_dict_selects_amsgrad_raw(device):
    optimizer = optim.Adam([trained([1.0], [1.0], device)])
    group = {"lr": 0.1, "amsgrad": True, "foreach": None, "capturable": False, "params": [0]}
    moment = np.ones(1, np.float32)
    slots = dict.fromkeys(("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), moment)
    optimizer.load_state_dict({"state": {0: {"step": 3, **slots}}, "param_groups": [group]})
    assert optimizer.param_groups[0]["amsgrad"] == "raw"


def test_load_state_dict_has_the_signature_that_unites_the_systems():
    signature = inspect.signature(optim.Optimizer.load_state_dict)
    assert list(signature.parameters) == ["self", "state_dict", "strict", "model_clients"]
    assert signature.parameters["strict"].default is True
    assert signature.parameters["model_clients"].default is None
    assert signature.parameters["model_clients"].kind is inspect.Parameter.KEYWORD_ONLY


def test_zero_grad_sets_gradients_to_none_by_default(device):
    param = trained([1.0], [2.0], device)
    optim.SGD([param]).zero_grad()
    assert param.grad is None


def test_zero_grad_can_zero_the_buffer_that_exists(device):
    param = trained([1.0, 2.0], [3.0, 4.0], device)
    buffer = param.grad
    optim.SGD([param]).zero_grad(set_to_none=False)
    assert param.grad is buffer
    assert host(buffer).tolist() == [0.0, 0.0]


def test_zero_grad_never_allocates_a_buffer(device):
    param = Parameter([1.0], device=device)
    optim.SGD([param]).zero_grad(set_to_none=False)
    assert param.grad is None


def of_jax():
    return pytest.importorskip("jax.numpy").ones(2)


IMMUTABLE = {
    "read-only": lambda: np.frombuffer(b"\0" * 8, np.float32),
    "broadcast": lambda: np.broadcast_to(np.float32(1), (2,)),
    "of jax": of_jax,
    "a float": lambda: 1.0,
    "a tuple": lambda: (1.0, 2.0),
}


@pytest.mark.parametrize("kind", IMMUTABLE)
def test_an_immutable_gradient_cannot_be_zeroed_and_none_is(kind):
    first = trained([1.0, 2.0], [3.0, 4.0], "cpu", name="first")
    frozen = Foreign(np.ones(2, np.float32), IMMUTABLE[kind]())
    optimizer = optim.SGD([("first", first), ("frozen", frozen)])
    with pytest.raises(TypeError, match=r"the gradient of parameter 'frozen' .*zero_grad\(\) sets"):
        optimizer.zero_grad(set_to_none=False)
    assert first.grad.tolist() == [3, 4]
    optimizer.zero_grad()
    assert frozen.grad is None


@pytest.mark.parametrize("reset", ["clear_grad", "reset_grad"])
def test_clear_grad_and_reset_grad_are_zero_grad_by_another_name(device, reset):
    param = trained([1.0], [2.0], device)
    getattr(optim.SGD([param]), reset)()
    assert param.grad is None


def test_step_returns_none_without_a_closure(device):
    assert optim.SGD([trained([1.0], [1.0], device)]).step() is None


@pytest.mark.parametrize("result", [0.25, (0.5, "the answer names no source"), None])
def test_step_returns_what_the_closure_returned(device, result):
    optimizer = optim.SGD([trained([1.0], [1.0], device)])
    assert optimizer.step(lambda: result) is result


def test_step_returns_a_device_scalar_as_it_is(device):
    loss = array(0.5, device)
    assert optim.SGD([trained([1.0], [1.0], device)]).step(lambda: loss) is loss


def test_the_constructor_takes_dict_groups(device):
    one, two = Parameter([1.0], device=device), Parameter([2.0], device=device)
    optimizer = optim.SGD([{"params": [one]}, {"params": [two], "lr": 0.5}], lr=0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5]


def test_the_constructor_takes_an_iterable_of_parameters(device):
    params = [Parameter([1.0], device=device), Parameter([2.0], device=device)]
    assert optim.SGD(iter(params)).param_groups[0]["params"] == params


def test_the_constructor_takes_named_parameters(device):
    params = {"w": Parameter([1.0], device=device), "b": Parameter([2.0], device=device)}
    group = optim.SGD(params.items()).param_groups[0]
    assert group["params"] == list(params.values())
    assert group["param_names"] == ["w", "b"]


def test_an_empty_parameter_list_is_an_error():
    with pytest.raises(ValueError, match="params is empty"):
        optim.SGD([])


def test_the_stub_answers_normally_without_parameters():
    stub = optim.OptimizerStub()
    calls = []
    handle = stub.register_step_post_hook(lambda *_: calls.append("post"))
    stub.step()
    handle.remove()
    stub.step()
    stub.zero_grad()
    assert calls == ["post"]
    assert stub.state_dict() == {"state": {}, "param_groups": []}


def test_the_first_momentum_buffer_is_the_decayed_gradient_itself(device):
    param = trained([1.0], [0.5], device)
    optimizer = optim.SGD([param], lr=0.1, momentum=0.9, weight_decay=0.2)
    optimizer.step()
    assert host(optimizer.state[param]["momentum_buffer"])[0] == pytest.approx(0.7)


def test_the_dialect_starts_momentum_at_zero_and_damps_it(device):
    param = trained([1.0], [0.5], device)
    optimizer = tiny_pytorch.SGD([param], lr=0.1, momentum=0.9, weight_decay=0.2)
    optimizer.step()
    assert host(optimizer.state[param]["momentum_buffer"])[0] == pytest.approx(0.05)


def test_the_dialect_has_no_rule_of_its_own():
    for own, base in ((tiny_pytorch.SGD, optim.SGD), (tiny_pytorch.Adam, optim.Adam)):
        assert own.update is base.update
        assert own.kernel is base.kernel
        assert own.scalars is base.scalars
        assert set(vars(own)) <= {"__init__", "__doc__", "__module__"}


def test_state_dicts_of_the_dialect_and_of_the_rule_are_the_same(device):
    tiny, plain = (trained([1.0], [0.5], device) for _ in range(2))
    one = tiny_pytorch.SGD([tiny], lr=0.1, momentum=0.9, weight_decay=0.2)
    one.step()
    two = optim.SGD([plain])
    two.load_state_dict(one.state_dict())
    plain.data[...] = tiny.data
    one.step()
    two.step()
    assert values(plain) == values(tiny)
    one.load_state_dict(two.state_dict())


def test_adam_takes_its_decay_rates_as_betas(device):
    optimizer = optim.Adam([Parameter([1.0], device=device)], betas=(0.8, 0.95))
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.95)


def test_the_dialect_takes_them_as_beta1_and_beta2(device):
    optimizer = tiny_pytorch.Adam([Parameter([1.0], device=device)], beta1=0.8, beta2=0.95)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.95)
    assert optimizer.param_groups[0]["lr"] == 0.01
