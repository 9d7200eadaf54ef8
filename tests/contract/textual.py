"""A textual-gradient optimizer, written as a user of afnio would write it."""

from __future__ import annotations

from lucid_gpu import Parameter
from lucid_gpu.optim import Optimizer

SECRET = "sk-proj-0123456789abcdef"


class Client:
    """A language model behind an address: it carries a key, and counts what it was asked."""

    def __init__(self, api_key=SECRET):
        self.api_key = api_key
        self.headers = {"Authorization": f"Bearer {api_key}"}
        self.usage = {"calls": 0, "tokens": 0}

    def complete(self, messages):
        prompt = " ".join(part.data for message in messages for part in message["content"])
        self.usage["calls"] += 1
        self.usage["tokens"] += len(prompt.split())
        return f"draft {self.usage['calls']} of {len(prompt.split())} words"

    def state_dict(self):
        return {"usage": dict(self.usage)}

    def load_state_dict(self, state):
        self.usage.update(state["usage"])

    def __repr__(self):
        return f"Client(api_key={self.api_key!r})"


class Stateless:
    """A client that saves nothing."""

    def __init__(self, api_key=SECRET):
        self.api_key = api_key


class TextualGradientDescent(Optimizer):
    """Rewrites each prompt by what its readers complained of, with a memory of the last rounds."""

    def __init__(self, params, model_client, momentum=2, constraints=(), completion_args=None):
        system = Parameter("You are part of an optimization system.", requires_grad=False)
        user = Parameter("Here is the variable you need to improve.", requires_grad=False)
        defaults = {
            "model_client": model_client,
            "messages": [
                {"role": "system", "content": [system]},
                {"role": "user", "content": [user]},
            ],
            "inputs": {},
            "constraints": list(constraints),
            "momentum": momentum,
            "completion_args": completion_args or {"model": "large"},
        }
        super().__init__(params, defaults)

    def step(self, closure=None):
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad:
                    self._rewrite(group, param)
        return loss

    def _rewrite(self, group, param):
        past = self.state[param].get("momentum_buffer", [])
        gradients = [Parameter(text, name=f"gradient of {param.name}") for text in param.grad]
        question = {"role": "user", "content": [param, *gradients]}
        rounds = [{"role": "user", "content": [old, *texts]} for old, texts in past]
        answer = group["model_client"].complete([*group["messages"], *rounds, question])
        if group["momentum"]:
            copy = Parameter(param.data, name=param.name)
            past = [*past, (copy, gradients)][-group["momentum"] :]
            self.state[param]["momentum_buffer"] = past
        param.data = answer
