"""Parameters of 16 bits through an optimizer: masters, stored state, resumes, and refusals."""

from __future__ import annotations

import copy
import pickle
import warnings
from contextlib import nullcontext

import ml_dtypes
import numpy as np
import pytest

import lucid_gpu
from lucid_gpu import Parameter, checkpoint
from lucid_gpu.amp import masters
from lucid_gpu.device import transfer
from lucid_gpu.execution import formats
from lucid_gpu.optim import LAMB, LARS, SGD, Adam, AdamW
from tests import rules

BRIEF, HALF, SINGLE = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32)
WAYS = {
    "master": (BRIEF, {}),
    "float16": (HALF, {}),
    "split": (BRIEF, {"master": "split"}),
    "none": (BRIEF, {"master": "none"}),
    "brief": (SINGLE, {"state_dtype": "bfloat16"}),
    "split-brief": (BRIEF, {"master": "split", "state_dtype": "bfloat16", "seed": 3}),
}
every_way = pytest.mark.parametrize("way", WAYS)
every_rule = pytest.mark.parametrize("kind", rules.optimizers(), ids=lambda kind: kind.__name__)
SIZE = 300


def gradient(step, dtype, size=SIZE):
    values = np.random.default_rng(step).normal(size=size).astype(np.float32)
    return values if dtype == SINGLE else formats.nearest(values, dtype)


def made(kind, way, device=None, **options):
    dtype, own = WAYS[way]
    start = np.linspace(-1, 1, SIZE, dtype=np.float32)
    data = start if dtype == SINGLE else formats.nearest(start, dtype)
    param = Parameter(data, name="w", device=device)
    return param, kind([param], **{**own, **options})


def train(param, optimizer, first, last):
    for step in range(first, last):
        grad = gradient(step, param.dtype)
        param.grad = Parameter(grad, device=param.device).data
        optimizer.step()


def bits(param, optimizer):
    arrays = {"data": Parameter.numpy(param)}
    for name, value in optimizer.state_dict("cpu")["state"].get(0, {}).items():
        arrays[name] = np.asarray(value)
    return {name: (str(array.dtype), array.tobytes()) for name, array in arrays.items()}


@every_rule
@every_way
@pytest.mark.usefixtures("emulated")
def test_numpy_and_a_gpu_give_the_same_bits(kind, way):
    seen = []
    for device in (None, "cuda:0"):
        param, optimizer = made(kind, way, device)
        train(param, optimizer, 0, 3)
        seen.append(bits(param, optimizer))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("kind", [AdamW, SGD, LAMB, LARS], ids=lambda kind: kind.__name__)
@every_way
def test_compiled_code_gives_the_bits_of_numpy(kind, way, monkeypatch):
    seen = []
    for code in ("numpy", "compiled"):
        monkeypatch.setenv("LUCID_GPU_CPU", code)
        param, optimizer = made(kind, way)
        train(param, optimizer, 0, 3)
        seen.append(bits(param, optimizer))
    assert seen[0] == seen[1]


@every_rule
@every_way
def test_a_resumed_run_equals_one_that_was_not_interrupted(kind, way, tmp_path):
    param, optimizer = made(kind, way)
    train(param, optimizer, 0, 2)
    checkpoint.save(tmp_path / "run", {"w": param, "optimizer": optimizer})
    other, resumed = made(kind, way, seed=9)
    checkpoint.load(tmp_path / "run", into={"w": other, "optimizer": resumed})
    train(param, optimizer, 2, 4)
    train(other, resumed, 2, 4)
    assert bits(param, optimizer) == bits(other, resumed)


@every_way
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_goes_on_alike(way, copied):
    param, optimizer = made(AdamW, way)
    train(param, optimizer, 0, 2)
    other, twin = copied((param, optimizer))
    train(param, optimizer, 2, 4)
    train(other, twin, 2, 4)
    assert bits(param, optimizer) == bits(other, twin)


@every_way
@pytest.mark.usefixtures("emulated")
def test_moving_everything_between_devices_and_the_host_changes_no_bit(way):
    stayed, expected = made(AdamW, way)
    train(stayed, expected, 0, 5)
    param, optimizer = made(AdamW, way)
    train(param, optimizer, 0, 1)
    optimizer.to("cuda:0")
    train(param, optimizer, 1, 2)
    optimizer.offload()
    train(param, optimizer, 2, 3)
    optimizer.reload()
    train(param, optimizer, 3, 4)
    optimizer.to("cpu")
    train(param, optimizer, 4, 5)
    assert bits(param, optimizer) == bits(stayed, expected)


