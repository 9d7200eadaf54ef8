"""TorchOptimizer: PyTorch's groups, hooks and state dicts around a step of this package."""

from __future__ import annotations

import collections
import copy
import io
import pickle

import pytest

import lucid_gpu
from lucid_gpu import optim
from tests.torch.support import assert_close, everything, parameters, set_gradients, values

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[oracle]'")
import lucid_gpu.torch as ours  # noqa: E402


@pytest.fixture(params=["numpy", "compiled"])
def either_code(request):
    """Both ways to step on a CPU."""
    lucid_gpu.set_cpu_code(request.param)
    yield request.param
    lucid_gpu.set_cpu_code(None)


def race(steps=3, shapes=((3, 4), (5,), ()), kind="AdamW", **options):
    """Ours and PyTorch's after some steps with equal gradients."""
    pairs = [
        (own, getattr(library, kind)(own, **options))
        for library in (ours, torch.optim)
        for own in [parameters(*shapes)]
    ]
    for seed in range(steps):
        for params, optimizer in pairs:
            set_gradients(params, seed)
            optimizer.step()
    return pairs


# Steps


def test_gradients_that_move_come_and_go_are_found(either_code):
    (own, mine), (theirs, other) = race()
    for seed, missing in enumerate([0, 1, None, 2, None]):
        for params, optimizer in ((own, mine), (theirs, other)):
            set_gradients(params, seed)
            if missing is not None:
                params[missing].grad = None
            optimizer.step()
    assert_close(own, theirs)
    assert [mine.state[param]["step"] for param in own] == [7, 7, 7]


def test_data_that_is_replaced_is_found(either_code):
    (own, mine), (theirs, other) = race()
    for params, optimizer in ((own, mine), (theirs, other)):
        params[0].data = torch.arange(12.0).reshape(3, 4)
        set_gradients(params, 9)
        optimizer.step()
    assert_close(own, theirs)


def test_data_of_another_type_is_found(either_code):
    params = parameters((3, 4), (5,))
    optimizer = ours.SGD(params, lr=0.5, momentum=0.0)
    optimizer.step()
    params[0].data = params[0].data.double()
    params[0].grad = torch.ones(3, 4, dtype=torch.float64)
    before = params[0].detach().clone()
    optimizer.step()
    assert torch.equal(params[0].detach(), before - 0.5)


LAYOUTS = {
    "transposed": lambda tensor: tensor.t(),
    "strided": lambda tensor: torch.stack([tensor, tensor], -1)[..., 0],
    "expanded": lambda tensor: tensor[:1].expand(4, 4),
    "shared with another": lambda tensor: tensor.view(-1)[:].view(4, 4),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_gradient_of_any_layout_is_read_as_it_is(layout, either_code):
    plain, own = parameters((4, 4), (3,)), parameters((4, 4), (3,))
    optimizers = ours.AdamW(plain), ours.AdamW(own)
    for seed in range(3):
        for params, optimizer in zip((plain, own), optimizers, strict=True):
            set_gradients(params, seed)
            laid = LAYOUTS[layout](params[0].grad)
            params[0].grad = laid.contiguous() if params is plain else laid
            optimizer.step()
    assert values(plain) == values(own)


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (4, 3, 1, 1)])
def test_tensors_whose_channels_are_last_step_like_others(shape, either_code):
    plain, own = parameters(shape), parameters(shape)
    own[0].data = own[0].data.to(memory_format=torch.channels_last)
    optimizers = ours.AdamW(plain, amsgrad=True), ours.AdamW(own, amsgrad=True)
    for seed in range(4):
        for params, optimizer in zip((plain, own), optimizers, strict=True):
            set_gradients(params, seed)
            if params is own and seed != 2:
                grad = params[0].grad.to(memory_format=torch.channels_last)
                params[0].grad = grad
            optimizer.step()
    assert torch.equal(plain[0], own[0])
    for mine, other in zip(
        optimizers[0].state[plain[0]].items(), optimizers[1].state[own[0]].items(), strict=True
    ):
        assert mine[0] == other[0]
        assert mine[1] == other[1] if mine[0] == "step" else torch.equal(mine[1], other[1])


