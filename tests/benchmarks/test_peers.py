import numpy as np
import pytest

from benchmarks import peers
from benchmarks.peers import Task
from benchmarks.protocol import Unavailable
from benchmarks.workloads import ADAM, MOMENTUM, SWITCHES, Rule, Workload

WORK = Workload("work", ((3, 4), (5,), ()), groups=2)
TORCH = ("torch fused", "torch foreach", "torch single")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("LUCID_GPU_NUM_THREADS", "1")


def stepped(name, rule, steps=3):
    """Return the parameters after steps with a set of gradients each."""
    task = Task(WORK, rule, "cpu", sets=steps)
    if name in TORCH:
        pytest.importorskip("torch")
    contender = peers.BUILDERS[name](task)
    for turn in range(steps):
        contender.use_gradients(turn)
        contender.step()
    contender.synchronize()
    return np.concatenate([param.ravel() for param in task.params])


@pytest.mark.parametrize("rule", [ADAM, MOMENTUM], ids=lambda rule: rule.name)
def test_array_expressions_do_what_ours_does_but_for_rates_of_groups(rule):
    theirs = stepped("array expressions", rule)
    np.testing.assert_allclose(theirs, stepped("ours", rule), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rule", [ADAM, MOMENTUM, *SWITCHES], ids=lambda rule: rule.name)
def test_optax_does_what_ours_does_and_compiles_once(rule):
    pytest.importorskip("optax")
    task = Task(Workload("work", WORK.shapes), rule, "cpu", sets=3)
    try:
        contender = peers.BUILDERS["optax, jit"](task)
    except Unavailable as reason:
        assert "no such switch" in str(reason) or "no L2 decay" in str(reason)  # noqa: PT017
        return
    ours = peers.BUILDERS["ours"](task)
    for turn in range(3):
        for one in (contender, ours):
            one.use_gradients(turn)
            one.step()
    contender.synchronize()
    for theirs, param in zip(contender._params, task.params, strict=True):
        np.testing.assert_allclose(np.asarray(theirs), param, rtol=1e-5, atol=1e-6)
    assert contender._update._cache_size() == 1


def test_optax_steps_copies_in_donated_memory():
    jax = pytest.importorskip("optax") and pytest.importorskip("jax")
    task, untouched = (Task(Workload("work", WORK.shapes), ADAM, "cpu") for _ in range(2))
    contender = peers.BUILDERS["optax, jit"](task)
    before = jax.tree.leaves((contender._params, contender._state))
    contender.step()
    contender.synchronize()
    assert all(array.is_deleted() for array in before)
    for own, other in zip(
        task.params + task.grads[0], untouched.params + untouched.grads[0], strict=True
    ):
        np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("rule", SWITCHES, ids=lambda rule: rule.name)
def test_pytorch_does_what_ours_does(name, rule):
    if rule.name == "Adam, amsgrad":
        rule = Rule("Adam, amsgrad raw", options={"amsgrad": "raw"})  # what PyTorch offers
    try:
        theirs = stepped(name, rule)
    except Unavailable as reason:
        assert "decoupled" in str(reason)  # noqa: PT017 - either outcome is right
        return
    np.testing.assert_allclose(theirs, stepped("ours", rule), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("rule", "nbytes"),
    [(ADAM, 28), (Rule("", options={"amsgrad": True}), 36), (Rule("", "SGD"), 12), (MOMENTUM, 20)],
)
def test_traffic_counts_each_array_read_and_all_but_the_gradient_written(rule, nbytes):
    assert Task(WORK, rule, "cpu").traffic == nbytes * WORK.parameters


def test_every_group_has_a_rate_of_its_own():
    groups = Task(WORK, ADAM, "cpu").groups([*"abc"])
    assert [group["params"] for group in groups] == [["a", "c"], ["b"]]
    assert len({group["lr"] for group in groups}) == 2


def test_graphs_kernels_and_the_limit_are_peers_on_a_gpu_only():
    assert set(peers.names("cuda:0")) == set(peers.BUILDERS) - {"ours, NumPy"}
    assert peers.names("cpu") == [
        "ours",
        "ours, NumPy",
        *TORCH,
        "optax, jit",
        "array expressions",
    ]