@pytest.mark.parametrize(
    ("way", "slot", "dtype"),
    [("master", "master", SINGLE), ("float16", "master", SINGLE), ("split", "master_low", "i2")],
)
def test_the_exact_value_is_kept_in_a_slot(way, slot, dtype):
    param, optimizer = made(AdamW, way)
    exact = param.data.astype(np.float32)
    reference = Parameter(exact.copy())
    plain = AdamW([reference])
    for step in range(5):
        param.grad = gradient(step, param.dtype)
        reference.grad = param.grad.astype(np.float32)
        optimizer.step()
        plain.step()
    kept = optimizer.state[param][slot]
    assert kept.dtype == dtype
    value = kept if slot == "master" else formats.join(param.data, kept)
    np.testing.assert_array_equal(value, reference.data)


def test_without_a_master_updates_below_the_last_place_are_not_lost():
    param = Parameter(np.ones(20_000, BRIEF), name="w")
    optimizer = SGD([param], lr=1.0, master="none")
    for _ in range(64):
        param.grad = np.full(20_000, 2.0**-12, BRIEF)  # a 32nd of the last place below one
        optimizer.step()
    moved = 1 - param.data.astype(np.float64).mean()
    assert abs(moved - 64 * 2.0**-12) < 0.05 * 64 * 2.0**-12


def test_a_moment_in_bfloat16_decays_as_the_exact_one_does():
    param = Parameter(np.zeros(20_000, np.float32))
    optimizer = Adam([param], state_dtype="bfloat16")
    param.grad = np.ones(20_000, np.float32)
    optimizer.step()
    for _ in range(200):
        param.grad = np.zeros(20_000, np.float32)
        optimizer.step()
    seen = optimizer.state[param]["exp_avg_sq"].astype(np.float64).mean()
    assert abs(seen / (1e-3 * 0.999**200) - 1) < 0.02


def test_the_random_bits_follow_the_name_not_the_position():
    results = []
    for names in (("a", "b"), ("b", "a")):
        params = [Parameter(np.ones(SIZE, BRIEF), name=name) for name in names]
        optimizer = SGD([(param.name, param) for param in params], lr=0.01, master="none")
        for param in params:
            param.grad = np.full(SIZE, 0.1, BRIEF)
        optimizer.step()
        results.append({param.name: param.data.tobytes() for param in params})
    assert results[0] == results[1]
    assert results[0]["a"] != results[0]["b"]


def test_seeds_are_told_apart_by_group():
    params = [Parameter(np.ones(SIZE, BRIEF)) for _ in range(2)]
    optimizer = SGD([{"params": [p], "seed": s} for s, p in enumerate(params)], 0.01, master="none")
    other = SGD([{"params": [p], "seed": 1} for p in params], 0.01, master="none")
    for each in (optimizer, other):
        for param in params:
            param.grad = np.full(SIZE, 0.1, BRIEF)
        each.step()
    assert params[0].data.tobytes() != params[1].data.tobytes()


def test_a_master_is_made_anew_where_the_data_was_replaced_and_a_warning_names_it():
    param, optimizer = made(AdamW, "master")
    train(param, optimizer, 0, 2)
    param.data = np.full(SIZE, 3.0, BRIEF)
    with pytest.warns(UserWarning, match="data of 'w' was replaced.*made anew"):
        train(param, optimizer, 2, 3)
    np.testing.assert_allclose(optimizer.state[param]["master"], 3.0, atol=0.01)


def test_so_it_is_of_a_parameter_without_dimensions():
    param = Parameter(np.array(1.0, BRIEF), name="w")
    optimizer = SGD([param], lr=0.0)
    for value in (1.0, 3.0):
        param.data = np.array(value, BRIEF)
        param.grad = np.array(0.5, BRIEF)
        with pytest.warns(UserWarning, match="'w'") if value == 3 else nullcontext():
            optimizer.step()
    assert optimizer.state[param]["master"].tolist() == 3.0


def test_a_master_that_was_loaded_without_its_parameter_is_made_anew():
    param, optimizer = made(AdamW, "master")
    train(param, optimizer, 0, 2)
    other, fresh = made(AdamW, "master")
    other.data = np.full(SIZE, 3.0, BRIEF)
    fresh.load_state_dict(optimizer.state_dict())
    with pytest.warns(UserWarning, match="'w'"):
        train(other, fresh, 2, 3)
    np.testing.assert_allclose(fresh.state[other]["master"], 3.0, atol=0.01)


