"""SparseAdam: against PyTorch's, to the bit, and what it refuses."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from lucid_gpu import Parameter, RowGradient
from lucid_gpu.optim import Adam, SparseAdam, pytorch
from tests.contract.support import array, host, trained, unchanged
from tests.stepping import bits


def table(device="cpu", shape=(6, 3), dtype=np.float32, name="table"):
    """A parameter of random elements."""
    return Parameter(array(np.random.default_rng(1).normal(size=shape), device, dtype), name=name)


def textbook(theta, steps, lr, betas, eps):
    """Adam on the rows that there are, element by element in float64."""
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for t, (rows, values) in enumerate(steps, 1):
        dense = np.zeros_like(theta)
        np.add.at(dense, rows, values)
        for row in set(rows):
            m[row] = betas[0] * m[row] + (1 - betas[0]) * dense[row]
            v[row] = betas[1] * v[row] + (1 - betas[1]) * dense[row] ** 2
            scale = lr * math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t)
            theta[row] -= scale * m[row] / (np.sqrt(v[row]) + eps)
    return theta


def test_it_agrees_with_the_textbook(device, rng):
    param = table(device, dtype=np.float64)
    start, options = host(param).copy(), {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-6}
    optimizer = SparseAdam([param], **options)
    steps = [(rng.integers(0, 6, 4).tolist(), rng.normal(size=(4, 3))) for _ in range(5)]
    for rows, values in steps:
        own = array(rows, device, np.int64), array(values, device, np.float64)
        param.grad = RowGradient(*own)
        optimizer.step()
    np.testing.assert_allclose(host(param), textbook(start, steps, **options), rtol=1e-12)


def test_rows_that_a_gradient_lacks_stay_and_do_not_decay(device):
    param = table(device)
    optimizer = SparseAdam([param], lr=0.1)
    param.grad = RowGradient(array([1, 3], device, np.int64), array(np.ones((2, 3)), device))
    optimizer.step()
    before = [host(a).copy() for a in (param.data, optimizer.state[param]["exp_avg"])]
    param.grad = RowGradient(array([3], device, np.int64), array(np.ones((1, 3)), device))
    optimizer.step()
    after = [host(a) for a in (param.data, optimizer.state[param]["exp_avg"])]
    for then, now in zip(before, after, strict=True):
        others = [0, 1, 2, 4, 5]
        np.testing.assert_array_equal(bits(now[others]), bits(then[others]))
        assert (now[3] != then[3]).all()


def test_a_gradient_without_rows_counts_as_a_step(device):
    param = table(device)
    optimizer = SparseAdam([param])
    before = bits(param.data)
    param.grad = RowGradient(array([], device, np.int64), array(np.ones((0, 3)), device))
    optimizer.step()
    assert optimizer.state[param]["step"] == 1
    np.testing.assert_array_equal(bits(param.data), before)


def test_on_every_row_it_is_adam_but_for_where_eps_is_added(rng):
    sparse, dense = table(dtype=np.float64), table(dtype=np.float64)
    ours, adam = SparseAdam([sparse], lr=0.1, eps=1e-300), Adam([dense], lr=0.1, eps=0.0)
    for _ in range(4):
        values = rng.normal(size=(6, 3))
        order = rng.permutation(6)
        sparse.grad, dense.grad = RowGradient(order, values[order]), values
        ours.step()
        adam.step()
    np.testing.assert_allclose(sparse.data, dense.data, rtol=1e-12)


def test_devices_agree_to_the_bit_where_no_number_is_subnormal(accelerator, rng):
    """Row sums are exact on every device; an emulated one has NumPy's operations beside."""
    results = []
    for home in ("cpu", accelerator):
        draw = np.random.default_rng(3)
        param = table(home)
        optimizer = SparseAdam([param], lr=0.1)
        for _ in range(3):
            rows = draw.integers(0, 6, 50)
            values = draw.normal(size=(50, 3))
            param.grad = RowGradient(array(rows, home, np.int64), array(values, home))
            optimizer.step()
        results.append(host(param))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6)


REFUSED = [
    (np.ones((6, 3), np.float32), r"is a dense array, and SparseAdam takes RowGradient\(rows, "),
    ([1.0], "is a list, and SparseAdam takes RowGradient"),
    (RowGradient([0, 6], np.ones((2, 3), "f4")), "has row 6, but the parameter has rows 0 to 5"),
    (RowGradient([-1, 2], np.ones((2, 3), "f4")), "has row -1, but the parameter has rows 0 to 5"),
    (RowGradient([0], np.ones((1, 4), "f4")), r"has values of shape \(1, 4\), but .* \(1, 3\)"),
    (RowGradient([0], np.ones((1, 3))), "has dtype float64, but for its parameter .* float32"),
]


