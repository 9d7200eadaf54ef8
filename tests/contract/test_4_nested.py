"""Rows 27 to 29 of docs/contract.md: nested values, live objects, parameters that are text."""

from __future__ import annotations

import copy
import pickle
import tempfile
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lucid_gpu import Parameter, checkpoint, optim
from lucid_gpu.device import gpu
from lucid_gpu.device.arrays import device_of
from tests.contract.support import MyOptimizer, array, picture, trained, unchanged
from tests.contract.textual import SECRET, Client, Stateless, TextualGradientDescent

ARRAYS = hnp.arrays(
    st.sampled_from(
        [np.float32, np.float64, np.float16, np.int8, np.uint64, np.bool_, np.complex64]
    ),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.floats(width=32).map(np.float32)
    | st.integers(-9, 9).map(np.int16)
    | ARRAYS
    | st.text(max_size=5).map(Parameter)
    | ARRAYS.map(lambda x: Parameter(x, name="p"))
)
KEYS = st.text(max_size=5).filter(lambda key: key != "class_type") | st.integers()


def trees(leaves):
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(KEYS, inner, max_size=3)
        ),
        max_leaves=12,
    )


TREES = trees(LEAVES | st.complex_numbers())


class Own(optim.Optimizer):
    """An optimizer that changes nothing."""

    def step(self, closure=None):
        return None


def mine(**defaults):
    return Own([Parameter([1.0], name="w")], defaults)


@settings(max_examples=200, deadline=None)
@given(slot=TREES, option=TREES)
def test_any_nested_value_comes_back_equal_and_of_the_same_types(slot, option):
    """Row 27 of docs/contract.md."""
    optimizer, twin = mine(note=option), mine(note=None)
    param, own = optimizer.param_groups[0]["params"][0], twin.param_groups[0]["params"][0]
    optimizer.state[param]["memory"] = slot
    saved = optimizer.state_dict()
    twin.load_state_dict(saved)
    assert picture(saved["param_groups"][0]["note"]) == picture(option)
    assert picture(twin.param_groups[0]["note"]) == picture(option)
    assert picture(twin.state[own]["memory"]) == picture(slot)


@settings(max_examples=100, deadline=None)
@given(slot=TREES)
def test_what_comes_back_shares_no_array_list_or_dict(slot):
    """Rows 21, 22 and 27 of docs/contract.md."""
    optimizer = mine()
    param = optimizer.param_groups[0]["params"][0]
    optimizer.state[param]["memory"] = slot
    before = {id(part) for part in mutable_parts(slot)}
    saved = optimizer.state_dict()
    middle = {id(part) for part in mutable_parts(saved["state"].get(0))}
    optimizer.load_state_dict(saved)
    after = {id(part) for part in mutable_parts(optimizer.state[param]["memory"])}
    assert not before & middle
    assert not middle & after


def mutable_parts(value):
    if isinstance(value, Parameter):
        return [value, *mutable_parts(value.data)]
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, dict):
        return [value, *(part for item in value.values() for part in mutable_parts(item))]
    if isinstance(value, list | tuple):
        inner = [part for item in value for part in mutable_parts(item)]
        return [value, *inner] if isinstance(value, list) else inner
    return []


def test_nested_arrays_go_to_the_device_of_the_parameter(device):
    """Rows 23 and 27 of docs/contract.md."""
    param = trained([1.0], [1.0], device, name="w")
    optimizer = MyOptimizer([param])
    optimizer.state[param]["history"] = [(1, {"x": array([2.0], device)})]
    saved = optimizer.state_dict(device="cpu")
    assert device_of(saved["state"][0]["history"][0][1]["x"]) == "cpu"
    optimizer.load_state_dict(saved)
    assert device_of(optimizer.state[param]["history"][0][1]["x"]) == gpu.resolve(device)


def nested(levels):
    """Return a number inside so many lists, tuples and dicts, in turn."""
    value = 1
    for level in range(levels):
        value = ([value], (value,), {"next": value})[level % 3]
    return value


