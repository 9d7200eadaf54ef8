"""live: objects among the options, described when saved."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_gpu.optim.core import clients


class Counter:
    def __init__(self, count=0):
        self.count = count

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        if state["count"] < 0:
            self.count = "broken"
            raise ValueError("a count is not negative")
        self.count = state["count"]


class Reader:
    def __init__(self):
        self.loaded = []

    def load_state_dict(self, state):
        self.loaded.append(state)


@pytest.mark.parametrize("value", [1, None, "x", [object()], {"a": len}, np.ones(2), (1, 2)])
def test_plain_data_and_containers_are_not_live(value):
    assert not clients.is_live(value)


@pytest.mark.parametrize("value", [object(), len, int, Counter(), np.array([object()])])
def test_everything_else_is_live(value):
    assert clients.is_live(value)


def test_a_description_has_the_class_and_a_copy_of_the_state():
    counter = Counter(3)
    assert clients.describe("c", counter, np.copy) == {"class_type": "Counter", "count": 3}


def test_plain_data_is_copied():
    data = {"x": [np.ones(2)]}
    copied = clients.describe("d", data, np.copy)
    assert copied["x"] is not data["x"]
    assert copied["x"][0] is not data["x"][0]


def test_a_state_that_holds_the_mark_is_refused():
    class Clash(Counter):
        def state_dict(self):
            return {"class_type": "mine"}

    with pytest.raises(ValueError, match=r"state_dict\(\) of option 'c' has the key 'class_type'"):
        clients.describe("c", Clash(), np.copy)


def test_a_state_that_is_no_plain_data_is_refused_with_its_path():
    class Leaky(Counter):
        def state_dict(self):
            return {"socket": object()}

    with pytest.raises(TypeError, match=r"option 'c'\['socket'\] is a object"):
        clients.describe("c", Leaky(), np.copy)


def test_install_restores_each_client():
    one, two = Counter(), Counter()
    clients.install([(one, {"class_type": "Counter", "count": 1}), (two, {"count": 2})])
    assert (one.count, two.count) == (1, 2)


def test_install_undoes_all_clients_if_one_refuses():
    one, two = Counter(10), Counter(20)
    with pytest.raises(ValueError, match="not negative"):
        clients.install([(one, {"count": 1}), (two, {"count": -1})])
    assert (one.count, two.count) == (10, 20)


def test_install_undoes_a_client_that_gives_away_its_own_dict():
    class Open:
        def __init__(self):
            self.usage = {"calls": 1}

        def state_dict(self):
            return self.usage

        def load_state_dict(self, state):
            self.usage.update(state)

    client = Open()
    with pytest.raises(ValueError, match="not negative"):
        clients.install([(client, {"calls": 9}), (Counter(), {"count": -1})])
    assert client.usage == {"calls": 1}


def test_install_hands_no_state_to_a_client_that_saved_none():
    reader = Reader()
    clients.install([(reader, {"class_type": "Reader"})])
    assert reader.loaded == []


def test_install_hands_over_a_copy():
    kept = []

    class Keeper(Counter):
        def load_state_dict(self, state):
            kept.append(state)

    description = {"class_type": "Keeper", "list": [1]}
    clients.install([(Keeper(), description)])
    kept[0]["list"].append(2)
    assert description["list"] == [1]