def test_replacing_data_by_equal_data_keeps_the_master():
    param, optimizer = made(AdamW, "master")
    train(param, optimizer, 0, 2)
    exact = optimizer.state[param]["master"].copy()
    param.data = param.data.copy()
    param.grad = np.zeros(SIZE, BRIEF)
    optimizer.param_groups[0].update(lr=0.0, weight_decay=0.0)
    optimizer.step()
    np.testing.assert_array_equal(optimizer.state[param]["master"], exact)


@pytest.mark.parametrize("rebuilds", [False, True])
def test_data_that_replaces_a_split_parameter_is_its_exact_value(rebuilds):
    param, optimizer = made(AdamW, "split", lr=0.0, weight_decay=0.0)
    train(param, optimizer, 0, 2)
    optimizer.state[param]["master_low"][:] = 5
    param.data = np.full(SIZE, 3.0, BRIEF)
    if rebuilds:
        optimizer.add_param_group(
            {"params": [Parameter([1.0])], "master": None, "param_names": ["b"]}
        )
    train(param, optimizer, 2, 3)
    exact = formats.join(param.data, optimizer.state[param]["master_low"])
    np.testing.assert_array_equal(exact, 3.0)


def test_state_stored_otherwise_is_taken_over_when_the_option_is_edited():
    param, optimizer = made(AdamW, "brief")
    train(param, optimizer, 0, 2)
    before = optimizer.state[param]["exp_avg"].copy()
    optimizer.param_groups[0].update(state_dtype=None, lr=0.0)
    param.grad = before.astype(np.float32)  # the mean of both is what it was
    optimizer.step()
    assert optimizer.state[param]["exp_avg"].dtype == SINGLE
    np.testing.assert_array_equal(optimizer.state[param]["exp_avg"], before.astype(np.float32))


def test_moments_that_pytorch_kept_in_bfloat16_are_widened():
    param, optimizer = made(AdamW, "master")
    slots = {"step": 1, "exp_avg": gradient(0, BRIEF), "exp_avg_sq": np.abs(gradient(0, BRIEF))}
    saved = {**optimizer.state_dict(), "state": {0: slots}}
    optimizer.load_state_dict(saved)
    train(param, optimizer, 0, 1)
    assert optimizer.state[param]["exp_avg"].dtype == SINGLE


def test_gradients_of_float32_and_of_16_bits_give_the_same_step():
    results = []
    for dtype in (None, "float32"):
        param = Parameter(np.ones(SIZE, BRIEF), grad_dtype=dtype)
        optimizer = AdamW([param])
        grad = gradient(0, BRIEF)
        param.grad = grad if dtype is None else grad.astype(np.float32)
        optimizer.step()
        results.append(param.data.tobytes())
    assert results[0] == results[1]


def test_models_of_several_dtypes_step_together(emulated):
    xp = lucid_gpu.device.gpu.module("cuda")
    params = [Parameter(xp.ones(5, dtype)) for dtype in (BRIEF, SINGLE, BRIEF, SINGLE)]
    for param in params:
        param.grad = xp.ones(5, param.dtype)
    optimizer = AdamW(params)
    optimizer.step()
    launches = len(emulated.record.launches)
    for param in params:
        param.grad = xp.ones(5, param.dtype)
    optimizer.step()
    assert len(emulated.record.launches) - launches == 2


@pytest.mark.parametrize(
    ("dtype", "options", "message"),
    [
        (HALF, {"master": "none"}, "'w' is float16, whose updates would be lost"),
        (HALF, {"master": "split"}, "'w' is float16, but master='split' splits bfloat16"),
        (SINGLE, {"master": "split"}, "'w' is float32, but master='split' splits bfloat16"),
        (np.float64, {"state_dtype": "bfloat16"}, "'w' is float64, which state_dtype='bfloat16'"),
        (BRIEF, {"master": "bfloat16"}, "master must be one of None, 'float32', 'split', 'none'"),
        (BRIEF, {"state_dtype": "float16"}, "state_dtype must be one of None, 'bfloat16'"),
        (BRIEF, {"seed": -1}, "seed must be >= 0 and <= 18446744073709551615, not -1"),
        (BRIEF, {"seed": 2**64}, "seed must be >= 0"),
    ],
)
def test_what_cannot_be_stored_so_is_refused_when_it_is_asked_for(dtype, options, message):
    param = Parameter(np.ones(3, dtype), name="w")
    with pytest.raises(ValueError, match=message):
        Adam([("w", param)], **options)