def test_values_nested_a_hundred_deep_come_back():
    """Rows 27 and 29a of docs/contract.md."""
    optimizer = mine(deep=nested(100))
    param = optimizer.param_groups[0]["params"][0]
    optimizer.state[param]["deep"] = nested(100)
    optimizer.load_state_dict(optimizer.state_dict())
    for twin in (optimizer, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        own = twin.param_groups[0]["params"][0]
        assert picture(twin.state[own]["deep"]) == picture(nested(100))
        assert picture(twin.param_groups[0]["deep"]) == picture(nested(100))


class Deep:
    """A live object whose state is nested too deep."""

    def __init__(self, levels):
        self.levels = levels

    def state_dict(self):
        return {"usage": nested(self.levels)}

    def load_state_dict(self, state):
        self.levels = 0


def with_deep_slot(levels):
    optimizer = mine()
    optimizer.state[optimizer.param_groups[0]["params"][0]]["deep"] = nested(levels)
    return optimizer


def with_deep_option(levels):
    optimizer = mine()
    optimizer.param_groups[0]["deep"] = nested(levels)
    return optimizer


def saved(**group):
    state_dict = mine().state_dict()
    state_dict["param_groups"][0].update(group)
    return state_dict


def deep_pytorch(levels):
    return {"state": {}, "param_groups": [{"params": [0], "foreach": None, "x": nested(levels)}]}


TOO_DEEP = {
    "a default": lambda n: mine(deep=nested(n)),
    "a default of a fused optimizer": lambda n: optim.SGD([Parameter([1.0])], lr=nested(n)),
    "an option of a group": lambda n: mine().add_param_group(
        {"params": [("b", Parameter([1.0]))], "deep": nested(n)}
    ),
    "an option, saved": lambda n: with_deep_option(n).state_dict(),
    "an option, copied": lambda n: copy.deepcopy(with_deep_option(n)),
    "an option, pickled": lambda n: pickle.dumps(with_deep_option(n)),
    "an option, loaded": lambda n: mine().load_state_dict(saved(deep=nested(n))),
    "an option, loaded from PyTorch": lambda n: mine().load_state_dict(deep_pytorch(n)),
    "ids, loaded": lambda n: mine().load_state_dict(saved(params=nested(n))),
    "names, loaded": lambda n: mine().load_state_dict(saved(param_names=[nested(n)])),
    "a class, loaded": lambda n: mine().load_state_dict(saved(optimizer_class=nested(n))),
    "a slot, saved": lambda n: with_deep_slot(n).state_dict(),
    "a slot, copied": lambda n: copy.deepcopy(with_deep_slot(n)),
    "a slot, pickled": lambda n: pickle.dumps(with_deep_slot(n)),
    "a slot, moved": lambda n: with_deep_slot(n).to("cpu"),
    "a slot, loaded": lambda n: mine().load_state_dict(
        {**saved(), "state": {0: {"step": nested(n)}}}
    ),
    "a client, saved": lambda n: mine(client=Deep(n)).state_dict(),
    "a description, loaded": lambda n: mine().load_state_dict(
        saved(client={"class_type": "Deep", "x": nested(n)}), model_clients={"client": Deep(1)}
    ),
    "a client, replaced": lambda n: mine().load_state_dict(
        saved(client={"class_type": "Deep"}), model_clients={"client": Deep(n)}
    ),
}


@pytest.mark.parametrize("levels", [101, 500, 5000])
@pytest.mark.parametrize("kind", TOO_DEEP)
def test_what_is_nested_deeper_than_a_hundred_levels_is_refused(kind, levels):
    """Row 29a of docs/contract.md."""
    with pytest.raises(ValueError, match="nested more than 100 levels deep"):
        TOO_DEEP[kind](levels)


def test_what_holds_itself_is_refused():
    """Row 29a of docs/contract.md."""
    value = []
    value.append(value)
    with pytest.raises(ValueError, match="holds itself"):
        mine(loop=value)


def test_a_refused_load_of_something_deep_changes_nothing():
    """Rows 22 and 29a of docs/contract.md."""
    optimizer = with_deep_slot(3)
    state_dict = optimizer.state_dict()
    state_dict["state"][0]["deep"] = nested(101)
    with unchanged(optimizer), pytest.raises(ValueError, match=r"\[0\]\['deep'\] is nested"):
        optimizer.load_state_dict(state_dict)


def test_an_option_that_was_edited_too_deep_does_not_break_the_repr():
    """Rows 9 and 29a of docs/contract.md."""
    assert "deep: <dict>" in repr(with_deep_option(1500))


class Text(str):
    """A str with attributes, which may be anything."""


class Table(dict):
    """A dict with attributes."""


NOT_PLAIN = {
    "an object": lambda: [Client()],
    "a set": lambda: {1, 2},
    "a function": lambda: {"f": len},
    "a lock": lambda: (threading.Lock(),),
    "a str with attributes": lambda: [Text("x")],
    "a dict with attributes": lambda: [Table(x=1)],
    "an array of objects": lambda: [np.array([Client()], dtype=object)],
    "a masked array": lambda: [np.ma.masked_array([1.0], [True])],
    "a key that is an object": lambda: [{Client(): 1}],
    "a foreign parameter": lambda: [__import__("types").SimpleNamespace(data=1, grad=None)],
}


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_what_is_no_plain_data_is_refused_in_a_slot_with_its_path(kind):
    """Row 27 of docs/contract.md."""
    optimizer = mine()
    param = optimizer.param_groups[0]["params"][0]
    optimizer.state[param]["memory"] = {"inner": NOT_PLAIN[kind]()}
    message = r"state of 'w'\['memory'\]\['inner'\].*no plain data: use"
    with pytest.raises(TypeError, match=message) as caught:
        optimizer.state_dict()
    assert SECRET not in str(caught.value)


def test_a_live_option_is_described_by_its_class_and_state():
    """Row 28 of docs/contract.md."""
    client = Client()
    client.usage.update(calls=3)
    saved = mine(model_client=client).state_dict()
    assert saved["param_groups"][0]["model_client"] == {
        "class_type": "Client",
        "usage": {"calls": 3, "tokens": 0},
    }


def test_a_live_option_without_state_is_described_by_its_class():
    """Row 28 of docs/contract.md."""
    saved = mine(model_client=Stateless()).state_dict()
    assert saved["param_groups"][0]["model_client"] == {"class_type": "Stateless"}


def test_the_instance_is_installed_by_reference():
    """Row 28 of docs/contract.md."""
    saved = mine(model_client=Stateless()).state_dict()
    twin, client = mine(model_client=None), Stateless("another")
    twin.load_state_dict(saved, model_clients={"model_client": client})
    assert twin.param_groups[0]["model_client"] is client
    assert client.api_key == "another"


def test_the_saved_state_is_handed_to_the_instance():
    """Row 28 of docs/contract.md."""
    client, other = Client(), Client("another")
    client.usage.update(calls=3, tokens=7)
    saved = mine(model_client=client).state_dict()
    before = picture(saved)
    mine(model_client=None).load_state_dict(saved, model_clients={"model_client": other})
    assert other.usage == {"calls": 3, "tokens": 7}
    other.usage["calls"] = 9
    assert picture(saved) == before


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("clients", [None, {}, {"another": Client()}])
def test_a_missing_client_is_refused_with_the_way_to_pass_it(strict, clients):
    """Row 28 of docs/contract.md."""
    optimizer = mine(model_client=Client())
    saved = optimizer.state_dict()
    with unchanged(optimizer), pytest.raises(ValueError, match="nothing was loaded") as caught:
        optimizer.load_state_dict(saved, strict, model_clients=clients)
    text = "option 'model_client' held a Client, a live object that is not saved: pass one with "
    assert text + "load_state_dict(..., model_clients={'model_client': <Client instance>})" in str(
        caught.value
    )


@pytest.mark.parametrize("strict", [True, False])
def test_a_client_of_another_class_is_refused(strict):
    """Row 28 of docs/contract.md."""
    optimizer = mine(model_client=Client())
    saved = optimizer.state_dict()
    message = "'model_client'. is a Stateless, but option 'model_client' held a Client: pass an"
    with unchanged(optimizer), pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved, strict, model_clients={"model_client": Stateless()})


