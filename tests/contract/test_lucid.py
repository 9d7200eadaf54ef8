"""Models of Lucid, whose parameters are taken as they are."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_gpu import optim

lucid = pytest.importorskip("lucid", reason="needs lucid-dl, and Python 3.12 for it")
pytest.importorskip("lucid.models")
pytest.importorskip("lucid.optim")


# Lucid makes parameters of memory that is not set yet.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def batches(count):
    rng = np.random.default_rng(2)
    for _ in range(count):
        images = rng.normal(size=(2, 1, 28, 28))
        yield images, np.eye(10)[rng.integers(10, size=2)]


def trained(make, steps=3):
    """Return the parameters of LeNet after some steps by an optimizer."""
    np.random.seed(0)  # noqa: NPY002 - which Lucid draws from
    model = lucid.models.lenet_1()
    optimizer = make(list(model.parameters()))
    for images, labels in batches(steps):
        optimizer.zero_grad()
        loss = ((model(lucid.Tensor(images)) - lucid.Tensor(labels)) ** 2).sum()
        loss.backward()
        optimizer.step()
    return [param.data for param in model.parameters()]


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_a_model_of_lucid_trains_as_by_its_own_optimizer(name):
    own = trained(lambda params: getattr(optim, name)(params, lr=0.01))
    theirs = trained(lambda params: getattr(lucid.optim, name)(params, lr=0.01))
    for mine, other in zip(own, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-4)


def test_a_parameter_of_lucid_keeps_its_state():
    param = lucid.nn.Parameter(np.ones(3, np.float32))
    optimizer = optim.Adam([param])
    param.grad = np.ones(3, np.float32)
    optimizer.step()
    twin = optim.Adam([param])
    twin.load_state_dict(optimizer.state_dict())
    assert twin.state[param]["step"] == 1