def test_a_seed_must_be_an_int():
    with pytest.raises(TypeError, match=r"seed must be an int, not 0\.5"):
        Adam([Parameter([1.0])], seed=0.5)


def test_a_refused_group_is_not_added():
    optimizer = Adam([("w", Parameter([1.0]))])
    with pytest.raises(ValueError, match="'v' is float16"):
        optimizer.add_param_group(
            {"params": [("v", Parameter(np.ones(3, HALF)))], "master": "none"}
        )
    assert len(optimizer.param_groups) == 1


def test_an_option_edited_to_what_cannot_be_is_refused_by_the_step():
    param, optimizer = made(Adam, "float16")
    optimizer.param_groups[0]["master"] = "none"
    param.grad = gradient(0, HALF)
    with pytest.raises(ValueError, match="float16, whose updates would be lost"):
        optimizer.step()


def test_another_kind_of_master_is_refused_once_there_is_one():
    param, optimizer = made(Adam, "master")
    train(param, optimizer, 0, 1)
    optimizer.param_groups[0]["master"] = "split"
    param.grad = gradient(1, BRIEF)
    before = bits(param, optimizer)
    with pytest.raises(ValueError, match="exact value in the slot 'master'"):
        optimizer.step()
    assert bits(param, optimizer) == before


@pytest.mark.parametrize(
    ("slot", "value", "message"),
    [
        ("master", np.ones(SIZE), "slot 'master' has dtype float64"),
        ("master", np.ones(2, np.float32), "slot 'master' has shape"),
        ("exp_avg", np.ones(SIZE, np.float16), "slot 'exp_avg' has dtype float16"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(slot, value, message):
    param, optimizer = made(Adam, "master")
    train(param, optimizer, 0, 1)
    saved = optimizer.state_dict()
    saved["state"][0][slot] = value
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)


def test_a_gradient_of_another_dtype_is_refused_with_a_remedy():
    param = Parameter(np.ones(3, BRIEF), name="w")
    with pytest.raises(ValueError, match=r"grad of parameter 'w' has dtype float32.*grad_dtype"):
        param.grad = np.ones(3, np.float32)


@pytest.mark.parametrize(("way", "words"), [
    ("master", "float32 masters in the slot 'master'"),
    ("split", "split between the parameter and the slot 'master_low'; state float32"),
    ("none", "no masters, rounded stochastically"),
    ("brief", "state bfloat16, rounded stochastically"),
])  # fmt: skip
def test_explain_says_what_is_stored_as_what(way, words, capsys):
    param, optimizer = made(AdamW, way)
    param.grad = gradient(0, param.dtype)
    optimizer.explain()
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("master", "stored as bfloat16 with master float32, state float32"),
        ("split-brief", "stored as bfloat16 with master split, state bfloat16"),
        ("none", "stored as bfloat16 with master none, state float32"),
        ("brief", "stored as float32 with master none, state bfloat16"),
    ],
)
def test_repr_says_what_is_stored_as_what(way, words):
    assert words in repr(made(AdamW, way)[1])


@pytest.mark.parametrize(
    ("way", "moved"), [("master", 28), ("split", 26), ("none", 22), ("split-brief", 18)]
)
def test_explain_counts_the_bytes(way, moved, capsys):
    param, optimizer = made(AdamW, way)
    param.grad = gradient(0, param.dtype)
    optimizer.explain()
    assert f"  {moved} bytes moved per element" in capsys.readouterr().out


def test_no_warning_is_given_where_nothing_was_replaced():
    param, optimizer = made(AdamW, "master")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(param, optimizer, 0, 2)
        optimizer.add_param_group({"params": [Parameter([1.0])], "param_names": ["b"]})
        train(param, optimizer, 2, 4)


@every_way
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.usefixtures("emulated")
def test_masters_are_the_exact_values(way, device):
    param, optimizer = made(AdamW, way, device)
    train(param, optimizer, 0, 2)
    (exact,) = masters(optimizer).values()
    assert exact.dtype == SINGLE
    rounded = np.asarray(transfer.to(exact, "cpu"))
    if param.dtype != SINGLE and way != "none":
        near = (
            formats.split(rounded)[0] if "split" in way else formats.nearest(rounded, param.dtype)
        )
        np.testing.assert_array_equal(near.view(np.uint16), param.numpy().view(np.uint16))


def test_masters_of_parameters_with_one_name_are_refused():
    params = [("w", Parameter([1.0])), ("w", Parameter([2.0]))]
    with pytest.raises(ValueError, match="two parameters are called 'w'"):
        masters(SGD(params, lr=0.1))