def test_channels_last_is_one_contiguous_launch(capsys):
    (param,) = parameters((4, 3, 2, 2))
    param.data = param.data.to(memory_format=torch.channels_last)
    param.grad = param.grad.to(memory_format=torch.channels_last)
    ours.AdamW([param]).explain()
    assert "not contiguous" not in capsys.readouterr().out


def test_parameters_without_elements_and_without_axes_step(either_code):
    params = parameters((0, 3), (), (1,))
    optimizer = ours.Adam(params)
    optimizer.step()
    optimizer.step()
    assert [optimizer.state[param]["step"] for param in params] == [2, 2, 2]


def test_nothing_is_prepared_anew_for_gradients_that_move(monkeypatch):
    params = parameters((3,), (4,))
    optimizer = ours.Adam(params)
    optimizer.step()
    engine = optimizer._engine
    monkeypatch.setattr(engine, "_prepare", None)
    for seed in range(3):
        set_gradients(params, seed)
        params[0].data = params[0].data.clone()
        optimizer.step()
    assert optimizer.state[params[0]]["step"] == 4


def test_no_view_is_made_for_gradients_that_compiled_code_reads(monkeypatch):
    lucid_gpu.set_cpu_code("compiled")
    try:
        params = parameters((3,), (4,))
        optimizer = ours.Adam(params)
        optimizer.step()
        monkeypatch.setattr("lucid_gpu.device.torch_tensors.as_array", None)
        set_gradients(params)
        optimizer.step()
    finally:
        lucid_gpu.set_cpu_code(None)
    assert optimizer.state[params[0]]["step"] == 2


def test_a_gradient_is_not_kept_after_the_step(either_code):
    import weakref

    params = parameters((3,))
    optimizer = ours.Adam(params)
    for _ in range(2):
        optimizer.step()
        gone = weakref.ref(params[0].grad)
        params[0].grad = None
        assert gone() is None
        set_gradients(params)


def test_autograd_is_told_of_the_write(either_code):
    params = parameters((3,), (4,))
    before = [param._version for param in params]
    optimizer = ours.Adam(params)
    optimizer.step()
    params[1].grad = None
    optimizer.step()
    assert [param._version - old for param, old in zip(params, before, strict=True)] == [2, 1]


def test_going_back_through_values_that_a_step_wrote_raises():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    other = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = ours.SGD([weight, other], lr=0.5)
    loss = (other @ weight).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_closure_is_called_once_with_gradients_on():
    (param,) = parameters((3,))
    optimizer = ours.SGD([param], lr=0.5)
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True]
    assert loss.item() > 0
    assert torch.equal(param.detach(), torch.zeros(3))


def test_the_loss_in_place_of_a_closure_is_refused():
    (param,) = parameters((3,))
    optimizer = ours.SGD([param], lr=0.5)
    before = everything(optimizer)
    with pytest.raises(TypeError, match="closure must be a function that returns the loss"):
        optimizer.step(param.sum())
    assert everything(optimizer) == before


def test_the_profiler_sees_steps_under_the_name_of_the_class():
    optimizer = ours.AdamW(parameters((3,)))
    with torch.profiler.profile() as profile:
        optimizer.step()
    assert "Optimizer.step#AdamW.step" in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("set_to_none", [False, True])
def test_gradients_are_reset_as_pytorch_does(set_to_none):
    (param,) = parameters((3,))
    optimizer, grad = ours.SGD([param], lr=0.5), param.grad
    optimizer.step()
    optimizer.zero_grad(set_to_none=set_to_none)
    assert param.grad is None if set_to_none else (param.grad is grad and not grad.any())
    optimizer.step()
    assert optimizer.state[param]["step"] == (1 if set_to_none else 2)


def test_hooks_of_pytorch_run_around_a_step():
    (param,) = parameters((3,))
    optimizer, seen = ours.Adam([param]), []
    optimizer.register_step_pre_hook(lambda *_: seen.append(("pre", optimizer.state.get(param))))
    optimizer.register_step_post_hook(
        lambda *_: seen.append(("post", optimizer.state[param]["step"]))
    )
    optimizer.step()
    assert seen == [("pre", None), ("post", 1)]


