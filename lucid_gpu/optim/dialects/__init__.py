"""How to come here from other libraries: change the import line.

**Lucid** (``lucid.optim``): the classes have the same names, arguments and defaults. Lucid's own
``nn.Parameter``, or any object with ``data`` and ``grad``, is optimized as it is; ``Parameter``
here puts the array on a GPU, or holds it on the host. ``import lucid.optim as optim`` becomes:

    >>> import lucid_gpu.optim as optim
    >>> from lucid_gpu import Parameter
    >>> param = Parameter([1.0, 2.0, 3.0])
    >>> optimizer = optim.Adam(
    ...     [param], lr=0.001, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-4, amsgrad=True
    ... )
    >>> for target in (0.0, 0.5):
    ...     optimizer.zero_grad()
    ...     param.grad = 2 * (param.data - target)
    ...     optimizer.step()
    >>> optimizer_state = optimizer.state_dict()
    >>> optimizer.load_state_dict(optimizer_state)
    >>> optimizer.state[param]["step"]
    2

**afnio** (``afnio.optim.optimizer``): a textual optimizer subclasses ``Optimizer`` and lives on
Parameters whose ``data`` is a ``str`` and whose gradients are lists. What is kept in ``state`` and
options is made of plain data and of ``lucid_gpu.Parameter``, which takes the place of Variables,
so that it can be saved. Model clients are options; they are saved by the name of their class and
handed back on loading.
``from afnio.optim.optimizer import Optimizer`` becomes:

    >>> from lucid_gpu.optim import Optimizer
    >>> class Client:
    ...     def rewrite(self, text, feedback):
    ...         return f"{text} {' '.join(feedback)}"
    >>> class TextualDescent(Optimizer):
    ...     def __init__(self, params, model_client):
    ...         super().__init__(params, {"model_client": model_client})
    ...
    ...     def step(self, closure=None):
    ...         loss = closure() if closure is not None else None
    ...         for group in self.param_groups:
    ...             for param in group["params"]:
    ...                 if param.grad:
    ...                     param.data = group["model_client"].rewrite(param.data, param.grad)
    ...         return loss
    >>> prompt = Parameter("Answer briefly.", name="system prompt")
    >>> optimizer = TextualDescent([prompt], model_client=Client())
    >>> def closure():
    ...     optimizer.clear_grad()
    ...     prompt.grad.append("Name your source.")
    ...     return 0.5, "no source was named"
    >>> optimizer.step(closure)
    (0.5, 'no source was named')
    >>> prompt.data
    'Answer briefly. Name your source.'
    >>> saved = optimizer.state_dict()
    >>> saved["param_groups"][0]["model_client"]
    {'class_type': 'Client'}
    >>> optimizer.load_state_dict(saved, model_clients={"model_client": Client()})

**The small Tensor library** (``Optimizer``, ``SGD``, ``Adam``): its spellings and its rule of
momentum are in :mod:`lucid_gpu.optim.dialects.tiny_pytorch`. Its import line becomes:

    >>> from lucid_gpu.optim.dialects.tiny_pytorch import SGD
    >>> weight = Parameter([1.0])
    >>> optimizer = SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.2)
    >>> weight.grad = 0.5 * weight.data
    >>> optimizer.step()
    >>> optimizer.reset_grad()
    >>> f"{weight.numpy()[0]:.3f}", weight.grad
    ('0.975', None)

**Thinc**: an optimizer is called with each parameter. ``from thinc.api import Adam`` becomes:

    >>> from lucid_gpu.optim.dialects.thinc import Adam
    >>> import numpy as np
    >>> weights, gradient = np.ones(2, np.float32), np.ones(2, np.float32)
    >>> optimizer = Adam(0.1)
    >>> weights, gradient = optimizer((0, "W"), weights, gradient)
    >>> f"{weights[0]:.3f}", gradient.tolist()
    ('0.900', [0.0, 0.0])

**mighty** (``mighty.utils.stub``), whose trainers learn without gradients, and PyTorch's hooks:
``from mighty.utils.stub import OptimizerStub`` becomes:

    >>> from lucid_gpu.optim import OptimizerStub
    >>> optimizer = OptimizerStub()
    >>> with optimizer.register_step_post_hook(lambda *_: print("a step was made")):
    ...     optimizer.step(lambda: 0.25)
    a step was made
    0.25
    >>> optimizer.state_dict()
    {'state': {}, 'param_groups': []}

**PyTorch** (``torch.optim``): the arguments of the classes that both have are the same, apart from
``amsgrad="raw"`` of ``Adam`` and ``AdamW``; ``load_state_dict`` takes PyTorch's state dicts, and
:func:`lucid_gpu.optim.core.pytorch.export` writes them.
"""
