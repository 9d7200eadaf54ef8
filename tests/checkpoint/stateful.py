"""Objects with a state dict, obedient and not."""

from __future__ import annotations


class Stateful:
    """A scheduler-like object that takes whatever state it is given."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return dict(self.state)

    def load_state_dict(self, state):
        self.state = dict(state)


class Refusing(Stateful):
    """An object that refuses a state other than its own."""

    def load_state_dict(self, state):
        if state != self.state:
            raise ValueError("this state is for another model")
