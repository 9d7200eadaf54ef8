"""Adafactor: against PyTorch's, its numbers, and that no step waits for a norm."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.optim import Adafactor, pytorch
from tests.contract.support import host, trained
from tests.stepping import place

GRADIENTS = [0.5, -0.25, 0.1, 0.3]
GOLDEN = [0.9, 0.959643830474, 0.92717760532, 0.834459844788]


def test_the_numbers_come_out(device):
    param = Parameter(place(np.array([1.0]), device).view)
    optimizer = Adafactor([param], lr=0.1)
    seen = []
    for gradient in GRADIENTS:
        param.grad = place(np.array([gradient]), device).view
        optimizer.step()
        seen.append(param.numpy()[0])
    assert seen == pytest.approx(GOLDEN, rel=2e-12)


def test_the_numbers_of_a_matrix_come_out(device):
    values, gradient = [[1, 2], [3, 4], [5, 6]], [[1, 0], [0, 2], [1, 1]]
    param = trained(values, gradient, device, dtype=np.float64)
    optimizer = Adafactor([param], lr=0.1)
    for _ in range(2):
        optimizer.step()
    expected = [[-0.271916599048, 2], [3, 3.19556931065], [4.10061914771, 5.43118160456]]
    np.testing.assert_allclose(host(param), expected, rtol=1e-11)


def test_the_largest_step_is_in_scale_with_the_parameter(rng):
    for scale in (1e-6, 1.0, 100.0):
        param = trained(np.full(4, scale), np.ones(4), "cpu", dtype=np.float64)
        Adafactor([param], lr=0.1).step()
        np.testing.assert_allclose(scale - param.data, 0.1 * max(1e-3, scale))


def test_the_machine_epsilon_is_that_of_each_parameter():
    """PyTorch takes that of the first parameter of a group for all."""
    alone, beside = (trained(np.ones(2), [1e-12, 1e-10], "cpu", dtype=np.float64) for _ in range(2))
    first = trained([1.0], [1.0], "cpu")
    Adafactor([alone]).step()
    Adafactor([first, beside]).step()
    assert beside.data.tolist() == alone.data.tolist()
    assert 1 - beside.data[0] > 1e-5


@pytest.mark.parametrize("eps", [(np.float64(1e-9), np.float32(0.5)), [None, np.array(0.5)]])
def test_numbers_of_numpy_in_eps_become_pythons(eps):
    param = trained([1.0], [1.0], "cpu")
    optimizer = Adafactor([param], eps=eps)
    optimizer.step()
    own = optimizer.param_groups[0]["eps"]
    assert type(own) is type(eps)
    assert [type(value) for value in own] == [type(None) if eps[0] is None else float, float]
    assert param.dtype == np.float32


def test_no_step_waits_for_a_norm(emulated):
    params = [trained(np.ones((3, 4)), np.ones((3, 4)), "cuda:0"), trained([1.0], [1.0], "cuda:0")]
    optimizer = Adafactor(params)
    optimizer.step()
    emulated.record.synchronizations = 0
    emulated.record.downloads.clear()
    optimizer.step()
    assert (emulated.record.synchronizations, emulated.record.downloads) == (0, [])


@pytest.mark.parametrize("shape", [(3, 4), (4,)])
def test_a_gradient_of_zeros_moves_nothing(shape, device):
    param = trained(np.ones(shape), np.zeros(shape), device)
    Adafactor([param]).step()
    assert (host(param) == 1).all()


def test_nan_reaches_what_shares_a_norm_and_no_other_parameter(device):
    spoilt = trained([1.0, 2.0], [np.nan, 0.5], device)
    sound = trained([1.0, 2.0], [0.5, 0.5], device)
    Adafactor([spoilt, sound]).step()
    assert np.isnan(host(spoilt)).all()
    assert np.isfinite(host(sound)).all()


torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[oracle]'")

SHAPES = [(), (17,), (5, 9), (3, 2, 6), (2, 3, 2, 4)]
CHOICES = {
    "lr": (0.001, 0.01),
    "weight_decay": (0.0, 0.1),
    "beta2_decay": (-0.8, -1.0),
    "d": (1.0, 1.5),
    "maximize": (False, True),
}
CASES = [dict(zip(CHOICES, chosen, strict=True)) for chosen in itertools.product(*CHOICES.values())]


class Race:
    """Both Adafactors over equal parameters, fed equal gradients."""

    def __init__(self, dtype, ours, theirs):
        self.rng, self.dtype = np.random.default_rng(0), dtype
        starts = [np.asarray(self.rng.uniform(0.5, 1.5, shape), dtype) for shape in SHAPES]
        self.own = [Parameter(start.copy()) for start in starts]
        self.their = [torch.nn.Parameter(torch.from_numpy(start.copy())) for start in starts]
        self.ours = Adafactor(self.own, **ours)
        self.theirs = torch.optim.Adafactor(self.their, **theirs, foreach=False)

    def run(self, steps):
        for _ in range(steps):
            for own, their in zip(self.own, self.their, strict=True):
                own.grad = np.asarray(self.rng.normal(size=own.shape), self.dtype)
                their.grad = torch.from_numpy(own.grad.copy())
            self.ours.step()
            self.theirs.step()

    def distance(self):
        """How far apart they are, in ulps of elements that are no smaller than 0.1."""
        found = []
        for own, their in zip(self.own, self.their, strict=True):
            ours, theirs = np.atleast_1d(own.data), np.atleast_1d(their.detach().numpy())
            far = np.abs(ours - theirs) / np.spacing(np.abs(theirs))
            found.append(far[np.abs(theirs) >= 0.1].max(initial=0))
        return max(found)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", CASES, ids=str)
def test_it_is_pytorchs(options, dtype):
    race = Race(dtype, options, options)
    race.run(20)
    assert race.distance() <= 3


def test_every_configuration_of_pytorchs_own_tests_agrees():
    pytest.importorskip("expecttest", reason="needs PyTorch's own tests")
    from torch.testing._internal.common_optimizers import optim_db

    (info,) = [each for each in optim_db if each.optim_cls is torch.optim.Adafactor]
    for given in info.optim_inputs_func(device="cpu"):
        race = Race("float32", given.kwargs, given.kwargs)
        race.run(20)
        assert race.distance() <= 3


def test_a_state_dict_from_here_goes_on_in_pytorch():
    race = Race("float64", {"lr": 0.01, "d": 1.5, "eps": (1e-9, 1e-2)}, {})
    race.run(3)
    with torch.no_grad():
        for own, their in zip(race.own, race.their, strict=True):
            their.copy_(torch.from_numpy(own.data))
    race.theirs.load_state_dict(pytorch.export(race.ours.state_dict()))
    assert race.theirs.param_groups[0]["eps"] == (1e-9, 1e-2)
    assert race.theirs.state[race.their[0]]["step"] == 3
    race.run(3)
    assert race.distance() <= 3


def test_a_state_dict_of_pytorch_goes_on_here():
    race = Race("float64", {}, {"lr": 0.05, "d": 1.5, "eps": (1e-9, 1e-2)})
    race.run(3)
    for own, their in zip(race.own, race.their, strict=True):
        own.data[...] = their.detach().numpy()
    race.ours = Adafactor(race.own)
    race.ours.load_state_dict(race.theirs.state_dict())
    assert race.ours.param_groups[0]["eps"] == (1e-9, 1e-2)
    assert race.ours.state[race.own[0]]["step"] == 3
    race.run(3)
    assert race.distance() <= 3
