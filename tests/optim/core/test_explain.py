"""explain: how a step will run."""

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.device import gpu
from lucid_gpu.optim import SGD, Adam


def trained(data, name):
    param = Parameter(data, name=name)
    param.grad = param.data
    return param


def test_it_names_bytes_and_switches_of_each_variant(capsys):
    decayed = {"params": [trained(np.ones(4, np.float32), "w")], "weight_decay": 0.1}
    Adam([decayed, {"params": [trained(np.ones(3, np.float32), "b")], "amsgrad": True}]).explain()
    text = capsys.readouterr().out
    assert "one step of 2 parameters" in text
    assert "cpu, float32: 2 tensors, 7 elements" in text
    assert "28 bytes moved per element in 1 tensors with amsgrad=False, decay=l2" in text
    assert "36 bytes moved per element in 1 tensors with amsgrad=True, decay=none" in text


def test_it_names_tensors_without_a_gradient(capsys):
    Adam([trained(np.ones(4), "w"), Parameter(np.ones(2), name="frozen")]).explain()
    assert "no gradient, so no step: 'frozen'" in capsys.readouterr().out


def test_it_says_which_tensor_takes_the_slow_path_and_why(capsys):
    mixed = Parameter(np.ones((3, 4)), name="mixed")
    mixed.grad = np.asfortranarray(np.ones((3, 4)))
    SGD([trained(np.ones(8)[::2], "view"), mixed]).explain()
    text = capsys.readouterr().out
    assert "2 tensors are not contiguous" in text
    assert "'view': the parameter has strides (16,)" in text
    assert "'mixed': its arrays mix C and Fortran order" in text


def test_it_takes_no_step_and_makes_no_state():
    optimizer = Adam([trained(np.ones(4), "w")])
    optimizer.explain()
    assert len(optimizer.state) == 0


def test_it_counts_what_steps_and_nothing_else(capsys):
    idle = Parameter(np.ones(50, np.float32), name="idle")
    SGD([trained(np.ones(4, np.float32), "w"), idle]).explain()
    text = capsys.readouterr().out
    assert "one step of 1 parameters" in text
    assert "cpu, float32: 1 tensors, 4 elements" in text
    assert "in 1 tensors with momentum=none" in text


def test_each_dtype_has_a_part_of_its_own(capsys):
    SGD([trained(np.ones(4, np.float32), "w"), trained(np.ones(3), "b")], momentum=0.5).explain()
    text = capsys.readouterr().out
    assert "cpu, float32: 1 tensors, 4 elements" in text
    assert "cpu, float64: 1 tensors, 3 elements" in text
    assert "20 bytes moved per element in 1 tensors" in text
    assert "40 bytes moved per element in 1 tensors" in text


@pytest.mark.parametrize("maximize", [False, True])
def test_it_says_which_groups_follow_the_gradient_upwards(capsys, maximize):
    SGD([trained(np.ones(4), "w")], maximize=maximize).explain()
    assert f"maximize={maximize}" in capsys.readouterr().out


def test_it_names_the_first_eight_without_a_gradient_and_counts_the_rest(capsys):
    SGD([Parameter([1.0], name=f"p{number}") for number in range(11)]).explain()
    text = capsys.readouterr().out
    names = ", ".join(f"'p{number}'" for number in range(8))
    assert f"no gradient, so no step: {names}, and 3 more" in text


def test_a_slot_that_is_not_contiguous_is_named(capsys):
    param = trained(np.ones(4), "w")
    optimizer = SGD([param], momentum=0.5)
    optimizer.state[param].update(step=1, momentum_buffer=np.ones(8)[::2])
    optimizer.explain()
    assert "'w': the momentum_buffer has strides (16,)" in capsys.readouterr().out


def test_a_slot_of_no_variant_in_use_slows_nothing_down(capsys):
    param = trained(np.ones(4), "w")
    optimizer = SGD([param])
    optimizer.state[param].update(step=1, momentum_buffer=np.ones(8)[::2])
    optimizer.explain()
    assert "not contiguous" not in capsys.readouterr().out


def test_it_agrees_with_the_step_that_follows_and_the_one_before(capsys):
    params = [trained(np.ones(4), "a"), trained(np.ones(3), "b")]
    optimizer = Adam(params)
    optimizer.explain()
    first = capsys.readouterr().out
    optimizer.step()
    optimizer.explain()
    assert capsys.readouterr().out == first
    params[0].grad = None
    optimizer.explain()
    assert "one step of 1 parameters" in capsys.readouterr().out


def test_what_step_would_refuse_is_refused():
    whole = trained(np.ones(4, np.int32), "whole")
    with pytest.raises(TypeError, match="'whole' has dtype int32"):
        Adam([whole]).explain()


