"""PyTorch as the oracle: trajectories on its CPU path, and state dicts in both directions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lucid_gpu import Parameter, optim
from lucid_gpu.optim.core import pytorch
from tests.contract.support import everything, unchanged

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[oracle]'")

SHAPES = [(), (0,), (1,), (17,), (3, 5), (2, 1, 9)]
STEPS = 20
EXECUTION = {"foreach": False, "fused": False}


def combinations(**choices):
    return [
        dict(zip(choices, chosen, strict=True)) for chosen in itertools.product(*choices.values())
    ]


ADAM = combinations(
    lr=[1e-3, 0.1],
    betas=[(0.9, 0.999), (0.5, 0.9)],
    eps=[1e-8, 1e-3],
    weight_decay=[0.0, 0.05],
    amsgrad=[False, True],
    maximize=[False, True],
)
CASES = [("Adam", {**o, "decoupled_weight_decay": d}) for o in ADAM for d in (False, True)]
CASES += [("AdamW", options) for options in ADAM]
CASES += [
    ("SGD", options)
    for options in combinations(
        lr=[1e-3, 0.1],
        momentum=[0.0, 0.9],
        dampening=[0.0, 0.3],
        weight_decay=[0.0, 0.05],
        nesterov=[False, True],
        maximize=[False, True],
    )
    if not options["nesterov"] or (options["momentum"] and not options["dampening"])
]


class Race:
    """One optimizer of each side, over equal parameters, fed equal gradients."""

    def __init__(self, name, options, dtype, seed=0):
        self.rng = np.random.default_rng(seed)
        self.dtype = dtype
        starts = [self.draw(shape) for shape in SHAPES]
        self.own = [Parameter(start.copy()) for start in starts]
        self.their = [torch.nn.Parameter(torch.from_numpy(start.copy())) for start in starts]
        self.ours, self.theirs = make(name, options, self.own, self.their)

    def draw(self, shape):
        return np.asarray(self.rng.standard_normal(shape), self.dtype)

    def draw_gradients(self):
        for own, their in zip(self.own, self.their, strict=True):
            gradient = self.draw(own.shape)
            own.grad, their.grad = gradient, torch.from_numpy(gradient.copy())

    def step(self):
        self.ours.step()
        self.theirs.step()

    def run(self, steps):
        for _ in range(steps):
            self.draw_gradients()
            self.step()

    def arrays(self):
        """Yield pairs of arrays to compare: parameters and slots, ours and theirs."""
        for number, (own, their) in enumerate(zip(self.own, self.their, strict=True)):
            yield (number, "param"), own.data, their.detach().numpy()
            slots = self.theirs.state.get(their, {})
            for slot, array in self.ours.state.get(own, {}).items():
                if slot == "step":
                    assert array == int(slots.get("step", array))
                else:
                    yield (number, slot), array, slots[slot].numpy()


def make(name, options, own, their):
    ours = {**options, "amsgrad": "raw"} if options.get("amsgrad") else options
    return (
        getattr(optim, name)(own, **ours),
        getattr(torch.optim, name)(their, **options, **EXECUTION),
    )


class Allowance:
    """How far two trajectories may lie apart: what each step may round, added up.

    A step counts in ulps of the larger of a value and its update.
    """

    def __init__(self, race, ulps):
        self.ulps = ulps
        self.before = {key: theirs.copy() for key, _, theirs in race.arrays()}
        self.total = {}

    def check(self, race, extra):
        for key, ours, theirs in race.arrays():
            before = self.before.get(key, np.zeros_like(theirs))
            scale = np.maximum(np.abs(theirs), np.abs(theirs - before))
            rounding = self.ulps * np.spacing(scale).astype(np.float64)
            rounding += extra[key[0]].get(key[1], 0.0)
            self.total[key] = self.total.get(key, 0) + rounding
            self.before[key] = theirs.copy()
            difference = np.abs(ours.astype(np.float64) - theirs)
            assert np.all(difference <= self.total[key]), key


def decay_rounding(race):
    """Return what one rounding of g + λθ, in ulps of the larger summand, makes of each slot.

    Where the summands cancel it is more than ulps of the result, and PyTorch rounds that sum once
    where its vector code has a fused multiply-add, and twice where not.
    """
    options = race.ours.param_groups[0]
    if options["decoupled_weight_decay"] or not options["weight_decay"]:
        return [{}] * len(race.own)
    beta1, beta2 = options.get("betas", (0, 0))
    result = []
    for own in race.own:
        g, decay = own.grad * (-1) ** options["maximize"], options["weight_decay"] * own.data
        error = np.spacing(np.maximum(np.abs(g), np.abs(decay))).astype(np.float64)
        squared = 2 * (1 - beta2) * np.abs(g + decay) * error
        result.append(
            {
                "exp_avg": (1 - beta1) * error,
                "exp_avg_sq": squared,
                "max_exp_avg_sq": squared,
                "momentum_buffer": error,
            }
        )
    return result


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_float32_trajectories_agree_to_two_ulps_per_step(name, options):
    race = Race(name, options, np.float32)
    allowance = Allowance(race, ulps=2)
    for _ in range(STEPS):
        race.draw_gradients()
        extra = decay_rounding(race)
        race.step()
        allowance.check(race, extra)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_float64_trajectories_agree_to_twelve_digits(name, options):
    """Counted in the larger of a value and its update, as in float32."""
    race = Race(name, options, np.float64)
    before = {}
    for _ in range(STEPS):
        race.draw_gradients()
        race.step()
        for key, ours, theirs in race.arrays():
            scale = np.maximum(np.abs(theirs), np.abs(theirs - before.get(key, 0)))
            assert np.all(np.abs(ours - theirs) <= 1e-12 * scale), key
            before[key] = theirs.copy()


RESUMED = [
    ("Adam", {"lr": 0.05, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.05, "amsgrad": True}),
    ("AdamW", {"lr": 0.05, "weight_decay": 0.1}),
    ("AdamW", {"lr": 0.05, "amsgrad": True, "maximize": True}),
    ("SGD", {"lr": 0.05}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.3}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
]


def assert_same_course(race):
    for _ in range(5):
        race.run(1)
        for key, ours, theirs in race.arrays():
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=0, err_msg=str(key))


def edit_both(race, **options):
    """Edit options of both sides."""
    race.theirs.param_groups[0].update(options)
    raw = {"amsgrad": "raw"} if options.get("amsgrad") else {}
    race.ours.param_groups[0].update({**options, **raw})


SWITCHED = [
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "weight_decay": 0.1, "maximize": True},
]


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("options", SWITCHED, ids=str)
def test_momentum_that_is_switched_on_later_begins_as_in_pytorch(options, steps):
    """Row 24b of docs/contract.md."""
    race = Race("SGD", {"lr": 0.05}, np.float64)
    race.run(steps)
    edit_both(race, **options)
    assert_same_course(race)


def test_momentum_that_was_away_goes_on_as_in_pytorch():
    """Row 24b of docs/contract.md."""
    race = Race("SGD", {"lr": 0.05, "momentum": 0.9}, np.float64)
    race.run(2)
    edit_both(race, momentum=0.0)
    race.run(2)
    edit_both(race, momentum=0.5)
    assert_same_course(race)


@pytest.mark.parametrize(("name", "options"), RESUMED, ids=str)
def test_state_dicts_of_pytorch_load_here_and_go_on(name, options):
    race = Race(name, options, np.float64)
    race.run(5)
    saved = race.theirs.state_dict()
    race.ours = getattr(optim, name)(race.own)
    for own, their in zip(race.own, race.their, strict=True):
        own.data[...] = their.detach().numpy()
    race.ours.load_state_dict(saved)
    assert race.ours.param_groups[0]["lr"] == 0.05
    assert_same_course(race)


@pytest.mark.parametrize(("name", "options"), RESUMED, ids=str)
def test_state_dicts_from_here_load_in_pytorch_and_go_on(name, options):
    race = Race(name, options, np.float64)
    race.run(5)
    saved = pytorch.export(race.ours.state_dict())
    race.theirs = getattr(torch.optim, name)(race.their)
    with torch.no_grad():
        for own, their in zip(race.own, race.their, strict=True):
            their.copy_(torch.from_numpy(own.data))
    race.theirs.load_state_dict(saved)
    assert race.theirs.param_groups[0]["lr"] == 0.05
    assert_same_course(race)


@pytest.mark.parametrize(("name", "options"), RESUMED[:4], ids=str)
def test_a_round_trip_through_pytorch_changes_nothing(name, options):
    race = Race(name, options, np.float32)
    race.run(3)
    race.theirs.load_state_dict(pytorch.export(race.ours.state_dict()))
    with unchanged(race.ours):
        race.ours.load_state_dict(race.theirs.state_dict())


def test_the_step_count_that_pytorchs_sgd_does_not_keep_becomes_one():
    race = Race("SGD", {"momentum": 0.9}, np.float32)
    race.run(3)
    before = race.ours.state[race.own[3]]["momentum_buffer"].copy()
    race.ours.load_state_dict(race.theirs.state_dict())
    slots = race.ours.state[race.own[3]]
    assert slots["step"] == 1
    assert slots["momentum_buffer"].tolist() == before.tolist()


@pytest.mark.parametrize("step", [torch.tensor(torch.inf), torch.tensor(1.5), "one", [1]])
def test_a_step_of_pytorch_that_is_no_count_is_refused(step):
    race = Race("Adam", {}, np.float32)
    race.run(1)
    saved = race.theirs.state_dict()
    saved["state"][3]["step"] = step
    with unchanged(race.ours), pytest.raises(ValueError, match="slot 'step' must be an int >= 0"):
        race.ours.load_state_dict(saved)


def test_what_was_loaded_from_pytorch_shares_nothing_with_it():
    race = Race("Adam", {}, np.float32)
    race.run(1)
    race.ours.load_state_dict(race.theirs.state_dict())
    before = everything(race.ours)
    race.theirs.step()
    assert everything(race.ours) == before


def test_what_was_exported_shares_nothing_with_the_optimizer():
    race = Race("Adam", {}, np.float32)
    race.run(1)
    saved = race.ours.state_dict()
    exported = pytorch.export(saved)
    exported["state"][3]["exp_avg"].zero_()
    assert saved["state"][3]["exp_avg"].all()


def test_named_parameters_of_pytorch_are_matched_by_name():
    weights = {"w": np.float32([1, 2]), "b": np.float32([3])}
    their = {name: torch.nn.Parameter(torch.from_numpy(x.copy())) for name, x in weights.items()}
    theirs = torch.optim.Adam(their.items(), lr=0.5)
    for number, param in enumerate(their.values()):
        param.grad = torch.full_like(param, number + 1.0)
    theirs.step()
    own = {name: Parameter(x, name=name) for name, x in reversed(weights.items())}
    ours = optim.Adam(own.values())
    ours.load_state_dict(theirs.state_dict())
    for name, param in own.items():
        expected = theirs.state[their[name]]["exp_avg"].numpy()
        assert ours.state[param]["exp_avg"].tolist() == expected.tolist()


def test_options_that_pytorch_holds_as_tensors_become_numbers():
    their = torch.nn.Parameter(torch.ones(2))
    theirs = torch.optim.Adam([their], lr=torch.tensor(0.5), foreach=False, capturable=True)
    ours = optim.Adam([Parameter([1.0, 1.0])])
    ours.load_state_dict(theirs.state_dict())
    assert type(ours.param_groups[0]["lr"]) is float
    assert ours.param_groups[0]["lr"] == 0.5


def test_options_that_say_how_pytorch_runs_are_dropped():
    race = Race("Adam", {}, np.float32)
    race.ours.load_state_dict(race.theirs.state_dict())
    present = set(race.ours.param_groups[0])
    assert not present & {"foreach", "fused", "capturable", "differentiable"}


def test_an_option_named_like_one_of_pytorchs_stays_in_a_state_dict_from_here():
    ours = optim.Adam([Parameter([1.0])])
    ours.param_groups[0]["fused"] = "mine"
    saved = ours.state_dict()
    ours.param_groups[0]["fused"] = "other"
    ours.load_state_dict(saved)
    assert ours.param_groups[0]["fused"] == "mine"


def test_a_state_dict_of_another_rule_of_pytorch_is_refused():
    race = Race("SGD", {"momentum": 0.9}, np.float32)
    race.run(1)
    ours = optim.Adam(race.own)
    with unchanged(ours), pytest.raises(ValueError, match="slot 'exp_avg' is missing"):
        ours.load_state_dict(race.theirs.state_dict())


UNKNOWN_TO_PYTORCH = [
    (optim.Adam, {"amsgrad": True}, "amsgrad='raw' can be exported"),
    (optim.SGD, {"momentum": 0.9, "dampen_first": True}, "dampen_first"),
    (optim.SGD, {"weight_decay": 0.1, "decoupled_weight_decay": True}, "decoupled_weight_decay"),
]


@pytest.mark.parametrize(("rule", "options", "message"), UNKNOWN_TO_PYTORCH)
def test_what_pytorch_cannot_compute_is_not_exported(rule, options, message):
    saved = rule([Parameter([1.0])], **options).state_dict()
    with pytest.raises(ValueError, match=message):
        pytorch.export(saved)


def test_tensors_of_pytorch_train_as_they_are():
    """Row 4b of docs/contract.md."""
    race = Race("Adam", {}, np.float32)
    tensors = [torch.nn.Parameter(their.detach().clone()) for their in race.their]
    ours = optim.Adam(tensors)
    for _ in range(3):
        race.run(1)
        for tensor, their in zip(tensors, race.their, strict=True):
            tensor.grad = their.grad.clone()
        ours.step()
    for tensor, own in zip(tensors, race.own, strict=True):
        assert tensor.detach().numpy().tobytes() == own.data.tobytes()
    assert "6 parameters" in repr(ours)
    assert all(tensor._version == 3 for tensor in tensors)
    ours.load_state_dict(ours.state_dict())
    ours.zero_grad()
    assert all(tensor.grad is None for tensor in tensors)
