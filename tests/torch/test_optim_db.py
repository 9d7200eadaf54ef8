"""PyTorch's own test data, ``optim_db``: every configuration of the classes offered steps alike."""

from __future__ import annotations

import copy

import pytest

from tests.torch.support import torch

pytest.importorskip("expecttest", reason="PyTorch's test data need it: pip install -e '.[oracle]'")
common = pytest.importorskip("torch.testing._internal.common_optimizers")
ours = pytest.importorskip("lucid_gpu.torch")

INFOS = {info.optim_cls.__name__: info for info in common.optim_db}
OFFERED = sorted(INFOS.keys() & set(ours.__all__))
CONFIGURATIONS = [
    pytest.param(name, each.kwargs, id=f"{name}-{each.desc}")
    for name in OFFERED
    for each in INFOS[name].optim_inputs_func(device="cpu")
]
SHAPES = [(4, 3), (5,), (), (2, 3, 2, 2)]


@pytest.fixture(autouse=True)
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def parameters():
    torch.manual_seed(3)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def with_gradients(params, step):
    torch.manual_seed(step)
    for position, param in enumerate(params):
        gradient = torch.randn(param.shape)
        param.grad = None if (step + position) % 5 == 4 else gradient


def execution(name, kwargs):
    return {**kwargs, "foreach": False} if not kwargs.get("fused") else kwargs


def test_every_class_is_driven_that_is_offered():
    assert len(OFFERED) == 11
    assert len(CONFIGURATIONS) >= 70


@pytest.mark.parametrize(("name", "kwargs"), CONFIGURATIONS)
def test_a_configuration_steps_alike(name, kwargs):
    own, theirs = parameters(), parameters()
    # A tensor among the options would be shared.
    mine = getattr(ours, name)(own, **copy.deepcopy(kwargs))
    other = getattr(torch.optim, name)(theirs, **execution(name, copy.deepcopy(kwargs)))
    for step in range(6):
        for params, optimizer in ((own, mine), (theirs, other)):
            with_gradients(params, step)
            optimizer.step()
        for a, b in zip(own, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("name", "kwargs"), CONFIGURATIONS)
def test_a_configuration_goes_on_in_pytorch_and_back(name, kwargs):
    own, theirs = parameters(), parameters()
    mine = getattr(ours, name)(own, **copy.deepcopy(kwargs))
    other = getattr(torch.optim, name)(theirs, **execution(name, copy.deepcopy(kwargs)))
    for step in range(6):
        for params, optimizer in ((own, mine), (theirs, other)):
            with_gradients(params, step)
            optimizer.step()
        if step == 2:
            a, b = copy.deepcopy(mine.state_dict()), copy.deepcopy(other.state_dict())
            mine.load_state_dict(b)
            other.load_state_dict(a)
    for a, b in zip(own, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def is_taken_here(each):
    """Whether PyTorch refuses a tensor as a number, which any number may be here."""
    return "Tensor" in each.optimizer_error_input.desc and "1-element" not in each.error_regex


ERRORS = [
    pytest.param(name, each, id=f"{name}-{each.optimizer_error_input.desc}")
    for name in OFFERED
    for each in INFOS[name].optim_error_inputs_func(device="cpu", dtype=torch.float32)
    if not is_taken_here(each)
]


@pytest.mark.parametrize(("name", "each"), ERRORS)
def test_what_pytorch_refuses_is_refused(name, each):
    given = each.optimizer_error_input
    params = parameters() if given.params is None else given.params
    if each.error_type is UserWarning:
        with pytest.warns(UserWarning, match=each.error_regex):
            getattr(ours, name)(params, **given.kwargs)
        return
    with pytest.raises((each.error_type, ValueError, TypeError)):
        getattr(ours, name)(params, **given.kwargs)
