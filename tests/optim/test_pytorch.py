"""Rules that PyTorch or their authors have as code: trajectories."""

from __future__ import annotations

import contextlib
import itertools

import numpy as np
import pytest

from lucid_gpu import Parameter, optim

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[oracle]'")

SIZE, STEPS = 1037, 20
EXECUTION = {"foreach": False}


def combinations(**choices):
    return [
        dict(zip(choices, chosen, strict=True)) for chosen in itertools.product(*choices.values())
    ]


COMMON = {"weight_decay": [0.0, 0.1], "maximize": [False, True]}
BETAS = {"betas": [(0.9, 0.999), (0.8, 0.9)], "eps": [1e-8, 1e-3]}
OPTIONS = {
    "NAdam": combinations(lr=[2e-3, 1e-2], **BETAS, **COMMON, decoupled_weight_decay=[False, True]),
    "RAdam": combinations(**BETAS, **COMMON, decoupled_weight_decay=[False, True]),
    "Adamax": combinations(lr=[2e-3, 1e-2], **BETAS, **COMMON),
    "Adagrad": combinations(
        lr=[1e-2, 3e-3], lr_decay=[0.0, 0.1], initial_accumulator_value=[0.0, 0.1], **COMMON
    ),
    "Adadelta": combinations(lr=[1.0, 0.1], rho=[0.9, 0.95], eps=[1e-6, 1e-3], **COMMON),
    "RMSprop": combinations(
        alpha=[0.99, 0.9], eps=[1e-8, 1e-3], **COMMON, momentum=[0.0, 0.9], centered=[False, True]
    ),
    "Rprop": combinations(
        lr=[1e-2, 0.1],
        etas=[(0.5, 1.2), (0.3, 1.5)],
        step_sizes=[(1e-6, 50), (1e-2, 0.2)],
        maximize=[False, True],
    ),
    "ASGD": combinations(
        lr=[1e-2, 1e-3], lambd=[1e-4, 0.1], alpha=[0.75, 0.5, 1.0], t0=[1e6, 5], **COMMON
    ),
}

FARTHEST = {
    "NAdam": ((2, 9), (3, 5)),
    "RAdam": ((2, 5), (2, 5)),
    "Adamax": ((2, 9), (2, 7)),
    "Adagrad": ((2, 4), (2, 4)),
    "Adadelta": ((6, 33), (6, 33)),
    "RMSprop": ((10, 24), (10, 16)),
    "Rprop": ((0, 0), (0, 0)),
    "ASGD": ((4, 4), (4, 4)),
    "Lion": ((0, 5), (0, 8)),
    "AdamWScheduleFree": ((2, 9), (2, 9)),
    "SGDScheduleFree": ((4, 4), (4, 4)),
}
"""Ulps of parameters and of slots between theirs and ours in float32, and in float64.

PyTorch's code fuses multiplications with additions, and its vector code has another square root.
What is more than 13 comes of elements in which weight decay cancels the gradient: PyTorch rounds
g + λθ once, which is many ulps of so small a sum, and rules that divide by its magnitude keep them.
The parameters of RMSprop add up ten such steps at a momentum of 0.9.
"""


