"""Muon: against PyTorch's, and what is its own: kinds of groups, dtypes, more dimensions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.optim import AdamW, Muon, pytorch
from lucid_gpu.schedules import Scheduler
from tests.contract.support import host, trained, unchanged
from tests.stepping import bits

THETA = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
GRADIENT = [[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]
GOLDEN = [
    [0.91622080669, 1.98873163599],
    [2.98746327198, 3.86483142934],
    [4.88495244268, 5.90114735066],
]
CONFIGURATIONS = [
    {},
    {"lr": 0.01},
    {"weight_decay": 0.2},
    {"momentum": 0.8},
    {"ns_steps": 6},
    {"ns_coefficients": (3.4, -4.7, 2.0)},
    {"nesterov": False},
    {"adjust_lr_fn": "match_rms_adamw"},
]
SHAPES = [(8, 8), (17, 5), (6, 40)]


def test_the_numbers_come_out(device):
    param = trained(THETA, GRADIENT, device, dtype=np.float64)
    Muon([param], lr=0.1, weight_decay=0.1).step()
    np.testing.assert_allclose(host(param), GOLDEN, rtol=1e-11)


def test_the_numbers_of_an_iteration_in_bfloat16_are_pytorchs():
    param = trained(THETA, GRADIENT, "cpu", dtype=np.float32)
    Muon([param], lr=0.1, weight_decay=0.1, ns_dtype="bfloat16").step()
    expected = [[0.9173, 1.9895], [2.9885, 3.8691], [4.8868, 5.9044]]
    np.testing.assert_allclose(param.numpy(), expected, atol=1e-4)


def test_singular_values_become_one(device, rng):
    gradient = rng.normal(size=(7, 4))
    param = trained(np.zeros((7, 4)), gradient, device, dtype=np.float64)
    cubic = {"ns_coefficients": (1.5, -0.5, 0.0), "ns_steps": 60}
    Muon([param], lr=1.0, adjust_lr_fn="original", **cubic).step()
    left, _, right = np.linalg.svd(gradient, full_matrices=False)
    np.testing.assert_allclose(-host(param), np.sqrt(7 / 4) * left @ right, atol=1e-12)


@pytest.mark.parametrize(("rows", "columns"), [(7, 4), (4, 7)])
def test_an_update_can_have_the_size_of_adamws(rows, columns, rng):
    sizes = []
    for adjust_lr_fn in ("match_rms_adamw", "original"):
        param = trained(np.zeros((rows, columns)), np.eye(rows, columns), "cpu", dtype=np.float64)
        Muon([param], lr=1.0, adjust_lr_fn=adjust_lr_fn).step()
        sizes.append(np.linalg.norm(param.data))
    expected = 0.2 * np.sqrt(max(rows, columns)) / np.sqrt(max(1, rows / columns))
    assert sizes[0] / sizes[1] == pytest.approx(expected)


def test_trailing_axes_are_flattened(device, rng):
    values, gradient = rng.normal(size=(2, 3, 2, 4)).astype("f4")
    whole = trained(values, gradient, device)
    flat = trained(values.reshape(3, 8), gradient.reshape(3, 8), device)
    for param in (whole, flat):
        Muon([param], lr=0.1).step()
    np.testing.assert_array_equal(bits(whole.data).reshape(3, 8), bits(flat.data))


@pytest.mark.parametrize(("ns_dtype", "rtol"), [("float64", 1e-6), ("bfloat16", 0.05)])
def test_the_iteration_computes_in_the_dtype_that_it_is_told(ns_dtype, rtol, device, rng):
    gradient = rng.normal(size=(6, 9))
    results = []
    for dtype, options in ((np.float64, {}), (np.float32, {"ns_dtype": ns_dtype})):
        param = trained(np.zeros((6, 9)), gradient, device, dtype=dtype)
        Muon([param], lr=1.0, **options).step()
        assert param.dtype == dtype
        results.append(host(param))
    distance = np.abs(results[0] - results[1]).max()
    assert rtol / 1e4 < distance < rtol


def test_a_group_of_the_other_kind_steps_as_adamw_to_the_bit(rng):
    values, *gradients = rng.normal(size=(5, 9)).astype("f4")
    own, other = Parameter(values.copy()), Parameter(values.copy())
    options = {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.3}
    ours = Muon([{"params": [own], "kind": "adamw", **options}])
    theirs = AdamW([other], **options)
    for gradient in gradients:
        own.grad = other.grad = gradient
        ours.step()
        theirs.step()
    np.testing.assert_array_equal(bits(own.data), bits(other.data))


def test_options_that_such_a_group_lacks_are_adamws():
    groups = [{"params": [Parameter([[1.0]])]}, {"params": [Parameter([1.0])], "kind": "adamw"}]
    optimizer = Muon(groups, lr=0.5, weight_decay=0.0)
    adamw = AdamW([Parameter([1.0])]).param_groups[0]
    own = optimizer.param_groups[1]
    for option in ("lr", "betas", "eps", "weight_decay"):
        assert own[option] == adamw[option]


@pytest.mark.parametrize("values", [1.0, [1.0, 2.0]])
def test_a_parameter_that_is_no_matrix_is_refused_by_name(values):
    param = Parameter(values, name="bias")
    text = rf"parameter 'bias' has {param.data.ndim} dimensions, and Muon .* \"kind\": \"adamw\""
    with pytest.raises(ValueError, match=text):
        Muon([param])
    optimizer = Muon([Parameter([[1.0]], name="w")])
    with unchanged(optimizer), pytest.raises(ValueError, match=text):
        optimizer.add_param_group({"params": [param]})


def test_a_kind_that_is_edited_or_loaded_is_held_against_the_parameters():
    vector = trained([1.0], [1.0], "cpu", name="bias")
    optimizer = Muon([{"params": [vector], "kind": "adamw"}])
    saved = optimizer.state_dict()
    saved["param_groups"][0]["kind"] = "muon"
    with unchanged(optimizer), pytest.raises(ValueError, match="'bias': parameter has 1 dimension"):
        optimizer.load_state_dict(saved)
    with unchanged(optimizer), pytest.warns(UserWarning, match="'bias': parameter has 1 dimension"):
        optimizer.load_state_dict(saved, strict=False)
    optimizer.param_groups[0]["kind"] = "muon"
    with unchanged(optimizer), pytest.raises(ValueError, match="parameter 'bias' has 1 dimension"):
        optimizer.step()


def test_an_edited_kind_needs_the_rates_of_adamw():
    optimizer = Muon([trained([[1.0]], [[1.0]], "cpu")])
    optimizer.param_groups[0]["kind"] = "adamw"
    with unchanged(optimizer), pytest.raises(ValueError, match='kind "adamw" needs betas'):
        optimizer.step()


def test_a_schedule_of_the_momentum_means_that_of_each_kind():
    groups = [{"params": [Parameter([[1.0]])]}, {"params": [Parameter([1.0])], "kind": "adamw"}]
    optimizer = Muon(groups)
    Scheduler(optimizer, momentum=lambda t, base: 0.5)
    assert optimizer.param_groups[0]["momentum"] == 0.5
    assert optimizer.param_groups[1]["betas"] == (0.5, 0.999)


def test_nan_reaches_the_whole_matrix_and_no_other(device):
    spoilt = trained(np.ones((2, 3)), np.full((2, 3), np.nan), device)
    sound = trained(np.ones((2, 3)), np.ones((2, 3)), device)
    Muon([spoilt, sound]).step()
    assert np.isnan(host(spoilt)).all()
    assert np.isfinite(host(sound)).all()


torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[oracle]'")


class Race:
    """Both Muons over equal parameters, fed equal gradients."""

    def __init__(self, shape, dtype, ours, theirs):
        self.rng = np.random.default_rng(0)
        start = self.rng.uniform(0.5, 1.5, shape).astype(dtype)
        self.own = Parameter(start.copy())
        self.their = torch.nn.Parameter(torch.from_numpy(start.copy()))
        self.ours = Muon([self.own], **ours)
        self.theirs = torch.optim.Muon([self.their], **theirs)

    def run(self, steps):
        for _ in range(steps):
            gradient = self.rng.normal(size=self.own.shape).astype(self.own.dtype)
            self.own.grad = gradient
            self.their.grad = torch.from_numpy(gradient.copy())
            self.ours.step()
            self.theirs.step()

    def distance(self):
        """How far apart they are, relative to the largest element."""
        theirs = self.their.detach().numpy()
        return np.abs(self.own.data - theirs).max() / np.abs(theirs).max()


CASES = list(itertools.product(CONFIGURATIONS, SHAPES))


@pytest.mark.parametrize(("dtype", "most"), [("float32", 3.1e-7), ("float64", 5.9e-16)])
@pytest.mark.parametrize(("options", "shape"), CASES, ids=str)
def test_it_is_pytorchs_in_the_dtype_of_the_parameter(options, shape, dtype, most, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    race = Race(shape, dtype, options, options)
    race.run(20)
    assert race.distance() <= most


@pytest.mark.parametrize(("ns_dtype", "most"), [("bfloat16", 5e-5), (None, 1.2e-3)])
@pytest.mark.parametrize(("options", "shape"), CASES, ids=str)
def test_it_is_near_to_pytorchs_in_its_bfloat16(options, shape, ns_dtype, most):
    race = Race(shape, "float32", {**options, "ns_dtype": ns_dtype}, options)
    race.run(20)
    assert race.distance() <= most * options.get("lr", 1e-3) / 1e-3


def test_every_configuration_of_pytorchs_own_tests_agrees(monkeypatch):
    pytest.importorskip("expecttest", reason="needs PyTorch's own tests")
    from torch.testing._internal.common_optimizers import optim_db

    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    (info,) = [each for each in optim_db if each.optim_cls is torch.optim.Muon]
    for given in info.optim_inputs_func(device="cpu"):
        race = Race((6, 4), "float64", given.kwargs, given.kwargs)
        race.run(20)
        # PyTorch computes with a rate that is a tensor in float32.
        is_rounded = isinstance(given.kwargs.get("lr"), torch.Tensor)
        assert race.distance() <= (5e-7 if is_rounded else 5.9e-16)


def test_a_state_dict_from_here_goes_on_in_pytorch(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    race = Race((6, 4), "float64", {"lr": 0.05, "momentum": 0.8, "ns_dtype": "float64"}, {})
    race.run(3)
    with torch.no_grad():
        race.their.copy_(torch.from_numpy(race.own.data))
    race.theirs.load_state_dict(pytorch.export(race.ours.state_dict()))
    assert set(race.theirs.param_groups[0]) == set(torch.optim.Muon([race.their]).param_groups[0])
    assert set(race.theirs.state[race.their]) == {"momentum_buffer"}
    race.run(3)
    assert race.distance() <= 5.9e-16


def test_a_group_of_the_other_kind_is_not_exported():
    saved = Muon([{"params": [Parameter([1.0])], "kind": "adamw"}]).state_dict()
    with pytest.raises(ValueError, match='kind "adamw" is unknown to the Muon of PyTorch'):
        pytorch.export(saved)


def test_a_state_dict_of_pytorch_goes_on_here(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    race = Race((6, 4), "float64", {}, {"lr": 0.05, "momentum": 0.8, "ns_steps": 6})
    race.run(3)
    race.own.data[...] = race.their.detach().numpy()
    race.ours = Muon([race.own])
    race.ours.load_state_dict(race.theirs.state_dict())
    assert race.ours.param_groups[0]["momentum"] == 0.8
    assert race.ours.state[race.own]["step"] == 1
    race.run(3)
    assert race.distance() <= 5.9e-16