def test_all_missing_clients_are_listed_with_the_other_mismatches():
    """Rows 24 and 28 of docs/contract.md."""
    saved = mine(forward=Client(), backward=Stateless(), x=1).state_dict()
    saved["param_groups"][0]["param_names"] = ["v"]
    with pytest.raises(ValueError, match="nothing was loaded") as caught:
        mine().load_state_dict(saved)
    text = str(caught.value)
    assert "'v' is in it but not in this optimizer" in text


def test_every_missing_client_is_listed():
    """Row 28 of docs/contract.md."""
    saved = mine(forward=Client(), backward=Stateless()).state_dict()
    with pytest.raises(ValueError, match=r"'forward'.*\n.*'backward'"):
        mine().load_state_dict(saved)


def test_clients_that_nothing_asks_for_are_ignored():
    """Row 28 of docs/contract.md."""
    optimizer = mine(lr=1)
    optimizer.load_state_dict(optimizer.state_dict(), model_clients={"extra": Client()})
    assert "extra" not in optimizer.param_groups[0]


def test_a_live_object_inside_a_list_is_refused_with_the_remedy():
    """Row 28 of docs/contract.md."""
    with pytest.raises(TypeError, match=r"option 'clients'\[0\] is a Client.*option of its own"):
        mine(clients=[Client()]).state_dict()