@pytest.mark.parametrize(("gradient", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_a_gradient_that_does_not_fit_is_refused_before_anything_was_changed(gradient, text):
    first, second = table(name="first"), table()
    optimizer = SparseAdam([first, second])
    first.grad = RowGradient([0], np.ones((1, 3), np.float32))
    second.__dict__["_grad"] = gradient
    first_before, second_before = bits(first.data), bits(second.data)
    with pytest.raises(ValueError, match=f"the gradient of parameter 'table' {text}"):
        optimizer.step()
    np.testing.assert_array_equal(bits(first.data), first_before)
    np.testing.assert_array_equal(bits(second.data), second_before)
    assert len(optimizer.state) == 0


def test_a_gradient_elsewhere_is_refused(emulated):
    param = table("cuda:0")
    param.__dict__["_grad"] = RowGradient([0], np.ones((1, 3), np.float32))
    with pytest.raises(ValueError, match=r"has device cpu, but .* cuda:0: move with .to\('cuda:0'"):
        SparseAdam([param]).step()


def test_a_parameter_without_dimensions_is_refused_by_name():
    param = trained(1.0, 1.0, "cpu", name="scale")
    with pytest.raises(ValueError, match="parameter 'scale' has no dimensions, so no rows"):
        SparseAdam([param])
    optimizer = SparseAdam([table()])
    with unchanged(optimizer), pytest.raises(ValueError, match="has no dimensions, so no rows"):
        optimizer.add_param_group({"params": [param]})


def test_nan_stays_in_its_row(device):
    param = table(device)
    values = np.ones((2, 3))
    values[0] = np.nan
    param.grad = RowGradient(array([1, 4], device, np.int64), array(values, device))
    SparseAdam([param]).step()
    assert np.isnan(host(param)).any(axis=1).tolist() == [False, True] + [False] * 4


torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[oracle]'")

CHOICES = {
    "lr": (1e-3, 0.1),
    "betas": ((0.9, 0.999), (0.5, 0.9)),
    "maximize": (False, True),
}
CASES = [dict(zip(CHOICES, chosen, strict=True)) for chosen in itertools.product(*CHOICES.values())]
CASES.append({"eps": 1e-3})


class Race:
    """Both SparseAdams over equal parameters, fed equal gradients."""

    def __init__(self, shape, dtype, ours, theirs):
        self.rng, self.dtype = np.random.default_rng(0), dtype
        start = self.rng.normal(size=shape).astype(dtype)
        self.own = Parameter(start.copy())
        self.their = torch.nn.Parameter(torch.from_numpy(start.copy()))
        self.ours = SparseAdam([self.own], **ours)
        self.theirs = torch.optim.SparseAdam([self.their], **theirs)

    def run(self, steps, count=9):
        for _ in range(steps):
            rows = self.rng.integers(0, len(self.own), count)
            values = self.rng.normal(size=(count, *self.own.shape[1:])).astype(self.dtype)
            self.own.grad = RowGradient(rows, values)
            self.their.grad = torch.sparse_coo_tensor(
                torch.from_numpy(rows[None]),
                torch.from_numpy(values),
                self.own.shape,
                check_invariants=True,
            )
            self.ours.step()
            self.theirs.step()

    def assert_same(self):
        np.testing.assert_array_equal(bits(self.own.data), bits(self.their.detach().numpy()))
        for slot in ("exp_avg", "exp_avg_sq"):
            theirs = self.theirs.state[self.their][slot].numpy()
            np.testing.assert_array_equal(bits(self.ours.state[self.own][slot]), bits(theirs))
        assert self.ours.state[self.own]["step"] == self.theirs.state[self.their]["step"]


@pytest.fixture
def root(monkeypatch):
    """Square roots as PyTorch takes them, which here and there are one ulp off."""
    sqrt = np.sqrt

    def theirs(value):
        is_array = isinstance(value, np.ndarray)
        return torch.from_numpy(value).sqrt().numpy() if is_array else sqrt(value)

    monkeypatch.setattr(np, "sqrt", theirs)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((5, 7), "float32"), ((4, 2, 3), "float32"), ((5, 7), "float64")]
)
@pytest.mark.parametrize("options", CASES, ids=str)
def test_but_for_the_root_it_is_pytorchs_to_the_bit_with_duplicated_rows(
    options, shape, dtype, root
):
    race = Race(shape, dtype, options, options)
    race.run(20)
    race.assert_same()


def test_an_empty_gradient_counts_there_too(root):
    race = Race((4, 2), "float32", {}, {})
    race.run(1)
    race.run(1, count=0)
    race.run(1)
    race.assert_same()


def test_every_configuration_of_pytorchs_own_tests_agrees(root):
    pytest.importorskip("expecttest", reason="needs PyTorch's own tests")
    from torch.testing._internal.common_optimizers import optim_db

    (info,) = [each for each in optim_db if each.optim_cls is torch.optim.SparseAdam]
    for given in info.optim_inputs_func(device="cpu"):
        race = Race((5, 3), "float32", given.kwargs, given.kwargs)
        race.run(20)
        race.assert_same()


def test_a_state_dict_from_here_goes_on_in_pytorch(root):
    race = Race((5, 3), "float32", {"lr": 0.05, "betas": (0.5, 0.9)}, {})
    race.run(3)
    with torch.no_grad():
        race.their.copy_(torch.from_numpy(race.own.data))
    race.theirs.load_state_dict(pytorch.export(race.ours.state_dict()))
    assert race.theirs.param_groups[0]["betas"] == (0.5, 0.9)
    race.run(3)
    race.assert_same()


def test_a_state_dict_of_pytorch_goes_on_here(root):
    race = Race((5, 3), "float32", {}, {"lr": 0.05, "betas": (0.5, 0.9)})
    race.run(3)
    race.own.data[...] = race.their.detach().numpy()
    race.ours = SparseAdam([race.own])
    race.ours.load_state_dict(race.theirs.state_dict())
    assert race.ours.param_groups[0]["betas"] == (0.5, 0.9)
    race.run(3)
    race.assert_same()
