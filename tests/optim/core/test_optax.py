"""States of optax, loaded here: a run goes on as it would have there."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_gpu import Parameter, optim

optax = pytest.importorskip("optax", reason="needs optax: pip install -e '.[oracle]'")
jax = pytest.importorskip("jax")

CASES = [
    (lambda: optax.adam(0.1), optim.Adam, {"lr": 0.1}),
    (lambda: optax.adamw(0.1, weight_decay=0.5), optim.AdamW, {"lr": 0.1, "weight_decay": 0.5}),
    (lambda: optax.amsgrad(0.1), optim.Adam, {"lr": 0.1, "amsgrad": True}),
    (lambda: optax.sgd(0.1, momentum=0.9), optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (lambda: optax.lion(0.1, weight_decay=0.0), optim.Lion, {"lr": 0.1, "weight_decay": 0.0}),
    (
        lambda: optax.chain(optax.clip_by_global_norm(1e9), optax.adam(0.1)),
        optim.Adam,
        {"lr": 0.1},
    ),
    (
        lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
        optim.Adam,
        {"lr": 0.1},
    ),
]


def gradients(seed):
    rng = np.random.default_rng(seed)
    return {
        "dense": {"kernel": rng.normal(size=(2, 3)), "bias": rng.normal(size=3)},
        "alpha": rng.normal(size=()),
    }


def as_jax(tree):
    return jax.tree.map(lambda leaf: jax.numpy.asarray(leaf, jax.numpy.float32), tree)


def flat(tree):
    return [np.array(leaf, np.float32) for leaf in jax.tree.leaves(tree)]


NAMES = ["alpha", "dense.bias", "dense.kernel"]


@pytest.mark.parametrize(("theirs", "rule", "options"), CASES)
@pytest.mark.parametrize("names", [None, NAMES], ids=["unnamed", "named"])
def test_a_run_goes_on_as_in_optax(theirs, rule, options, names):
    transform = theirs()
    params = as_jax(gradients(0))
    state = transform.init(params)
    for seed in range(1, 4):
        updates, state = transform.update(as_jax(gradients(seed)), state, params)
        params = optax.apply_updates(params, updates)
    own = [Parameter(leaf, name=names and names[i]) for i, leaf in enumerate(flat(params))]
    optimizer = rule(own[::-1] if names else own, **options)
    optimizer.load_state_dict(optim.optax.translate(state))
    for seed in range(4, 7):
        updates, state = transform.update(as_jax(gradients(seed)), state, params)
        params = optax.apply_updates(params, updates)
        for param, gradient in zip(own, flat(as_jax(gradients(seed))), strict=True):
            param.grad = gradient
        optimizer.step()
    for param, leaf in zip(own, flat(params), strict=True):
        np.testing.assert_allclose(param.numpy(), leaf, rtol=1e-4, atol=1e-5)


def test_what_was_loaded_shares_nothing_with_the_state():
    state = optax.adam(0.1).init(as_jax(gradients(0)))
    own = [Parameter(leaf) for leaf in flat(as_jax(gradients(0)))]
    optimizer = optim.Adam(own)
    optimizer.load_state_dict(optim.optax.translate(state))
    for param in own:
        param.grad = np.ones_like(param.data)
    optimizer.step()
    assert all(not leaf.any() for leaf in flat(state[0].mu))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda p: optax.sgd(0.1).init(p), "it holds none"),
        (lambda p: optax.chain(optax.adam(0.1), optax.trace(0.9)).init(p), "ScaleByAdamState, Tr"),
        (lambda p: optax.adagrad(0.1).init(p), "it holds none"),
    ],
)
def test_a_state_that_is_none_of_these_is_refused(state, message):
    with pytest.raises(ValueError, match=message):
        optim.optax.translate(state(as_jax(gradients(0))))


def test_a_state_of_another_rule_is_refused_by_the_optimizer():
    state = optax.sgd(0.1, momentum=0.9).init(as_jax(gradients(0)))
    own = [Parameter(leaf) for leaf in flat(as_jax(gradients(0)))]
    with pytest.raises(ValueError, match="slot 'exp_avg' is missing"):
        optim.Adam(own).load_state_dict(optim.optax.translate(state))