def test_a_dict_that_would_pass_for_a_live_object_is_refused():
    """Row 28 of docs/contract.md."""
    with pytest.raises(ValueError, match=r"option 'info' has the key 'class_type'.*rename the key"):
        mine(info={"class_type": "mine"}).state_dict()


def test_a_client_whose_state_is_no_dict_is_refused():
    """Row 28 of docs/contract.md."""

    class Odd(Stateless):
        def state_dict(self):
            return 3

    with pytest.raises(TypeError, match=r"state_dict\(\) of option 'c' is a int"):
        mine(c=Odd()).state_dict()


def hidden_in(value):
    """Say whether the secret can be reached from a value: in its text, pickle or attributes."""
    return SECRET in repr(value) or SECRET.encode() in pickle.dumps(value)


@pytest.mark.parametrize("client", [Client, Stateless])
def test_no_secret_of_a_client_reaches_a_state_dict(client):
    """Row 28 of docs/contract.md."""
    saved = mine(model_client=client(), other=client()).state_dict()
    assert not hidden_in(saved)


def test_no_secret_of_a_client_reaches_repr():
    """Rows 9 and 28 of docs/contract.md."""
    text = repr(mine(model_client=Client(), others=[Client()]))
    assert SECRET not in text
    assert "model_client: <Client>" in text


def test_no_secret_of_a_client_reaches_a_pickle():
    """Rows 28 and 30 of docs/contract.md."""
    with pytest.raises(TypeError, match=r"'model_client'.*live objects.*save state_dict\(\)"):
        pickle.dumps(mine(model_client=Client()))


def test_no_secret_in_a_slot_reaches_a_pickle():
    """Rows 28 and 30 of docs/contract.md."""
    optimizer = mine()
    optimizer.state[optimizer.param_groups[0]["params"][0]]["client"] = Client()
    with pytest.raises(TypeError, match="'client' hold live objects"):
        pickle.dumps(optimizer)


def test_a_deep_copy_shares_live_objects():
    """Rows 28 and 30 of docs/contract.md."""
    client = Client()
    client.lock = threading.Lock()  # cannot be copied
    twin = copy.deepcopy(mine(model_client=client, history=[1]))
    assert twin.param_groups[0]["model_client"] is client
    assert twin.defaults["model_client"] is client


