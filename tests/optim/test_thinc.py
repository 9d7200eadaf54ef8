"""The dialect of Thinc: its protocol, its formulas, and a model of Thinc that is trained."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_gpu.optim.dialects import thinc as ours
from tests.contract.support import array


def loop(kind, weights, gradients, *, learn_rate, decay=0.0, decoupled=True, clip=0.0):
    """Thinc's update as a loop in float64."""
    weights, m, v, average = np.array(weights, np.float64), 0.0, 0.0, 0.0
    for t, gradient in enumerate(np.array(gradients, np.float64), 1):
        decayed = gradient + (0 if decoupled else decay) * weights
        norm = np.sqrt((decayed**2).sum())
        g = decayed * clip / norm if clip and norm >= clip else decayed
        if kind == "Adam":
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            rate = learn_rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            weights = weights - rate * m / (np.sqrt(v) + 1e-3)
        else:
            weights = weights - learn_rate * g
        if decoupled:
            weights = weights - learn_rate * decay * weights
        share = 1 - min((1 + t) / (10 + t), 0.9999)
        average = average - share * (average - weights)
    return weights, average


CASES = [
    {"learn_rate": 0.1},
    {"learn_rate": 0.1, "decay": 0.5},
    {"learn_rate": 0.1, "decay": 0.5, "decoupled": False},
    {"learn_rate": 0.1, "clip": 1.0},
    {"learn_rate": 0.1, "clip": 1.0, "decay": 0.5, "decoupled": False},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("kind", ["Adam", "SGD"])
def test_updates_are_those_of_thinc(kind, case, device):
    gradients = np.random.default_rng(0).normal(size=(5, 4))
    options = {
        "learn_rate": case["learn_rate"],
        "L2": case.get("decay", 0.0),
        "L2_is_weight_decay": case.get("decoupled", True),
        "grad_clip": case.get("clip", 0.0),
    }
    optimizer = getattr(ours, kind)(**options, **({"eps": 1e-3} if kind == "Adam" else {}))
    weights = array(np.arange(4.0), device, np.float64)
    for g in gradients:
        grad = array(g, device, np.float64)
        result = optimizer((3, "W"), weights, grad)
        assert result[0] is weights
        assert result[1] is grad
        assert not grad.any()
    expected, average = loop(kind, np.arange(4.0), gradients, **case)
    np.testing.assert_allclose(values(weights), expected, rtol=1e-11)
    np.testing.assert_allclose(values(optimizer.averages[3, "W"]), average, rtol=1e-11)


def values(found):
    return found if isinstance(found, np.ndarray) and type(found) is np.ndarray else found.get()


def test_each_key_has_a_count_of_its_own():
    optimizer = ours.Adam(0.1, use_averages=False)
    first, second = np.ones(2, np.float32), np.ones(2, np.float32)
    for _ in range(3):
        optimizer((0, "W"), first, np.ones(2, np.float32))
    optimizer((1, "W"), second, np.ones(2, np.float32))
    alone = np.ones(2, np.float32)
    ours.Adam(0.1)((0, "W"), alone, np.ones(2, np.float32))
    assert second.tolist() == alone.tolist() != first.tolist()
    assert optimizer.averages is None


def test_a_scale_multiplies_the_learning_rate():
    scaled, plain = np.ones(1, np.float32), np.ones(1, np.float32)
    ours.SGD(0.5)((0, "W"), scaled, np.ones(1, np.float32), lr_scale=0.5)
    ours.SGD(0.25)((0, "W"), plain, np.ones(1, np.float32))
    assert scaled.tolist() == plain.tolist()


def test_options_may_be_schedules():
    seen = []

    def schedule(step, *, key, last_score):
        seen.append((step, key, last_score))
        return 0.5 / (1 + step)

    optimizer = ours.SGD(schedule)
    weights = np.ones(1, np.float32)
    optimizer((0, "b"), weights, np.ones(1, np.float32))
    optimizer.last_score = 0.75
    optimizer.step_schedules()
    optimizer((0, "b"), weights, np.ones(1, np.float32))
    assert weights.tolist() == [0.25]
    assert seen == [(0, (0, "b"), None), (1, (0, "b"), (0, 0.75))]


def test_weights_of_another_shape_begin_anew():
    optimizer = ours.Adam(0.1)
    optimizer((0, "W"), np.ones(2, np.float32), np.ones(2, np.float32))
    grown = np.ones(3, np.float32)
    optimizer((0, "W"), grown, np.ones(3, np.float32))
    np.testing.assert_allclose(grown, 0.9, rtol=1e-5)


def test_an_option_out_of_bounds_changes_nothing():
    weights, grad = np.ones(2, np.float32), np.ones(2, np.float32)
    with pytest.raises(ValueError, match="lr must be >= 0"):
        ours.SGD(-1.0)((0, "W"), weights, grad)
    assert (weights.tolist(), grad.tolist()) == ([1.0, 1.0], [1.0, 1.0])


def test_an_empty_gradient_is_left_alone():
    weights = np.ones((0, 2), np.float32)
    assert ours.Adam()((0, "W"), weights, weights)[0] is weights


def test_a_model_of_thinc_is_trained_by_either_library_alike():
    thinc = pytest.importorskip("thinc.api", reason="needs Thinc: pip install -e '.[integrations]'")
    rng = np.random.default_rng(1)
    x = rng.normal(size=(64, 5)).astype(np.float32)
    y = np.stack([x[:, 0] > 0, x[:, 0] <= 0], 1).astype(np.float32)
    losses, models = [], []
    for library in (ours, thinc):
        thinc.fix_random_seed(0)
        model = thinc.chain(thinc.Relu(8), thinc.Softmax(2))
        model.initialize(X=x, Y=y)
        optimizer = library.Adam(0.01, L2=0.01)
        for _ in range(30):
            guess, backprop = model.begin_update(x)
            losses.append(float(((guess - y) ** 2).sum()))
            backprop((guess - y) / len(x))
            model.finish_update(optimizer)
            optimizer.step_schedules()
        with model.use_params(optimizer.averages):
            losses.append(float(((model.predict(x) - y) ** 2).sum()))
        models.append(model)
    assert losses[29] < 0.5 * losses[0]
    np.testing.assert_allclose(losses[:31], losses[31:], rtol=1e-4)
