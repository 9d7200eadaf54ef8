"""Section 4 of docs/contract.md: state and its dict. Rows 27 to 29 have a file of their own."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from lucid_gpu import Parameter, optim
from lucid_gpu.device import gpu
from lucid_gpu.device.arrays import device_of
from tests.contract.support import (
    MyOptimizer,
    array,
    everything,
    picture,
    trained,
    unchanged,
    values,
)

SLOTS = [
    (optim.SGD, {}, ["step"]),
    (optim.SGD, {"momentum": 0.9}, ["step", "momentum_buffer"]),
    (optim.Adam, {}, ["step", "exp_avg", "exp_avg_sq"]),
    (optim.AdamW, {}, ["step", "exp_avg", "exp_avg_sq"]),
    (optim.Adam, {"amsgrad": True}, ["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"]),
    (optim.Adam, {"amsgrad": "raw"}, ["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"]),
]


def adam(device, names=("w", "b"), steps=2, **options):
    """Return an Adam that has stepped, over parameters of different sizes with these names."""
    params = [
        trained(np.arange(i + 1) + 1.0, np.full(i + 1, 0.5 * (i + 1)), device, name=name)
        for i, name in enumerate(names)
    ]
    optimizer = optim.Adam(params, **{"lr": 0.1, **options})
    for _ in range(steps):
        optimizer.step()
    return optimizer


def by_name(optimizer):
    """Return a picture of the state of each parameter by its name."""
    return {
        name: picture(dict(optimizer.state[param])) if param in optimizer.state else None
        for group in optimizer.param_groups
        for name, param in zip(group["param_names"], group["params"], strict=True)
    }


@pytest.mark.parametrize(("rule", "options", "names"), SLOTS)
def test_slots_have_the_names_of_pytorch(device, rule, options, names):
    """Row 20 of docs/contract.md."""
    param = trained([1.0], [1.0], device)
    optimizer = rule([param], **options)
    optimizer.step()
    assert sorted(optimizer.state[param]) == sorted(names)


def test_state_is_created_at_the_first_step(device):
    """Row 20 of docs/contract.md."""
    param = trained([1.0], [1.0], device)
    optimizer = optim.Adam([param])
    assert len(optimizer.state) == 0
    assert param not in optimizer.state
    optimizer.step()
    assert list(optimizer.state) == [param]


def test_the_step_slot_is_a_python_int(device):
    """Row 20 of docs/contract.md."""
    optimizer = adam(device)
    assert [type(slots["step"]) for slots in optimizer.state.values()] == [int, int]
    assert [slots["step"] for slots in optimizer.state.values()] == [2, 2]


def test_slots_live_beside_their_parameter(device):
    """Row 20 of docs/contract.md."""
    optimizer = adam(device)
    for param, slots in optimizer.state.items():
        assert device_of(slots["exp_avg"]) == param.device
        assert slots["exp_avg"].dtype == param.dtype
        assert slots["exp_avg"].shape == param.shape


def test_a_step_count_that_numpy_counted_is_loaded_as_a_python_int(device):
    """Row 20."""
    saved, twin = adam(device).state_dict(), adam(device, steps=1)
    saved["state"][0]["step"] = np.int64(2)
    twin.load_state_dict(saved)
    step = twin.state[twin.param_groups[0]["params"][0]]["step"]
    assert (type(step), step) == (int, 2)
    assert type(saved["state"][0]["step"]) is np.int64


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8])
def test_a_step_count_that_is_set_is_used(device, kind):
    """Row 20 of docs/contract.md."""
    set_, run = adam(device, steps=1), adam(device, steps=1)
    for optimizer in (set_, run):
        for param in optimizer.state:
            optimizer.state[param]["step"] = kind(10)
    set_.step()
    assert {slots["step"] for slots in set_.state.values()} == {11}
    assert values(next(iter(set_.state))) != values(next(iter(run.state)))


def test_a_slot_that_is_replaced_is_used(device):
    """Row 20 of docs/contract.md."""
    param = trained([1.0], [0.0], device)
    optimizer = optim.SGD([param], lr=1.0, momentum=0.5)
    optimizer.step()
    optimizer.state[param]["momentum_buffer"] = array([2.0], device)
    optimizer.step()
    assert values(param) == [0.0]


def test_state_that_is_deleted_starts_anew(device):
    """Row 20 of docs/contract.md."""
    param = trained([1.0], [1.0], device)
    optimizer = optim.Adam([param])
    optimizer.step()
    del optimizer.state[param]
    optimizer.step()
    assert optimizer.state[param]["step"] == 1


def test_the_state_dict_has_the_documented_form(device):
    """Row 21 of docs/contract.md."""
    optimizer = optim.SGD(
        [
            {"params": [("w", trained([1.0], [1.0], device)), ("b", Parameter([1.0]))]},
            {"params": [("v", trained([1.0], [1.0], device))], "lr": 0.5, "own": "kept"},
        ],
        momentum=0.9,
    )
    optimizer.step()
    saved = optimizer.state_dict()
    assert list(saved) == ["state", "param_groups"]
    assert {key: sorted(slots) for key, slots in saved["state"].items()} == {
        0: ["momentum_buffer", "step"],
        2: ["momentum_buffer", "step"],
    }
    assert [group["params"] for group in saved["param_groups"]] == [[0, 1], [2]]
    assert [group["param_names"] for group in saved["param_groups"]] == [["w", "b"], ["v"]]
    assert [group["lr"] for group in saved["param_groups"]] == [0.001, 0.5]
    assert saved["param_groups"][1]["own"] == "kept"
    assert [group["optimizer_class"] for group in saved["param_groups"]] == ["SGD", "SGD"]


def test_a_state_dict_is_a_snapshot(device):
    """Row 21 of docs/contract.md."""
    optimizer = adam(device)
    saved = optimizer.state_dict()
    before = picture(saved)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 9.0
    assert picture(saved) == before


def test_a_state_dict_shares_nothing_with_the_optimizer(device):
    """Row 21 of docs/contract.md."""
    optimizer = adam(device)
    saved = optimizer.state_dict()
    with unchanged(optimizer):
        saved["state"][0]["exp_avg"][...] = 7
        saved["state"][0]["step"] = 7
        saved["param_groups"][0]["lr"] = 7
        saved["param_groups"][0]["param_names"].append("more")
        saved["param_groups"][0]["params"].clear()


def test_arrays_of_a_state_dict_stay_on_their_device(device):
    """Row 21 of docs/contract.md."""
    saved = adam(device).state_dict()
    assert device_of(saved["state"][0]["exp_avg"]) == gpu.resolve(device)


def test_a_state_dict_can_be_brought_to_the_host(device):
    """Row 21 of docs/contract.md."""
    saved = adam(device).state_dict(device="cpu")
    arrays = [slot for slots in saved["state"].values() for slot in slots.values()]
    assert {device_of(slot) for slot in arrays if not isinstance(slot, int)} == {"cpu"}


def test_a_state_dict_without_copies_holds_the_arrays_of_the_optimizer(device):
    """Row 21 of docs/contract.md."""
    optimizer = adam(device)
    shared = optimizer.state_dict(copy=False)["state"][0]["exp_avg"]
    assert shared is optimizer.state[optimizer.param_groups[0]["params"][0]]["exp_avg"]


@pytest.mark.parametrize(("rule", "options", "names"), SLOTS)
def test_loading_resumes_as_if_nothing_had_happened(device, rule, options, names):
    """Row 22 of docs/contract.md."""
    params = [trained([1.0, 2.0], [0.5, -1.0], device) for _ in range(2)]
    straight, resumed = (rule([param], lr=0.1, **options) for param in params)
    for _ in range(5):
        straight.step()
    for _ in range(2):
        resumed.step()
    saved = resumed.state_dict(device="cpu")
    fresh = rule([params[1]], lr=9.0, **options)
    fresh.load_state_dict(saved)
    for _ in range(3):
        fresh.step()
    assert picture(params[0].data) == picture(params[1].data)
    assert by_name(fresh) == by_name(straight)


def test_later_changes_to_the_dict_do_not_reach_the_optimizer(device):
    """Row 22 of docs/contract.md."""
    optimizer = adam(device)
    saved = optimizer.state_dict()
    saved["param_groups"][0]["tags"] = [array([1.0], device), {"deep": [2]}]
    optimizer.load_state_dict(saved)
    with unchanged(optimizer):
        saved["state"][0]["exp_avg"][...] = 7
        saved["param_groups"][0]["tags"][0][...] = 7
        saved["param_groups"][0]["tags"][1]["deep"].append(3)
        saved["param_groups"].clear()


def test_later_steps_do_not_reach_the_dict(device):
    """Row 22 of docs/contract.md."""
    optimizer = adam(device)
    saved = optimizer.state_dict()
    before = picture(saved)
    optimizer.load_state_dict(saved)
    optimizer.step()
    assert picture(saved) == before


def test_two_optimizers_loaded_from_one_dict_are_independent(device):
    """Row 22 of docs/contract.md."""
    saved = adam(device).state_dict()
    one, two = adam(device, steps=0), adam(device, steps=0)
    one.load_state_dict(saved)
    two.load_state_dict(saved)
    with unchanged(two):
        one.step()


@pytest.mark.parametrize("strict", [True, False])
def test_the_given_dict_is_never_mutated(device, strict):
    """Row 22 of docs/contract.md."""
    optimizer = adam(device)
    saved = optimizer.state_dict()
    before = picture(saved)
    optimizer.load_state_dict(saved, strict)
    assert picture(saved) == before


def test_loading_drops_the_state_of_parameters_that_had_not_stepped(device):
    """Row 22 of docs/contract.md: a parameter has stepped as often as when it was saved."""
    early, late = adam(device, steps=0), adam(device, steps=2)
    late.load_state_dict(early.state_dict())
    assert by_name(late) == {"w": None, "b": None}


def test_arrays_go_to_the_device_of_their_parameter(emulated):
    """Row 23 of docs/contract.md."""
    on_gpu, on_cpu = adam("cuda:0"), adam("cpu", steps=0)
    on_cpu.load_state_dict(on_gpu.state_dict())
    assert {device_of(slots["exp_avg"]) for slots in on_cpu.state.values()} == {"cpu"}
    back = adam("cuda:1", steps=0)
    back.load_state_dict(on_cpu.state_dict())
    assert {device_of(slots["exp_avg"]) for slots in back.state.values()} == {"cuda:1"}
    assert {type(slots["step"]) for slots in back.state.values()} == {int}


def test_each_slot_keeps_its_own_dtype(device):
    """Row 23 of docs/contract.md."""

    class Mixed(MyOptimizer):
        def step(self, closure=None):
            for param in self.param_groups[0]["params"]:
                xp = gpu.module(param.device)
                self.state[param]["step"] = self.state[param].get("step", 0) + 1
                self.state[param]["exp_avg"] = xp.ones(param.shape, "float32")
                self.state[param]["count"] = xp.ones(param.shape, "int64")

    optimizer = Mixed([Parameter(np.zeros(2, np.float16), device=device)])
    optimizer.step()
    fresh = Mixed([Parameter(np.zeros(2, np.float16), device=device)])
    fresh.load_state_dict(optimizer.state_dict(device="cpu"))
    assert by_name(fresh) == by_name(optimizer)
    slots = next(iter(fresh.state.values()))
    assert slots["exp_avg"].dtype == np.float32
    assert slots["count"].dtype == np.int64
    assert type(slots["step"]) is int


def test_parameters_are_matched_by_name_in_another_order(device):
    """Row 24 of docs/contract.md."""
    optimizer = adam(device, ["a", "b", "c"])
    params = optimizer.param_groups[0]["params"]
    twin = optim.Adam(list(reversed(params)))
    twin.load_state_dict(optimizer.state_dict())
    assert by_name(twin) == by_name(optimizer)


def test_parameters_are_matched_by_name_in_groups_of_another_order(device):
    """Row 24 of docs/contract.md."""
    a, b, c = (trained([1.0], [g], device, name=n) for n, g in (("a", 1), ("b", 2), ("c", 3)))
    optimizer = optim.Adam([{"params": [a, b], "lr": 0.5}, {"params": [c], "lr": 0.25}])
    optimizer.step()
    twin = optim.Adam([{"params": [c]}, {"params": [b, a]}])
    twin.load_state_dict(optimizer.state_dict())
    assert by_name(twin) == by_name(optimizer)
    assert [group["lr"] for group in twin.param_groups] == [0.25, 0.5]


def test_parameters_moved_to_another_group_are_refused_as_ambiguous(device):
    """Row 24 of docs/contract.md."""
    a, b, c = (trained([1.0], [1.0], device, name=n) for n in "abc")
    optimizer = optim.Adam([{"params": [a, b], "lr": 0.5}, {"params": [c], "lr": 0.25}])
    twin = optim.Adam([{"params": [a]}, {"params": [b, c]}])
    message = "group 1 are spread over its groups 0, 1, so that their options are ambiguous"
    with unchanged(twin), pytest.raises(ValueError, match=message):
        twin.load_state_dict(optimizer.state_dict())


def test_names_that_occur_twice_are_refused_where_the_order_differs(device):
    """Row 24 of docs/contract.md."""
    params = [trained([1.0], [g], device, name=n) for n, g in (("w", 1), ("w", 2), ("b", 3))]
    optimizer = optim.Adam(params)
    optimizer.step()
    twin = optim.Adam(list(reversed(params)))
    with unchanged(twin), pytest.raises(ValueError, match=r"'w'.*several parameters.*ambiguous"):
        twin.load_state_dict(optimizer.state_dict())


def test_names_that_occur_twice_are_fine_where_the_order_is_the_same(device):
    """Row 24 of docs/contract.md."""
    params = [trained([1.0], [g], device, name="w") for g in (1, 2)]
    optimizer, twin = optim.Adam(params), optim.Adam(params)
    optimizer.step()
    twin.load_state_dict(optimizer.state_dict())
    assert everything(twin) == everything(optimizer)


def test_parameters_are_matched_by_position_where_one_side_has_no_names(device):
    """Row 24 of docs/contract.md."""
    named = adam(device, ["a", "b"])
    unnamed = adam(device, [None, None], steps=0)
    unnamed.load_state_dict(named.state_dict())
    assert list(by_name(unnamed).values()) == list(by_name(named).values())


def test_a_dict_without_names_is_matched_by_position(device):
    """Row 24 of docs/contract.md."""
    optimizer, twin = adam(device), adam(device, steps=0)
    saved = optimizer.state_dict()
    del saved["param_groups"][0]["param_names"]
    twin.load_state_dict(saved)
    assert by_name(twin) == by_name(optimizer)


def test_a_strict_error_lists_every_mismatch_at_once(device):
    """Row 24 of docs/contract.md."""
    saved = adam(device, ["a", "b", "c", "gone"]).state_dict()
    saved["state"][0]["exp_avg"] = np.zeros(9, np.float32)
    saved["state"][1]["velocity"] = 1
    del saved["state"][2]["exp_avg_sq"]
    saved["param_groups"][0]["eps"] = -1.0
    saved["param_groups"][0]["optimizer_class"] = "Lion"
    twin = adam(device, ["a", "b", "c", "new"])
    with unchanged(twin), pytest.raises(ValueError, match="nothing was loaded") as caught:
        twin.load_state_dict(saved)
    for part in (
        "it was saved by Lion, this is Adam",
        "group 0: 'new' is not in it",
        "'gone' is in it but not in this optimizer",
        "group 0: eps must be >= 0, not -1.0",
        "'a': slot 'exp_avg' has shape (9,), but the parameter has shape (1,)",
        "'b': slot 'velocity' is unknown",
        "'c': slot 'exp_avg_sq' is missing",
    ):
        assert f"\n  - {part}" in str(caught.value)
    assert str(caught.value).count("\n  - ") == 7


def test_strict_checks_the_number_of_groups(device):
    """Row 24 of docs/contract.md."""
    saved = adam(device, [None, None]).state_dict()
    twin = optim.Adam([{"params": [Parameter([1.0])]}, {"params": [Parameter([1.0, 2.0])]}])
    with unchanged(twin), pytest.raises(ValueError, match="1 parameter groups, this optimizer"):
        twin.load_state_dict(saved)


def test_strict_checks_the_sizes_of_groups(device):
    """Row 24 of docs/contract.md."""
    saved = adam(device, [None, None]).state_dict()
    twin = adam(device, [None, None, None])
    with unchanged(twin), pytest.raises(ValueError, match="group 0 has 2 parameters saved, 3 here"):
        twin.load_state_dict(saved)


def test_strict_checks_the_class(device):
    """Row 24 of docs/contract.md."""
    saved = adam(device).state_dict()
    twin = optim.AdamW([Parameter([1.0], name="w"), Parameter([1.0, 2.0], name="b")])
    with unchanged(twin), pytest.raises(ValueError, match="saved by Adam, this is AdamW"):
        twin.load_state_dict(saved)


@pytest.mark.parametrize("step", [1.0, -1, "1", None, True, np.float64(1), np.int64(-1)])
def test_strict_checks_the_step_count(device, step):
    """Row 24 of docs/contract.md."""
    saved = adam(device).state_dict()
    saved["state"][0]["step"] = step
    twin = adam(device)
    with unchanged(twin), pytest.raises(ValueError, match="'w': slot 'step' must be an int >= 0"):
        twin.load_state_dict(saved)


def test_strict_checks_shapes_of_slots_of_any_optimizer(device):
    """Row 24 of docs/contract.md."""
    optimizer = MyOptimizer([trained([1.0, 2.0], [1.0, 1.0], device, name="w")])
    param = optimizer.param_groups[0]["params"][0]
    optimizer.state[param]["average"] = param.data.copy()
    saved = optimizer.state_dict()
    saved["state"][0]["average"] = np.zeros(3, np.float32)
    message = r"'w': slot 'average' has shape \(3,\), here it has \(2,\)"
    with unchanged(optimizer), pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)


def test_not_strict_loads_what_fits_and_warns_of_the_rest(device):
    """Row 24 of docs/contract.md."""
    source = adam(device, ["a", "b", "gone"])
    saved = source.state_dict()
    saved["state"][1]["exp_avg"] = np.zeros(9, np.float32)
    twin = adam(device, ["a", "b", "new"], steps=3, lr=0.7)
    before = by_name(twin)
    with pytest.warns(UserWarning, match="not loaded") as caught:
        twin.load_state_dict(saved, strict=False)
    assert caught[0].filename == __file__
    text = str(caught[0].message)
    assert all(part in text for part in ("'new'", "'gone'", "'b': slot 'exp_avg'"))
    after = by_name(twin)
    assert after["a"] == by_name(source)["a"]
    assert after["b"] == before["b"]
    assert after["new"] == before["new"]
    assert twin.param_groups[0]["lr"] == 0.1


def test_not_strict_keeps_options_that_are_out_of_bounds_as_they_were(device):
    """Row 24 of docs/contract.md."""
    source = adam(device)
    saved = source.state_dict()
    saved["param_groups"][0]["lr"] = -1
    twin = adam(device, steps=0, lr=0.7)
    with pytest.warns(UserWarning, match="lr must be >= 0"):
        twin.load_state_dict(saved, strict=False)
    assert twin.param_groups[0]["lr"] == 0.7
    assert by_name(twin) == by_name(source)


def test_not_strict_says_nothing_where_all_fits(device):
    """Row 24 of docs/contract.md."""
    adam(device).load_state_dict(adam(device).state_dict(), strict=False)


def test_a_warning_that_is_an_error_changes_nothing(device):
    """Rows 22 and 24 of docs/contract.md."""
    saved = adam(device, ["a", "gone"]).state_dict()
    twin = adam(device, ["a", "new"], steps=1)
    with unchanged(twin), pytest.raises(UserWarning):
        twin.load_state_dict(saved, strict=False)


GROUP = {"params": [0, 1]}
MALFORMED = [
    (None, TypeError, "state_dict must be a dict, not NoneType"),
    ([1], TypeError, "state_dict must be a dict, not list"),
    ({}, KeyError, "no 'state'"),
    ({"param_groups": []}, KeyError, "no 'state'"),
    ({"state": {}}, KeyError, "no 'param_groups'; it has .'state'."),
    ({"state": [], "param_groups": []}, TypeError, r"\['state'\] must not be a list"),
    ({"state": {}, "param_groups": {}}, TypeError, r"\['param_groups'\] must not be a dict"),
    ({"state": {}, "param_groups": [3]}, TypeError, r"\['param_groups'\]\[0\] must be a dict"),
    ({"state": {}, "param_groups": [{"lr": 1}]}, KeyError, "no 'params'; it has .'lr'."),
    ({"state": {}, "param_groups": [{"params": 0}]}, TypeError, "must be a list of ids, not 0"),
    ({"state": {}, "param_groups": [{"params": [0.5]}]}, TypeError, "must be a list of ids"),
    ({"state": {}, "param_groups": [{"params": [0, 0]}]}, ValueError, "id 0, which another"),
    ({"state": {}, "param_groups": [GROUP, {"params": [1]}]}, ValueError, "id 1, which another"),
    ({"state": {2: {}}, "param_groups": [GROUP]}, ValueError, "id 2, which no group holds"),
    ({"state": {0: 5}, "param_groups": [GROUP]}, TypeError, r"\[0\] must be a dict, not int"),
    (
        {"state": {}, "param_groups": [{**GROUP, "param_names": ["w"]}]},
        ValueError,
        "'param_names'. must be a list of 2 names",
    ),
]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("malformed", "error", "message"), MALFORMED)
def test_a_malformed_dict_is_refused_with_the_reason(device, malformed, error, message, strict):
    """Row 25 of docs/contract.md."""
    optimizer = adam(device)
    with unchanged(optimizer), pytest.raises(error, match=message):
        optimizer.load_state_dict(malformed, strict)


def test_saved_options_replace_the_present_ones_and_others_stay(device):
    """Row 26 of docs/contract.md."""
    saved = adam(device, lr=0.5, eps=0.25).state_dict()
    del saved["param_groups"][0]["eps"]
    saved["param_groups"][0]["extra"] = "saved"
    twin = adam(device, lr=0.1, eps=0.125)
    twin.param_groups[0]["own"] = "kept"
    group = twin.param_groups[0]
    twin.load_state_dict(saved)
    assert twin.param_groups[0] is group
    assert [group[key] for key in ("lr", "eps", "extra", "own")] == [0.5, 0.125, "saved", "kept"]
    assert group["param_names"] == ["w", "b"]
    assert "optimizer_class" not in group


DUPLICATES = {"deepcopy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value))}


@pytest.mark.parametrize("how", DUPLICATES)
@pytest.mark.parametrize(("rule", "options", "names"), SLOTS)
def test_a_duplicate_goes_on_like_the_original(device, how, rule, options, names):
    """Row 30 of docs/contract.md."""
    optimizer = rule([trained([1.0, 2.0], [0.5, -1.0], device, name="w")], lr=0.1, **options)
    optimizer.step()
    twin = DUPLICATES[how](optimizer)
    assert everything(twin) == everything(optimizer)
    param = twin.param_groups[0]["params"][0]
    assert param is not optimizer.param_groups[0]["params"][0]
    assert param in twin.state
    with unchanged(optimizer):
        twin.step()
    optimizer.step()
    assert everything(twin) == everything(optimizer)


@pytest.mark.parametrize("how", DUPLICATES)
def test_a_duplicate_of_a_model_and_its_optimizer_stays_connected(how):
    """Row 30 of docs/contract.md."""
    param = trained([1.0], [1.0], "cpu")
    model, optimizer = DUPLICATES[how](([param], optim.SGD([param], lr=0.5)))
    optimizer.step()
    assert values(model[0]) == [0.5]
    assert values(param) == [1.0]
