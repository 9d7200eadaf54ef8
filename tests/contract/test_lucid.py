"""Models of Lucid, whose parameters are taken as they are."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_gpu import Parameter, optim

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


@pytest.mark.parametrize("as_dict", [False, True], ids=["optimizer", "state dict"])
@pytest.mark.parametrize("name", optim.lucid.SLOTS)
def test_a_run_of_lucid_goes_on_here(name, as_dict):
    """State goes to its parameter, though the second one has stepped first."""
    rng = np.random.default_rng(1)
    gradients = rng.normal(size=(6, 2, 3)).astype(np.float32)
    options = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    params = [lucid.nn.Parameter(rng.normal(size=3).astype(np.float32)) for _ in range(2)]
    theirs = getattr(lucid.optim, name)(params, lr=0.01, **options)
    for step, (first, second) in enumerate(gradients[:3]):
        params[0].grad = first.copy() if step else None
        params[1].grad = second.copy()
        theirs.step()
    own = [Parameter(param.data.astype(np.float32)) for param in params]
    ours = getattr(optim, name)(own)
    source = (theirs.state_dict(), name) if as_dict else (theirs,)
    ours.load_state_dict(optim.lucid.translate(*source))
    for gradient in gradients[3:]:
        for mine, other, each in zip(own, params, gradient, strict=True):
            mine.grad, other.grad = each, each.copy()
        ours.step()
        theirs.step()
    for mine, other in zip(own, params, strict=True):
        np.testing.assert_allclose(mine.numpy(), other.data, rtol=1e-5, atol=1e-6)