def test_a_step_that_was_interrupted_asks_for_its_state(monkeypatch):
    params = parameters((3,))
    optimizer = ours.Adam(params)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    with monkeypatch.context() as patch:
        patch.setattr("lucid_gpu.execution.cpu.CpuExecutor.run", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            optimizer.step()
    with pytest.raises(RuntimeError, match="was interrupted"):
        optimizer.step()
    optimizer.load_state_dict(saved)
    optimizer.step()
    assert optimizer.state[params[0]]["step"] == 2


def test_a_compiled_step_is_the_same_step():
    (own, mine), (theirs, other) = race()
    set_gradients(own, 7), set_gradients(theirs, 7)
    torch.compile(mine.step, backend="eager")()
    other.step()
    assert_close(own, theirs)
    assert mine.state[own[0]]["step"] == 4


# Options and groups


def test_an_option_that_is_edited_takes_effect_at_the_next_step():
    (own, mine), (theirs, other) = race(kind="SGD", lr=0.1)
    for params, optimizer in ((own, mine), (theirs, other)):
        optimizer.param_groups[0].update(lr=0.5, momentum=0.5, maximize=True)
        for seed in range(3):
            set_gradients(params, seed)
            optimizer.step()
    assert_close(own, theirs)


def test_a_learning_rate_may_be_a_tensor_that_changes_in_place():
    lr = torch.tensor(0.5)
    params = parameters((3,))
    optimizer = ours.SGD(params, lr=lr)
    for _ in range(2):
        before = params[0].detach().clone()
        optimizer.step()
        assert torch.equal(params[0].detach(), before - lr * params[0].grad)
        lr.fill_(0.25)
    assert optimizer.param_groups[0]["lr"] is lr


def test_a_tensor_among_the_options_stays_where_it_is():
    lr = torch.tensor(0.5)
    optimizer = ours.SGDScheduleFree(parameters((3,)), lr=lr)
    optimizer.step()
    optimizer.eval()
    optimizer.train()
    assert optimizer.param_groups[0]["lr"] is lr


def test_an_option_that_was_deleted_is_named():
    optimizer = ours.Adam(parameters((3,)))
    del optimizer.param_groups[0]["eps"]
    with pytest.raises(ValueError, match="a parameter group has no 'eps'"):
        optimizer.step()


def test_groups_that_are_added_and_parameters_that_thaw_step(either_code):
    (own, mine), (theirs, other) = race(shapes=((3, 4), (5,)))
    more = parameters((2,), seed=5), parameters((2,), seed=5)
    for params, added, optimizer in ((own, more[0], mine), (theirs, more[1], other)):
        optimizer.add_param_group({"params": added, "lr": 0.5})
        for seed in range(3):
            set_gradients(params, seed)
            set_gradients(added, seed)
            optimizer.step()
    assert_close([*own, *more[0]], [*theirs, *more[1]])


def test_a_group_that_asks_for_what_there_is_not_is_refused():
    optimizer = ours.Adam(parameters((3,)))
    with pytest.raises(ValueError, match="does not support differentiable=True"):
        optimizer.add_param_group({"params": parameters((2,)), "differentiable": True})
    assert len(optimizer.param_groups) == 1


def test_a_bad_option_of_a_group_is_refused_before_it_is_added():
    optimizer = ours.Adam(parameters((3,)))
    with pytest.raises(ValueError, match="lr must be >= 0, not -1"):
        optimizer.add_param_group({"params": parameters((2,)), "lr": -1})
    assert len(optimizer.param_groups) == 1


def test_a_parameter_that_is_given_twice_is_updated_once():
    plain, own = parameters((3,)), parameters((3,))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = ours.SGD([own[0], own[0]], lr=0.5)
    optimizer.step()
    ours.SGD(plain, lr=0.5).step()
    assert values(own) == values(plain)


def test_tied_weights_are_updated_once():
    first, second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    second.weight = first.weight
    model = torch.nn.Sequential(first, second)
    optimizer = ours.SGD(model.parameters(), lr=0.5)
    model(torch.ones(1, 3)).sum().backward()
    before = first.weight.detach().clone()
    optimizer.step()
    assert torch.equal(first.weight.detach(), before - 0.5 * first.weight.grad)


def test_names_of_parameters_are_in_errors_and_state_dicts():
    model = torch.nn.Linear(2, 1)
    optimizer = ours.Adam(model.named_parameters())
    model.weight.grad = torch.eye(2)[:1].to_sparse()
    with pytest.raises(ValueError, match="gradient of parameter 'weight'"):
        optimizer.step()
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


def test_a_module_in_place_of_its_parameters_is_refused():
    with pytest.raises(TypeError, match=r"pass its parameters\(\)"):
        ours.Adam(torch.nn.Sequential(torch.nn.Linear(2, 1)))


# What cannot step


def sparse_gradient(params):
    params[0].grad = params[0].grad.to_sparse()


def meta_gradient(params):
    params[0] = torch.nn.Parameter(torch.empty(3, device="meta"))
    params[0].grad = torch.empty(3, device="meta")


def complex_parameter(params):
    params[0] = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    params[0].grad = torch.ones(3, dtype=torch.complex64)


def gradient_of_another_type(params):
    params[0].grad = None
    params[0].grad_dtype = torch.float64
    params[0].grad = torch.ones(3, dtype=torch.float64)


def shared_memory(params):
    params[0].data = params[1].data[:3]


def expanded_parameter(params):
    params[0].data = torch.ones(1).expand(3)


REFUSED = [
    (sparse_gradient, ValueError, r"gradient of parameter '0.0' is a Tensor of layout sparse_coo"),
    (meta_gradient, TypeError, r"parameter '0.0' holds a Parameter on device meta"),
    (complex_parameter, TypeError, "parameter '0.0' has dtype complex64"),
    (gradient_of_another_type, ValueError, "gradient of parameter '0.0' has dtype float64"),
    (shared_memory, ValueError, "parameters '0.[01]' and '0.[01]' share memory"),
    (expanded_parameter, ValueError, "parameter '0.0' is a broadcast view"),
]


@pytest.mark.parametrize("is_later", [False, True], ids=["at first", "later"])
@pytest.mark.parametrize(
    ("spoil", "error", "message"), REFUSED, ids=lambda value: getattr(value, "__name__", "")
)
def test_what_cannot_step_is_refused_by_name_before_anything_changed(
    spoil, error, message, is_later, either_code
):
    params = parameters((3,), (4,))
    if spoil in (sparse_gradient, gradient_of_another_type, shared_memory, expanded_parameter):
        optimizer = ours.Adam(params)
        if is_later:
            optimizer.step()
        spoil(params)
    else:
        spoil(params)
        grad, params[0].grad = params[0].grad, None
        optimizer = ours.Adam(params)
        if is_later:
            optimizer.step()
        params[0].grad = grad
    before = everything(optimizer)
    with pytest.raises(error, match=message):
        optimizer.step()
    assert everything(optimizer) == before


def test_a_frozen_parameter_may_be_anything():
    frozen = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16), requires_grad=False)
    params = [frozen, torch.nn.Parameter(torch.empty(2, device="meta")), *parameters((3,))]
    ours.Adam(params).step()


