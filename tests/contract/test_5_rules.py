"""Section 5 of docs/contract.md: the update rules, number by number."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from lucid_gpu import Parameter, optim
from lucid_gpu.optim.dialects import tiny_pytorch
from tests.contract.support import array, host, trained, values


def run(optimizer, param, gradients, device, dtype):
    """Step once for each gradient and return the data of the parameter after each."""
    seen = []
    for gradient in gradients:
        param.grad = array(gradient, device, dtype)
        optimizer.step()
        seen.append(host(param.data).copy())
    return seen


CASES = {
    "SGD with momentum and L2 decay": (
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.2),
        [0.5] * 3,
        [0.93, 0.7984, 0.613992],
    ),
    "SGD of the small Tensor library": (
        lambda p: tiny_pytorch.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.2),
        [0.5] * 3,
        [0.975, 0.946, 0.91353],
    ),
    "Adam with amsgrad=True": (
        lambda p: optim.Adam(p, lr=0.1, amsgrad=True),
        [1, 0.1, 0.1, 0.1],
        [0.900000001, 0.847368423, 0.810468054, 0.781389834],
    ),
    "Adam with amsgrad='raw'": (
        lambda p: optim.Adam(p, lr=0.1, amsgrad="raw"),
        [1, 0.1, 0.1, 0.1],
        [0.900000001, 0.825918938, 0.762604584, 0.705259982],
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 5e-10), (np.float32, 3e-7)])
def test_the_numbers_of_the_contract_come_out(device, case, dtype, tolerance):
    make, gradients, expected = CASES[case]
    param = trained([1.0], [0.0], device, dtype=dtype)
    seen = run(make([param]), param, [[g] for g in gradients], device, dtype)
    assert [x[0] for x in seen] == pytest.approx(expected, abs=tolerance)


def adam_oracle(theta, gradients, t, o):
    """Walk through section 5 of docs/contract.md for one element, rounding to ``t``."""
    m = v = v_max = t(0)
    lr, (b1, b2), decay = o["lr"], o["betas"], o["weight_decay"]
    decoupled, amsgrad = o["decoupled_weight_decay"], o["amsgrad"]
    for step, gradient in enumerate(gradients, 1):
        c1, c2 = 1 - b1**step, 1 - b2**step
        g = -gradient if o["maximize"] else gradient
        if decay and not decoupled:
            g = g + t(decay) * theta
        if decay and decoupled:
            theta = theta * t(1 - lr * decay)
        m = m + t(1 - b1) * (g - m)
        v = t(b2) * v + (t(1 - b2) * g) * g
        if amsgrad is True:
            v_max = max(v_max, v / t(c2))
            d = np.sqrt(v_max) + t(o["eps"])
        elif amsgrad == "raw":
            v_max = max(v_max, v)
            d = np.sqrt(v_max) / t(math.sqrt(c2)) + t(o["eps"])
        else:
            d = np.sqrt(v) / t(math.sqrt(c2)) + t(o["eps"])
        theta = theta - (t(lr / c1) * m) / d
        yield theta


def sgd_oracle(theta, gradients, t, o):
    """Walk through section 5 of docs/contract.md for one element, rounding to ``t``."""
    lr, decay, momentum, dampening = (
        o[name] for name in ("lr", "weight_decay", "momentum", "dampening")
    )
    b = None
    for gradient in gradients:
        g = -gradient if o["maximize"] else gradient
        if decay and not o["decoupled_weight_decay"]:
            g = g + t(decay) * theta
        if decay and o["decoupled_weight_decay"]:
            theta = theta * t(1 - lr * decay)
        if momentum:
            if b is None:
                b = t(1 - dampening) * g if o["dampen_first"] else g
            else:
                b = t(momentum) * b + t(1 - dampening) * g
            g = g + t(momentum) * b if o["nesterov"] else b
        theta = theta - t(lr) * g
        yield theta


def combinations(**choices):
    return [
        dict(zip(choices, chosen, strict=True)) for chosen in itertools.product(*choices.values())
    ]


ADAM = combinations(
    lr=[0.05],
    betas=[(0.9, 0.999), (0.0, 0.5)],
    eps=[1e-8, 0.25],
    weight_decay=[0.0, 0.1],
    amsgrad=[False, True, "raw"],
    decoupled_weight_decay=[False, True],
    maximize=[False, True],
)
SGD = [
    options
    for options in combinations(
        lr=[0.05],
        momentum=[0.0, 0.9],
        dampening=[0.0, 0.25],
        weight_decay=[0.0, 0.1],
        nesterov=[False, True],
        decoupled_weight_decay=[False, True],
        maximize=[False, True],
        dampen_first=[False, True],
    )
    if not options["nesterov"] or (options["momentum"] and not options["dampening"])
]


def check_rule(rule, oracle, options, device, dtype):
    rng = np.random.default_rng(7)
    start = rng.standard_normal(5).astype(dtype)
    gradients = rng.standard_normal((6, 5)).astype(dtype)
    param = Parameter(start.copy(), device=device)
    seen = run(rule([param], **options), param, gradients, device, dtype)
    with np.errstate(all="raise"):
        columns = [
            list(oracle(dtype(start[i]), [dtype(g) for g in gradients[:, i]], dtype, options))
            for i in range(5)
        ]
    expected = np.array(columns, dtype).T
    assert np.stack(seen).tobytes() == np.ascontiguousarray(expected).tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", ADAM, ids=str)
def test_adam_follows_the_contract_to_the_bit(device, options, dtype):
    check_rule(optim.Adam, adam_oracle, options, device, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", SGD, ids=str)
def test_sgd_follows_the_contract_to_the_bit(device, options, dtype):
    check_rule(optim.SGD, sgd_oracle, options, device, dtype)


def test_adamw_is_adam_with_decoupled_decay(device):
    pair = [trained([1.0, -2.0], [0.5, 0.25], device) for _ in range(2)]
    adamw = optim.AdamW([pair[0]], lr=0.1, weight_decay=0.3)
    adam = optim.Adam([pair[1]], lr=0.1, weight_decay=0.3, decoupled_weight_decay=True)
    for _ in range(3):
        adamw.step()
        adam.step()
    assert values(pair[0]) == values(pair[1])


def test_the_dialect_adam_decays_by_l2(device):
    pair = [trained([1.0, -2.0], [0.5, 0.25], device) for _ in range(2)]
    tiny = tiny_pytorch.Adam([pair[0]], 0.05, 0.8, 0.95, 1e-6, 0.1)
    adam = optim.Adam([pair[1]], 0.05, (0.8, 0.95), 1e-6, 0.1)
    for _ in range(3):
        tiny.step()
        adam.step()
    assert values(pair[0]) == values(pair[1])


def test_values_that_are_not_finite_pass_through(device):
    param = trained([1.0, 1.0, 1.0], [math.nan, math.inf, 1.0], device)
    optim.Adam([param], lr=0.5).step()
    seen = values(param)
    assert math.isnan(seen[0])
    assert math.isnan(seen[1])
    assert seen[2] == pytest.approx(0.5)
