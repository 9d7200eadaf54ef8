"""PyTorch's own test data, ``optim_db``: configurations step alike, bad options are refused."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from lucid_gpu import Parameter
from tests import array_rules, rules

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[oracle]'")
pytest.importorskip("expecttest", reason="PyTorch's test data need it: pip install -e '.[oracle]'")
common_optimizers = pytest.importorskip("torch.testing._internal.common_optimizers")

OURS = {kind.__name__: kind for kind in rules.optimizers()}
INFOS = {info.optim_cls.__name__: info for info in common_optimizers.optim_db}
EXECUTION = ("foreach", "fused")
OFFERED = sorted(OURS.keys() & INFOS.keys())


def options_of(kwargs):
    """Options as this package spells them."""
    options = {k: v.item() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
    for name in EXECUTION:
        options.pop(name, None)
    if options.get("amsgrad"):
        options["amsgrad"] = "raw"
    return options


CONFIGURATIONS = [
    pytest.param(name, each.kwargs, id=f"{name}-{each.desc}")
    for name in OFFERED
    for each in INFOS[name].optim_inputs_func(device="cpu")
]


def test_every_class_that_pytorch_has_too_is_driven():
    assert set(OFFERED) == {
        name for name in OURS if inspect.isclass(getattr(torch.optim, name, None))
    }
    assert len(CONFIGURATIONS) >= 70


@pytest.mark.parametrize(("name", "kwargs"), CONFIGURATIONS)
def test_its_configurations_step_alike(name, kwargs):
    rng = np.random.default_rng(1)
    start = rng.normal(size=(4, 3))
    own, their = Parameter(start.copy()), torch.nn.Parameter(torch.from_numpy(start.copy()))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        ours = OURS[name]([own], **options_of(kwargs))
        theirs = INFOS[name].optim_cls([their], **{**kwargs, "foreach": False})
        for _ in range(10):
            gradient = rng.normal(size=start.shape)
            own.grad, their.grad = gradient.copy(), torch.from_numpy(gradient)
            ours.step()
            theirs.step()
            np.testing.assert_allclose(own.data, their.detach().numpy(), rtol=1e-11, atol=1e-13)
    finally:
        torch.set_default_dtype(before)


def is_bad_here_too(kwargs):
    """Whether the fault is not only how PyTorch runs it: here, any number may be a tensor."""
    is_tensor = any(isinstance(rate, torch.Tensor) for rate in kwargs.get("betas", ()))
    return "foreach" not in kwargs and not is_tensor


ERRORS = [
    pytest.param(
        name,
        each.optimizer_error_input.params,
        each.optimizer_error_input.kwargs,
        each.error_type,
        id=f"{name}-{each.optimizer_error_input.desc}",
    )
    for name in OFFERED
    for each in INFOS[name].optim_error_inputs_func(device="cpu", dtype=torch.float32)
    if is_bad_here_too(each.optimizer_error_input.kwargs)
]


def test_every_class_has_parameters_and_options_that_are_bad():
    common = len(common_optimizers.get_error_inputs_for_all_optims("cpu", torch.float32))
    assert common == 6
    for name in OFFERED:
        assert sum(each.values[0] == name for each in ERRORS) > common


def listed(params):
    """Parameters as this package wants them: a group of one is a list of one."""
    if params is None:
        return [Parameter([1.0])]
    if isinstance(params, list) and isinstance(params[0], dict):
        return [
            {**group, "params": [own] if isinstance(own, torch.Tensor) else own}
            for group in params
            for own in [group["params"]]
        ]
    return params


IN_ARRAY_CODE = {kind.__name__: kind for kind in array_rules.optimizers()}
ACCEPTED_HERE = (
    "only support 2D parameters",  # trailing axes are flattened
    "dense params required",  # sparse tensors are none of ours
    "dense params required in param_groups",
    "complex not supported",  # refused ahead of the step, by the dtype
    "does not support complex parameters",
)
ERRORS_IN_ARRAY_CODE = [
    pytest.param(
        name,
        each.optimizer_error_input.params,
        each.optimizer_error_input.kwargs,
        each.error_type,
        id=f"{name}-{each.optimizer_error_input.desc}",
    )
    for name in sorted(IN_ARRAY_CODE)
    for each in INFOS[name].optim_error_inputs_func(device="cpu", dtype=torch.float32)
    if is_bad_here_too(each.optimizer_error_input.kwargs)
    and each.optimizer_error_input.desc not in ACCEPTED_HERE
]


@pytest.mark.parametrize(("name", "params", "kwargs", "error"), [*ERRORS, *ERRORS_IN_ARRAY_CODE])
def test_what_is_bad_is_refused(name, params, kwargs, error):
    is_of_wrong_type = isinstance(kwargs.get("lr"), torch.Tensor)
    with pytest.raises(TypeError if is_of_wrong_type else error):
        {**OURS, **IN_ARRAY_CODE}[name](listed(params), **kwargs)