@contextlib.contextmanager
def default_dtype(dtype):
    """Have PyTorch keep scalars such as ``mu_product`` in the dtype of the parameters."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Race:
    """One optimizer of each side, over equal parameters, fed equal gradients."""

    def __init__(self, ours, theirs, dtype):
        self.rng = np.random.default_rng(0)
        start = self.rng.uniform(0.5, 1.5, SIZE) * self.rng.choice([-1, 1], SIZE)
        self.own = Parameter(start.astype(dtype))
        self.their = torch.nn.Parameter(torch.from_numpy(start.astype(dtype)))
        self.ours, self.theirs = ours([self.own]), theirs([self.their])

    def step(self):
        gradient = self.rng.normal(size=SIZE).astype(self.own.dtype)
        self.own.grad, self.their.grad = gradient.copy(), torch.from_numpy(gradient)
        self.ours.step()
        self.theirs.step()

    def arrays(self):
        """Yield pairs of arrays, ours and theirs: the parameter, then slots."""
        yield "param", self.own.data, self.their.detach().numpy()
        slots = self.theirs.state[self.their]
        for name, array in self.ours.state[self.own].items():
            if isinstance(array, np.ndarray):
                yield name, array, slots[name].numpy()


def run(ours, theirs, dtype):
    """The farthest that parameters and slots come apart.

    It counts in ulps of the largest that an element has been, because there it was rounded, and
    among slots those elements that are no less than a tenth of the largest: what decay cancels out
    is rounded elsewhere.
    """
    race = Race(ours, theirs, dtype)
    largest, farthest = {"param": np.abs(race.own.data)}, {"param": 0.0, "slots": 0.0}
    for _ in range(STEPS):
        race.step()
        for name, own, their in race.arrays():
            largest[name] = np.maximum(np.abs(their), largest.get(name, 0))
            apart = np.abs(own - their) / np.spacing(largest[name])
            kind = "param" if name == "param" else "slots"
            counted = largest[name] >= (0 if kind == "param" else 0.1 * largest[name].max())
            farthest[kind] = max(farthest[kind], float(np.max(apart[counted])))
    return farthest["param"], farthest["slots"]


def assert_close(name, ours, theirs):
    for number, kind in enumerate(("float32", "float64")):
        with default_dtype(getattr(torch, kind)):
            param, slots = run(ours, theirs, np.dtype(kind))
        most_param, most_slots = FARTHEST[name][number]
        assert param <= most_param, kind
        assert slots <= most_slots, kind


CASES = [(name, options) for name, sets in OPTIONS.items() for options in sets]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_trajectories_are_those_of_pytorch_but_for_rounding(name, options):
    assert_close(
        name,
        lambda params: getattr(optim, name)(params, **options),
        lambda params: getattr(torch.optim, name)(params, **options, **EXECUTION),
    )


@pytest.mark.parametrize("beta1", [0.0, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("name", ["Adam", "NAdam", "RAdam", "Adamax"])
def test_a_fast_average_is_pytorchs_but_for_rounding(name, beta1):
    """From a weight of a half on, PyTorch works it out from the other end."""
    options = {"lr": 1e-2, "betas": (beta1, 0.999)}
    for kind in ("float32", "float64"):
        with default_dtype(getattr(torch, kind)):
            param, slots = run(
                lambda params: getattr(optim, name)(params, **options),
                lambda params: getattr(torch.optim, name)(params, **options, **EXECUTION),
                np.dtype(kind),
            )
        assert max(param, slots) <= 3, kind


class AuthorsLion(torch.optim.Optimizer):
    """Lion as its authors write it in PyTorch."""

    def __init__(self, params, lr, betas, weight_decay):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for param in group["params"]:
                param.mul_(1 - group["lr"] * group["weight_decay"])
                state = self.state[param]
                average = state.setdefault("exp_avg", torch.zeros_like(param))
                update = average * beta1 + param.grad * (1 - beta1)
                param.add_(torch.sign(update), alpha=-group["lr"])
                average.mul_(beta2).add_(param.grad, alpha=1 - beta2)


LION = combinations(lr=[1e-4, 1e-2], betas=[(0.9, 0.99)], weight_decay=[0.0, 0.1, 1.0])


@pytest.mark.parametrize("options", LION, ids=str)
def test_lion_is_that_of_its_authors_but_for_rounding(options):
    assert_close(
        "Lion",
        lambda params: optim.Lion(params, **options),
        lambda params: AuthorsLion(params, **options),
    )


ADAMW_FREE = combinations(
    betas=[(0.9, 0.999), (0.8, 0.9)], weight_decay=[0.0, 0.1], warmup_steps=[0, 5]
)
SGD_FREE = combinations(
    lr=[0.1, 1e-2], momentum=[0.9, 0.5], weight_decay=[0.0, 0.1], warmup_steps=[0, 5]
)
FREE = [("AdamWScheduleFree", options) for options in ADAMW_FREE]
FREE += [("SGDScheduleFree", options) for options in SGD_FREE]


@pytest.mark.parametrize(("name", "options"), FREE, ids=str)
def test_training_without_a_schedule_is_that_of_its_authors_but_for_rounding(name, options):
    authors = pytest.importorskip("schedulefree")

    def theirs(params):
        optimizer = getattr(authors, name)(params, **options, foreach=False)
        optimizer.train()
        return optimizer

    assert_close(name, lambda params: getattr(optim, name)(params, **options), theirs)


@pytest.mark.parametrize(("name", "options"), FREE, ids=str)
def test_what_eval_shows_is_what_the_authors_show(name, options):
    authors = pytest.importorskip("schedulefree")
    race = Race(
        lambda params: getattr(optim, name)(params, **options),
        lambda params: getattr(authors, name)(params, **options, foreach=False),
        np.float64,
    )
    race.theirs.train()
    for _ in range(2):
        for _ in range(3):
            race.step()
        race.ours.eval()
        race.theirs.eval()
        np.testing.assert_allclose(race.own.data, race.their.detach().numpy(), rtol=1e-12)
        race.ours.train()
        race.theirs.train()