def complaints(prompts, texts, optimizer):
    """Return a closure that clears, collects complaints and scores, as afnio asks."""

    def closure():
        optimizer.clear_grad()
        for prompt in prompts:
            prompt.grad.extend(texts)
        return 1 / (1 + len(texts)), f"{len(texts)} complaints"

    return closure


@pytest.fixture
def writing():
    prompts = [
        Parameter("You are a helpful assistant.", name="system prompt"),
        Parameter("Answer this question:", name="instruction prompt"),
    ]
    client = Client()
    return prompts, client, TextualGradientDescent(prompts, client, constraints=["be brief"])


def test_a_textual_optimizer_steps(writing):
    """Row 29 of docs/contract.md."""
    prompts, client, optimizer = writing
    result = optimizer.step(complaints(prompts, ["Too vague.", "Name sources."], optimizer))
    assert result == (1 / 3, "2 complaints")
    assert [prompt.data for prompt in prompts] == ["draft 1 of 24 words", "draft 2 of 22 words"]
    assert client.usage["calls"] == 2


def test_a_textual_optimizer_skips_parameters_without_gradients(writing):
    """Rows 12 and 29 of docs/contract.md."""
    prompts, _, optimizer = writing
    optimizer.clear_grad()
    with unchanged(optimizer):
        optimizer.step()
    assert all(prompt not in optimizer.state for prompt in prompts)


@pytest.mark.parametrize("reset", ["clear_grad", "zero_grad", "reset_grad"])
def test_the_gradient_of_a_text_is_reset_to_an_empty_list(writing, reset):
    """Row 29 of docs/contract.md."""
    prompts, _, optimizer = writing
    prompts[0].grad = given = ["Too vague."]
    getattr(optimizer, reset)()
    assert [prompt.grad for prompt in prompts] == [[], []]
    assert prompts[0].grad is not prompts[1].grad
    assert given == ["Too vague."]


def test_a_frozen_text_keeps_no_gradient():
    """Row 29 of docs/contract.md."""
    frozen = Parameter("fixed", requires_grad=False, name="a")
    optimizer = TextualGradientDescent([frozen, Parameter("free", name="b")], Client())
    optimizer.clear_grad()
    assert frozen.grad is None


def test_momentum_keeps_the_last_rounds_as_pairs(writing):
    """Rows 27 and 29 of docs/contract.md."""
    prompts, _, optimizer = writing
    for text in ("one", "two", "three"):
        optimizer.step(complaints(prompts, [text], optimizer))
    memory = optimizer.state_dict()["state"][0]["momentum_buffer"]
    assert [(type(pair), type(pair[0]), type(pair[1])) for pair in memory] == [
        (tuple, Parameter, list)
    ] * 2
    assert [[gradient.data for gradient in gradients] for _, gradients in memory] == [
        ["two"],
        ["three"],
    ]
    assert [type(old.data) for old, _ in memory] == [str, str]


def test_a_textual_optimizer_resumes_from_its_state_dict(writing):
    """Rows 27, 28 and 29 of docs/contract.md."""
    prompts, client, optimizer = writing
    for text in ("one", "two"):
        optimizer.step(complaints(prompts, [text], optimizer))
    saved = optimizer.state_dict()
    assert not hidden_in(saved)
    twins = [Parameter(prompt.data, name=prompt.name) for prompt in prompts]
    key, other = "another key", Client("another key")
    twin = TextualGradientDescent(twins, Client(), momentum=7)
    with unchanged(twin), pytest.raises(ValueError, match="'model_client' held a Client"):
        twin.load_state_dict(saved)
    twin.load_state_dict(saved, model_clients={"model_client": other})
    assert other.usage == client.usage
    assert other.api_key == key
    for own, group in ((optimizer, prompts), (twin, twins)):
        own.step(complaints(group, ["three"], own))
    assert [prompt.data for prompt in twins] == [prompt.data for prompt in prompts]
    assert picture(twin.state_dict()) == picture(optimizer.state_dict())