def test_a_gradient_with_a_graph_is_read_without_it():
    (param,) = parameters((3,))
    param.grad = None
    (param.grad,) = torch.autograd.grad(param.pow(3).sum(), param, create_graph=True)
    expected = param.detach() - 0.5 * param.grad.detach()
    ours.SGD([param], lr=0.5).step()
    assert torch.equal(param.detach(), expected)


def test_freezing_between_steps_leaves_a_parameter_alone_once_its_gradient_is_gone():
    (own, mine), (theirs, other) = race()
    for params, optimizer in ((own, mine), (theirs, other)):
        params[0].requires_grad_(False)
        optimizer.zero_grad()
        set_gradients(params[1:], 8)
        optimizer.step()
    assert_close(own, theirs)
    assert mine.state[own[0]]["step"] == 3


def test_a_parameter_that_is_made_later_steps():
    model = torch.nn.LazyLinear(2)
    optimizer = ours.SGD(model.parameters(), lr=0.5)
    optimizer.step()
    model(torch.ones(1, 3)).sum().backward()
    before = model.weight.detach().clone()
    optimizer.step()
    assert torch.equal(model.weight.detach(), before - 0.5)


# State


def test_slots_are_tensors_like_their_parameter(either_code):
    (param,) = parameters((3, 4))
    optimizer = ours.Adam([param], amsgrad=True)
    optimizer.step()
    slots = optimizer.state[param]
    assert list(slots) == ["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
    for name in list(slots)[1:]:
        assert isinstance(slots[name], torch.Tensor)
        assert (slots[name].shape, slots[name].dtype) == (param.shape, param.dtype)
        assert slots[name] is optimizer.state[param][name]


def test_a_slot_that_is_replaced_or_changed_in_place_is_used(either_code):
    (own, mine), (theirs, other) = race(kind="SGD", momentum=0.9)
    for params, optimizer in ((own, mine), (theirs, other)):
        optimizer.state[params[0]]["momentum_buffer"] = torch.ones(3, 4)
        optimizer.state[params[1]]["momentum_buffer"].mul_(0.5)
        set_gradients(params, 8)
        optimizer.step()
    assert_close(own, theirs)


@pytest.mark.parametrize(
    "reset",
    [lambda o: o.state.clear(), lambda o: setattr(o, "state", collections.defaultdict(dict))],
)
def test_a_state_that_is_thrown_away_begins_anew(reset):
    (own, mine), (theirs, other) = race()
    for params, optimizer in ((own, mine), (theirs, other)):
        reset(optimizer)
        set_gradients(params, 8)
        optimizer.step()
    assert_close(own, theirs)
    assert mine.state[own[0]]["step"] == 1


def test_slots_can_be_rebuilt_as_trainers_do_to_move_them():
    (own, mine), _ = race()
    for param, slots in list(mine.state.items()):
        moved = type(slots)(collections.OrderedDict((k, v) for k, v in slots.items()))
        mine.state[param] = moved
    set_gradients(own, 8)
    mine.step()
    assert mine.state[own[0]]["step"] == 4


KINDS = [
    ("AdamW", {"amsgrad": True}),
    ("Adam", {"weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9}),
    ("RMSprop", {"momentum": 0.9, "centered": True}),
    ("Adagrad", {}),
    ("NAdam", {}),
    ("RAdam", {}),
    ("Adamax", {}),
    ("Adadelta", {}),
    ("Rprop", {}),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_state_dicts_go_to_pytorch_and_come_from_it(kind, options, either_code):
    (own, mine), (theirs, other) = race(kind=kind, **options)
    a, b = copy.deepcopy(mine.state_dict()), copy.deepcopy(other.state_dict())
    assert isinstance(a["state"][0]["step"], torch.Tensor)
    mine.load_state_dict(b)
    other.load_state_dict(a)
    for seed in range(3):
        for params, optimizer in ((own, mine), (theirs, other)):
            set_gradients(params, seed)
            optimizer.step()
    assert_close(own, theirs, ulps=64)


def test_state_dicts_go_to_the_optimizers_of_arrays_and_back():
    (own, mine), _ = race(amsgrad=True)
    other = optim.AdamW(own)
    other.load_state_dict(mine.state_dict())
    assert other.param_groups[0]["amsgrad"] == "raw"
    twins = [torch.nn.Parameter(param.detach().clone()) for param in own]
    twin = ours.AdamW(twins)
    twin.load_state_dict(optim.pytorch.export(other.state_dict()))
    for params, optimizer in ((own, mine), (twins, twin)):
        set_gradients(params, 8)
        optimizer.step()
    assert values(own) == values(twins)


def test_state_dicts_pass_through_files_that_hold_plain_data_only():
    (_, mine), _ = race()
    file = io.BytesIO()
    torch.save(mine.state_dict(), file)
    file.seek(0)
    before = everything(mine)
    mine.load_state_dict(torch.load(file, weights_only=True))
    assert everything(mine) == before


def test_a_run_that_is_resumed_goes_on_to_the_bit(either_code):
    (own, mine), _ = race(kind="NAdam")
    saved = copy.deepcopy(mine.state_dict())
    twins = [torch.nn.Parameter(param.detach().clone()) for param in own]
    twin = ours.NAdam(twins)
    twin.load_state_dict(saved)
    for params, optimizer in ((own, mine), (twins, twin)):
        set_gradients(params, 8)
        optimizer.step()
    assert values(own) == values(twins)


WRONG = [
    (lambda saved: saved["state"][0].update(exp_avg=torch.zeros(7)), ValueError, "shape"),
    (lambda saved: saved["state"][0].pop("exp_avg"), ValueError, "slot 'exp_avg' is missing"),
    (lambda saved: saved["state"][0].update(extra=torch.zeros(3, 4)), ValueError, "unknown"),
    (lambda saved: saved["state"][0].update(step=torch.tensor(0.5)), ValueError, "slot 'step'"),
    (lambda saved: saved["param_groups"][0].update(lr=-1.0), ValueError, "lr must be >= 0"),
    (lambda saved: saved["param_groups"][0].update(params=[0]), ValueError, "size"),
    (lambda saved: saved["state"].update({7: {"step": 1}}), ValueError, "no group holds"),
]


@pytest.mark.parametrize(("spoil", "error", "message"), WRONG)
def test_a_state_dict_that_does_not_fit_changes_nothing(spoil, error, message):
    (_, mine), _ = race()
    saved = copy.deepcopy(mine.state_dict())
    mine.param_groups[0]["lr"] = 0.5
    spoil(saved)
    before = everything(mine)
    with pytest.raises(error, match=message):
        mine.load_state_dict(saved)
    assert everything(mine) == before


NOT_SAVED = [
    (lambda mine: mine, TypeError, r"a dict, not a AdamW: pass its state_dict\(\)"),
    (lambda mine: mine.param_groups[0]["params"], TypeError, "a dict, not a list"),
    (lambda mine: {}, ValueError, "no 'state', but nothing"),
    (
        lambda mine: torch.nn.Linear(1, 1).state_dict(),
        ValueError,
        "no 'state', but 'weight', 'bias'",
    ),
    (lambda mine: {"state": {}}, ValueError, "no 'param_groups', but 'state'"),
]


@pytest.mark.parametrize(("given", "error", "message"), NOT_SAVED)
def test_what_is_no_state_dict_is_refused_with_the_remedy(given, error, message):
    _, mine = race()[0]
    before = everything(mine)
    with pytest.raises(error, match=message):
        mine.load_state_dict(given(mine))
    assert everything(mine) == before


def test_hooks_of_state_dicts_see_what_is_saved():
    (_, mine), _ = race()
    seen = []
    mine.register_state_dict_post_hook(
        lambda _, saved: seen.append(type(saved["state"][0]["step"])), prepend=True
    )
    mine.state_dict()
    assert seen == [torch.Tensor]


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_goes_on_apart(twin_of, either_code):
    (own, mine), _ = race()
    own_twin, twin = twin_of((own, mine))
    assert twin.param_groups[0]["params"][0] is own_twin[0]
    for params, optimizer in ((own, mine), (own_twin, twin)):
        set_gradients(params, 8)
        optimizer.step()
    assert values(own) == values(own_twin)
    assert twin.state[own_twin[0]]["exp_avg"] is not mine.state[own[0]]["exp_avg"]


def test_a_whole_optimizer_passes_through_a_file():
    (_, mine), _ = race()
    file = io.BytesIO()
    torch.save(mine, file)
    file.seek(0)
    assert everything(torch.load(file, weights_only=False)) == everything(mine)


def test_counts_that_float32_cannot_hold_are_saved_exactly():
    (own, mine), _ = race()
    mine.state[own[0]]["step"] = 2**24 + 1
    assert int(mine.state_dict()["state"][0]["step"]) == 2**24 + 1
    mine.load_state_dict(mine.state_dict())
    assert mine.state[own[0]]["step"] == 2**24 + 1


def test_explain_says_what_a_step_does(capsys):
    (_, mine), _ = race(shapes=((3,),))
    mine.explain()
    assert "AdamW: one step of 1 parameters" in capsys.readouterr().out


def test_a_replay_without_a_capture_is_refused():
    (_, mine), _ = race()
    with pytest.raises(RuntimeError, match="no step was captured"):
        mine.before_replay()
