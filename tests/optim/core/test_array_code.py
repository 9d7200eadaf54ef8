"""ArrayOptimizer: what the base does around an update in array code."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from lucid_gpu import Parameter, amp, optim
from lucid_gpu.optim import SGD, ArrayOptimizer, Optimizer, checks
from lucid_gpu.optim.core import slots as making
from tests.contract.support import Foreign, array, everything, host, trained, values


class Momentum(ArrayOptimizer):
    """Heavy ball in array code; the slots of a group begin with its ``start``."""

    slots = ("momentum_buffer",)

    def __init__(self, params, lr=0.1, momentum=0.9, start=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "start": start})

    def check_options(self, options):
        checks.nonnegative(options, "lr", "momentum")

    @staticmethod
    def fills(options):
        return {"momentum_buffer": options["start"]}

    def update(self, xp, param, grad, slots, options, t):
        b = slots["momentum_buffer"]
        b *= options["momentum"]
        b += grad
        param -= xp.multiply(options["lr"], b)


def two(device, **options):
    params = [trained([1.0, 2.0], [0.5, -1.0], device, name="w"), Parameter([3.0], name="idle")]
    if device != "cpu":
        params[1].to(device)
    return Momentum(params, **options), params


def test_it_agrees_with_the_fused_rule(device):
    optimizer, (param, _) = two(device)
    twin = trained([1.0, 2.0], [0.5, -1.0], device)
    fused = SGD([twin], lr=0.1, momentum=0.9)
    for _ in range(4):
        optimizer.step()
        fused.step()
    np.testing.assert_allclose(values(param), values(twin), rtol=1e-6)


def test_a_parameter_without_a_gradient_is_left_out(device):
    optimizer, (param, idle) = two(device)
    optimizer.step()
    assert idle not in optimizer.state
    assert optimizer.state[param]["step"] == 1


@pytest.mark.parametrize("start", [0.25, "param"])
def test_slots_begin_as_the_rule_says(device, start):
    optimizer, (param, _) = two(device, lr=0.0, momentum=1.0, start=start)
    optimizer.step()
    begin = [1.0, 2.0] if start == "param" else [0.25, 0.25]
    expected = np.array(begin, np.float32) + np.array([0.5, -1.0], np.float32)
    assert host(optimizer.state[param]["momentum_buffer"]).tolist() == expected.tolist()


def test_it_resumes_to_the_bit(device):
    optimizer, (param, _) = two(device)
    optimizer.step()
    twin, (other, _) = two(device)
    twin.load_state_dict(optimizer.state_dict(device="cpu"))
    other.data[...] = param.data
    for each in (optimizer, twin):
        each.step()
    assert everything(optimizer) == everything(twin)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda slots: slots.update(extra=1), "slot 'extra' is unknown"),
        (lambda slots: slots.pop("momentum_buffer"), "slot 'momentum_buffer' is missing"),
        (lambda slots: slots.pop("step"), "slot 'step' is missing"),
        (lambda slots: slots.update(step=-1), "slot 'step' must be an int >= 0"),
        (lambda slots: slots.update(momentum_buffer=np.zeros(3, "f4")), r"has shape \(3,\)"),
        (lambda slots: slots.update(momentum_buffer=np.zeros(2)), "has dtype float64"),
        (lambda slots: slots.update(momentum_buffer=3.0), "is a float, not a NumPy or CuPy"),
    ],
)
def test_strict_loading_checks_its_slots(change, reason):
    """Row 24a of docs/contract.md."""
    optimizer, _ = two("cpu")
    optimizer.step()
    state_dict = optimizer.state_dict()
    change(state_dict["state"][0])
    before = everything(optimizer)
    with pytest.raises(ValueError, match=reason):
        optimizer.load_state_dict(state_dict)
    assert everything(optimizer) == before


def test_the_state_of_an_array_is_not_loaded_for_a_text():
    """Row 24a of docs/contract.md."""
    optimizer, _ = two("cpu")
    optimizer.step()
    other = Momentum([Parameter("a text", name="w"), Parameter("another", name="idle")])
    with pytest.raises(ValueError, match="'w': its parameter holds a str, not a NumPy or CuPy"):
        other.load_state_dict(optimizer.state_dict())


def test_an_optimizer_of_ones_own_that_declares_its_slots_is_checked_too():
    """Row 24a of docs/contract.md."""

    class Own(Optimizer):
        slots = ("velocity",)

        def step(self, closure=None):
            for tensor in self.stepping():
                slots = self.state[tensor.param]
                slots["velocity"] = tensor.grad + slots.get("velocity", 0.0)
                tensor.data[...] -= slots["velocity"]

    param = trained([1.0, 2.0], [0.5, 0.5], "cpu")
    optimizer = Own([param], {})
    optimizer.step()
    assert values(param) == [0.5, 1.5]
    state_dict = optimizer.state_dict()
    optimizer.load_state_dict(state_dict)
    for wrong, reason in (
        ({"speed": 1}, "slot 'speed' is unknown"),
        ({"velocity": np.zeros(5, np.float32)}, r"slot 'velocity' has shape \(5,\)"),
    ):
        state_dict["state"][0] = wrong
        with pytest.raises(ValueError, match=reason):
            optimizer.load_state_dict(state_dict)


def wrong_gradient(optimizer, params):
    params[1].__dict__["_grad"] = np.zeros(5, np.float32)
    return "gradient of parameter 'idle' has shape"


def wrong_option(optimizer, params):
    optimizer.param_groups[0]["lr"] = -1.0
    return "lr must be >= 0"


def wrong_slot(optimizer, params):
    optimizer.state[params[0]]["momentum_buffer"] = np.zeros(7, np.float32)
    return "slot 'momentum_buffer' of parameter 'w' has shape"


def read_only(optimizer, params):
    params[0].data.flags.writeable = False
    return "parameter 'w' is read-only"


@pytest.mark.parametrize("spoil", [wrong_gradient, wrong_option, wrong_slot, read_only])
def test_what_does_not_fit_is_refused_before_anything_changed(spoil):
    optimizer, params = two("cpu")
    optimizer.step()
    reason = spoil(optimizer, params)
    before = everything(optimizer)
    with pytest.raises(ValueError, match=reason):
        optimizer.step()
    assert everything(optimizer) == before


def test_parameters_that_share_memory_are_refused():
    whole = np.ones(6, np.float32)
    params = [Parameter(whole[:4], name="a"), Parameter(whole[2:], name="b")]
    for param in params:
        param.grad = np.ones(4, np.float32)
    with pytest.raises(ValueError, match="'a' and 'b' share memory"):
        Momentum(params).step()
    assert whole.tolist() == [1.0] * 6


def test_a_foreign_parameter_trains(device):
    foreign = Foreign(array([1.0], device), array([1.0], device))
    Momentum([foreign], lr=0.5).step()
    assert values(foreign) == [0.5]


def test_an_update_that_fails_is_noticed():
    class Failing(Momentum):
        def update(self, *arguments):
            raise ZeroDivisionError("in the update")

    optimizer = Failing([trained([1.0], [1.0], "cpu")])
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    with pytest.raises(RuntimeError, match="a step of this Failing was interrupted"):
        optimizer.state_dict()


def test_a_subclass_without_an_update_says_so():
    class Nothing(ArrayOptimizer):
        pass

    with pytest.raises(NotImplementedError, match="Nothing must define update"):
        Nothing([trained([1.0], [1.0], "cpu")], {}).step()


def test_it_cannot_be_recorded_in_a_graph(emulated):
    import cupy

    optimizer, _ = two("cuda:0")
    optimizer.step()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        try:
            with pytest.raises(RuntimeError, match=r"step\(\) cannot be recorded"):
                optimizer.step()
        finally:
            stream.end_capture()


def test_its_state_moves(emulated):
    optimizer, (param, _) = two("cuda:0")
    optimizer.step()
    optimizer.offload(block=True)
    assert isinstance(optimizer.state[param]["momentum_buffer"], np.ndarray)
    with pytest.raises(RuntimeError, match=r"call reload\(\) before step"):
        optimizer.step()
    optimizer.reload(block=True)
    optimizer.step()
    assert optimizer.state[param]["step"] == 2


def test_explain_names_what_steps_and_what_does_not(capsys):
    optimizer, _ = two("cpu")
    optimizer.explain()
    assert capsys.readouterr().out.splitlines() == [
        "Momentum: one step of 1 parameters, in array code",
        "cpu, float32: 1 tensors",
        "no gradient, so no step: 'idle'",
    ]


BRIEF = np.dtype(ml_dtypes.bfloat16)


def brief(data, dtype=BRIEF, **options):
    """An optimizer, and its parameter of 16 bits."""
    param = Parameter(np.array(data, dtype), name="w")
    return Momentum([param], **options), param


def step(optimizer, param, grad):
    param.grad = np.full(param.shape, grad, param.grad_dtype or param.dtype)
    optimizer.step()


@pytest.mark.parametrize("dtype", [BRIEF, np.dtype(np.float16)])
def test_the_exact_value_of_a_parameter_of_16_bits_steps_as_one_of_float32(dtype):
    optimizer, param = brief([1.0, -2.0], dtype, lr=0.01)
    twin = Parameter(np.array([1.0, -2.0], np.float32))
    exact = Momentum([twin], lr=0.01)
    for grad in (0.5, 0.25, -0.125):
        step(optimizer, param, grad)
        step(exact, twin, grad)
    slots = optimizer.state[param]
    assert slots["master"].tolist() == twin.numpy().tolist()
    assert slots["momentum_buffer"].dtype == np.float32
    assert param.dtype == dtype
    assert param.data.tolist() == twin.data.astype(dtype).tolist()


def test_updates_below_the_last_place_of_a_parameter_are_not_lost():
    optimizer, param = brief([1.0], lr=2.0**-12, momentum=0.0)
    for _ in range(64):
        step(optimizer, param, 1.0)
    assert param.data.tolist() == [1 - 64 * 2.0**-12]


def test_it_takes_gradients_of_float32_for_a_parameter_of_16_bits():
    results = []
    for grad_dtype in (None, "float32"):
        optimizer, param = brief([1.0, 2.0])
        param.grad_dtype = grad_dtype
        step(optimizer, param, 0.5)
        results.append(optimizer.state[param]["master"].tolist())
    assert results[0] == results[1]


def test_a_gradient_of_another_dtype_than_the_parameter_takes_is_refused():
    """Row 30d of docs/contract.md."""
    param = Foreign(np.ones(2, BRIEF))
    param.grad = np.ones(2, np.float32)
    with pytest.raises(ValueError, match=r"has dtype float32, but .*\.astype\('bfloat16'\)"):
        Momentum([param]).step()


def test_a_master_is_made_anew_where_the_data_was_replaced_and_a_warning_names_it():
    """Row 30c of docs/contract.md."""
    optimizer, param = brief([1.0, 2.0], lr=0.0)
    step(optimizer, param, 1.0)
    param.data = np.full(2, 3.0, BRIEF)
    with pytest.warns(UserWarning, match="data of 'w' was replaced.*made anew"):
        step(optimizer, param, 1.0)
    assert optimizer.state[param]["master"].tolist() == [3.0, 3.0]


def test_a_master_that_was_loaded_without_its_parameter_is_made_anew():
    """Row 30c of docs/contract.md."""
    optimizer, param = brief([1.0, 2.0], lr=0.0)
    step(optimizer, param, 1.0)
    other, fresh = brief([3.0, 3.0], lr=0.0)
    other.load_state_dict(optimizer.state_dict())
    with pytest.warns(UserWarning, match="'w'"):
        step(other, fresh, 1.0)
    assert other.state[fresh]["master"].tolist() == [3.0, 3.0]


def test_replacing_data_by_equal_data_keeps_the_master():
    """Row 30c of docs/contract.md."""
    optimizer, param = brief([1.0, 2.0], lr=1e-4)
    step(optimizer, param, 1.0)
    exact = optimizer.state[param]["master"].copy()
    param.data = param.data.copy()
    optimizer.param_groups[0]["lr"] = 0.0
    step(optimizer, param, 1.0)
    assert exact.tolist() == optimizer.state[param]["master"].tolist() != [1.0, 2.0]


def test_a_master_is_compared_with_its_parameter_only_where_one_of_them_was_replaced(monkeypatch):
    """Comparing them waits for the device."""
    asked = []
    monkeypatch.setattr(making, "is_stale", lambda *pair: asked.append(pair))
    optimizer, param = brief([1.0, 2.0])
    for _ in range(3):
        step(optimizer, param, 1.0)
    assert asked == []
    param.data = param.data.copy()
    step(optimizer, param, 1.0)
    assert len(asked) == 1


def test_a_master_is_made_anew_where_a_tensor_was_written_in_place():
    """Row 30c of docs/contract.md."""
    torch = pytest.importorskip("torch")
    tensor = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = Momentum([("w", tensor)], lr=0.0)
    tensor.grad = torch.ones(2, dtype=torch.bfloat16)
    for _ in range(3):
        optimizer.step()
    with torch.no_grad():
        tensor.fill_(3.0)
    with pytest.warns(UserWarning, match="data of 'w' was replaced or written to"):
        optimizer.step()
    assert tensor.tolist() == [3.0, 3.0]


def test_slots_that_pytorch_kept_in_bfloat16_are_widened():
    optimizer, param = brief([1.0, 2.0])
    saved = {**optimizer.state_dict(), "state": {0: {"step": 1, "momentum_buffer": param.data}}}
    optimizer.load_state_dict(saved)
    step(optimizer, param, 1.0)
    assert optimizer.state[param]["momentum_buffer"].dtype == np.float32


def test_a_master_of_a_parameter_of_float32_is_refused():
    optimizer, _ = two("cpu")
    optimizer.step()
    state_dict = optimizer.state_dict()
    state_dict["state"][0]["master"] = np.zeros(2, np.float32)
    with pytest.raises(ValueError, match="slot 'master' is unknown"):
        optimizer.load_state_dict(state_dict)


def test_repr_and_explain_say_what_is_stored_as_what(capsys):
    """Row 30a of docs/contract.md."""
    optimizer, param = brief([1.0])
    param.grad = param.data
    optimizer.explain()
    assert "bfloat16: 1 tensors; float32 masters in the slot 'master'" in capsys.readouterr().out
    assert "stored as bfloat16 with master float32, state float32" in repr(optimizer)


def test_masters_are_the_exact_values():
    optimizer, param = brief([1.0, 2.0], lr=1e-4)
    step(optimizer, param, 1.0)
    assert amp.masters(optimizer)["w"].tolist() == optimizer.state[param]["master"].tolist()


@pytest.mark.parametrize("kind", [optim.SparseAdam, optim.LBFGS])
def test_what_keeps_no_masters_refuses_16_bits_with_a_remedy(kind):
    optimizer = kind([Parameter(np.ones((2, 2), BRIEF), name="w")])
    optimizer.param_groups[0]["params"][0].grad = np.ones((2, 2), BRIEF)
    with pytest.raises(TypeError, match="'w' has dtype bfloat16: use float32 or float64, or train"):
        optimizer.step(lambda: 0.0)