@pytest.mark.usefixtures("emulated")
def test_it_names_the_kernel_of_all_variants_of_a_launch(capsys):
    xp = gpu.module("cuda")
    params = [trained(xp.ones(4, xp.float32), name) for name in "ab"]
    Adam([{"params": params[:1]}, {"params": params[1:], "amsgrad": True}]).explain()
    text = capsys.readouterr().out
    assert "Stored<Adam<float, 0>, float, float>" in text
    assert "Stored<Adam<float, 1>, float, float, float>" in text


@pytest.mark.usefixtures("emulated")
def test_it_says_that_strided_tensors_of_hosted_state_hold_up_the_host(capsys):
    xp = gpu.module("cuda")
    view = trained(xp.ones(8, xp.float32)[::2], "view")
    Adam([view]).explain()
    assert "1 tensors are not contiguous, 1 launch each:" in capsys.readouterr().out
    Adam([view], state_device="host").explain()
    text = capsys.readouterr().out
    assert "1 tensors are not contiguous, 1 launch each, and the host waits for each:" in text


@pytest.mark.usefixtures("emulated")
def test_it_counts_the_launches_of_a_gpu(capsys):
    xp = gpu.module("cuda")
    params = [trained(xp.ones(5000, xp.float32), "w"), trained(xp.ones(3, xp.float32), "b")]
    Adam(params).explain()
    text = capsys.readouterr().out
    assert "cuda:0, float32: 2 tensors, 5,003 elements" in text
    assert "1 launch of 3 blocks for 2 contiguous tensors: fused_step<float, " in text


@pytest.mark.usefixtures("emulated")
def test_it_says_what_crosses_the_link_when_the_state_is_on_the_host(capsys):
    xp = gpu.module("cuda")
    own = [trained(xp.ones(9, xp.float32), "w"), trained(np.ones(4, np.float32), "b")]
    Adam(own, state_device="host").explain()
    text = capsys.readouterr().out
    assert "1 launch for each 32 MiB of slots for 1 contiguous tensors: fused_step<float" in text
    assert text.count("of which 8 come from the host, and as many return") == 1
    SGD(own, state_device="host").explain()
    text = capsys.readouterr().out
    assert "1 launch of 1 blocks" in text
    assert "from the host" not in text


@pytest.mark.usefixtures("emulated")
def test_it_tells_of_arrays_at_another_alignment(capsys):
    xp = gpu.module("cuda")
    own = [trained(xp.ones(9, xp.float32), name) for name in ("w", "b", "empty", "all alike")]
    own[1].grad = xp.ones(10, xp.float32)[1:]
    own[2] = trained(xp.ones(1, xp.float32)[1:], "empty")
    own[3] = trained(xp.ones(10, xp.float32)[1:], "all alike")
    own[3].grad = xp.ones(10, xp.float32)[1:]
    SGD(own).explain()
    text = capsys.readouterr().out
    assert "1 tensors have arrays at different alignments:" in text
    assert "'b': the gradient cannot be read 16 bytes at a time beside the others" in text

    optimizer = SGD(own, momentum=0.9)
    optimizer.step()
    optimizer.state[own[0]]["momentum_buffer"] = xp.ones(12, xp.float32)[3:]
    optimizer.explain()
    text = capsys.readouterr().out
    assert "3 tensors have arrays at different alignments:" in text
    for name, what in (
        ("w", "momentum_buffer"),
        ("b", "gradient"),
        ("all alike", "momentum_buffer"),
    ):
        assert f"'{name}': the {what} cannot" in text


def test_bad_options_are_refused():
    optimizer = Adam([trained(np.ones(4), "w")])
    optimizer.param_groups[0]["lr"] = -1
    with pytest.raises(ValueError, match="lr must be >= 0"):
        optimizer.explain()


def read_only():
    data = np.ones(4, np.float32)
    data.flags.writeable = False
    return data


@pytest.mark.parametrize("make", [lambda: np.ones(4, np.int32), read_only])
def test_what_cannot_step_is_refused_as_the_step_refuses_it(make):
    optimizer = Adam([trained(make(), "w")])
    with pytest.raises((TypeError, ValueError)) as told:
        optimizer.explain()
    with pytest.raises(told.type) as raised:
        optimizer.step()
    assert str(told.value) == str(raised.value)


def test_it_describes_the_step_that_was_prepared(capsys):
    params = [trained(np.ones(4, np.float32), "w"), trained(np.ones(3, np.float32), "b")]
    optimizer = Adam(params)
    optimizer.step()
    params[1].grad = None
    optimizer.explain()
    text = capsys.readouterr().out
    assert "one step of 1 parameters" in text
    assert "cpu, float32: 1 tensors, 4 elements" in text
    assert "no gradient, so no step: 'b'" in text