def test_a_textual_optimizer_comes_back_from_a_checkpoint(writing, tmp_path):
    """Rows 27, 28 and 29 of docs/contract.md."""
    prompts, client, optimizer = writing
    for text in ("one", "two"):
        optimizer.step(complaints(prompts, [text], optimizer))
    checkpoint.save(tmp_path / "saved", {"prompts": prompts, "optimizer": optimizer})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not any(SECRET.encode() in path.read_bytes() for path in files)
    saved = checkpoint.load(tmp_path / "saved")
    twins, other = saved["prompts"], Client("another key")
    twin = TextualGradientDescent(twins, Client())
    twin.load_state_dict(saved["optimizer"], model_clients={"model_client": other})
    assert picture(twin.state_dict()) == picture(optimizer.state_dict())
    assert other.usage == client.usage
    for own, group in ((optimizer, prompts), (twin, twins)):
        own.step(complaints(group, ["three"], own))
    assert [prompt.data for prompt in twins] == [prompt.data for prompt in prompts]


def test_a_checkpoint_does_not_load_into_an_optimizer_without_its_clients(writing, tmp_path):
    """Rows 22 and 28 of docs/contract.md."""
    _, _, optimizer = writing
    checkpoint.save(tmp_path / "saved", optimizer)
    with (
        unchanged(optimizer),
        pytest.raises(checkpoint.CheckpointError, match="'model_client' held a Client") as caught,
    ):
        checkpoint.load(tmp_path / "saved", into=optimizer)
    assert "could not be put back" not in str(caught.value)


@settings(max_examples=20, deadline=None)
@given(slot=trees(LEAVES))
def test_any_nested_value_comes_back_from_a_checkpoint(slot):
    """Row 27 of docs/contract.md."""
    optimizer, twin = mine(), mine()
    optimizer.state[optimizer.param_groups[0]["params"][0]]["memory"] = slot
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(f"{folder}/saved", optimizer)
        checkpoint.load(f"{folder}/saved", into=twin)
    assert picture(twin.state[twin.param_groups[0]["params"][0]]["memory"]) == picture(slot)


def test_messages_made_of_parameters_come_back(writing):
    """Row 27 of docs/contract.md."""
    prompts, _, optimizer = writing
    twin = TextualGradientDescent(prompts, Client())
    twin.param_groups[0]["messages"] = []
    twin.load_state_dict(optimizer.state_dict(), model_clients={"model_client": Client()})
    messages = twin.param_groups[0]["messages"]
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[0]["content"][0].data == "You are part of an optimization system."
    assert messages[0]["content"][0].requires_grad is False
    assert messages[0]["content"][0] is not optimizer.param_groups[0]["messages"][0]["content"][0]


def test_hooks_and_groups_work_on_texts(writing):
    """Row 29 of docs/contract.md."""
    prompts, _, optimizer = writing
    more = Parameter("Explain.", name="more")
    optimizer.add_param_group({"params": [more], "momentum": 0})
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(more.data))
    optimizer.step(complaints([*prompts, more], ["x"], optimizer))
    assert calls == [more.data]
    assert sorted(optimizer.state_dict()["state"]) == [0, 1]


def test_repr_works_on_texts(writing):
    """Rows 9 and 29 of docs/contract.md."""
    assert "2 parameters (system prompt, instruction prompt), 0 elements on cpu" in repr(writing[2])


def test_texts_of_another_library_work():
    """Rows 4 and 29 of docs/contract.md."""

    class Variable:
        def __init__(self, data, role):
            self.data, self.role, self.grad = data, role, []

    class Shout(optim.Optimizer):
        def step(self, closure=None):
            for param in self.param_groups[0]["params"]:
                param.data += "".join(param.grad)

    variable = Variable("Hello", role="greeting")
    optimizer = Shout([variable], {})
    variable.grad.append("!")
    optimizer.step()
    optimizer.clear_grad()
    assert (variable.data, variable.grad) == ("Hello!", [])
    assert "1 parameters" in repr(optimizer)
    with unchanged(optimizer):
        optimizer.load_state_dict(optimizer.state_dict())
