"""The main job, end to end: train a classifier of handwritten digits, stop anywhere, resume.

Read it from top to bottom: the data, a model whose gradients are written by hand, what a
checkpoint holds, the training loop, and how an interrupted run goes on to the very parameters
that it would have had. The array code runs on NumPy and CuPy alike.
"""

from __future__ import annotations

import hashlib
import itertools
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from lucid_gpu import Parameter, optim, schedules
from lucid_gpu.amp import GradScaler
from lucid_gpu.checkpoint import Checkpointer
from lucid_gpu.command.display import DemoError, check_packages, progress
from lucid_gpu.device import gpu

if TYPE_CHECKING:
    from lucid_gpu.device.arrays import Array


def muon(params: Iterable[Parameter]) -> optim.Muon:
    """Return Muon for the hidden matrix, with AdamW for biases and the output layer."""
    every = list(params)
    matrices = [param for param in every if param.name == "hidden.weight"]
    others = [param for param in every if param.name != "hidden.weight"]
    groups: list[dict[str, Any]] = [
        {"params": matrices},
        {"params": others, "kind": "adamw", "lr": 2e-3},
    ]
    return optim.Muon([group for group in groups if group["params"]], lr=2e-2)


OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "adam": lambda params: optim.Adam(params, lr=2e-3),
    "adamw": lambda params: optim.AdamW(params, lr=2e-3),
    "sgd": lambda params: optim.SGD(params, lr=0.05, momentum=0.9),
    "adadelta": lambda params: optim.Adadelta(params, lr=1.0),
    "adafactor": lambda params: optim.Adafactor(params, lr=2e-2),
    "adagrad": lambda params: optim.Adagrad(params, lr=2e-2),
    "adamax": lambda params: optim.Adamax(params, lr=5e-3),
    "adamw_schedule_free": lambda params: optim.AdamWScheduleFree(params, lr=5e-3),
    "adan": lambda params: optim.Adan(params, lr=5e-3),
    "asgd": lambda params: optim.ASGD(params, lr=0.5),
    "lamb": lambda params: optim.LAMB(params, lr=5e-3),
    "lars": lambda params: optim.LARS(params, lr=1.0, trust_coefficient=2e-3),
    "lion": lambda params: optim.Lion(params, lr=3e-4, weight_decay=1.0),
    "muon": muon,
    "nadam": lambda params: optim.NAdam(params, lr=2e-3),
    "radam": lambda params: optim.RAdam(params, lr=5e-3),
    "rmsprop": lambda params: optim.RMSprop(params, lr=2e-3),
    "sgd_schedule_free": lambda params: optim.SGDScheduleFree(params, lr=1.0),
}
"""All but Rprop, which takes the noise of mini-batches for changes of sign, LBFGS, to which each of
them is another function, and SparseAdam, which is for gradients of rows."""

CONSTANT = "constant"
SCHEDULES: dict[str, Callable[[int], schedules.Schedule]] = {
    CONSTANT: lambda _: schedules.Constant(1.0, 0),
    "cosine": lambda steps: schedules.warmup_cosine(steps / 10, steps),
    "linear": lambda steps: schedules.warmup_linear(steps / 10, steps),
    "wsd": lambda steps: schedules.wsd(steps / 10, 0.6 * steps, 0.3 * steps),
}
"""Of the learning rate; all but the first depend on how many steps there are."""

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
"""What parameters are stored as; it is computed in float32, whose range float16 gradients lack."""

DEFAULTS = {
    "optimizer": "adam",
    "schedule": CONSTANT,
    "seed": 0,
    "epochs": 30,
    "dtype": "float32",
}

TRAINING_IMAGES = 1437
BATCH_SIZE = 32
HIDDEN = 256
CLASSES = 10


@dataclass(frozen=True)
class Digits:
    """Flattened images of 8 × 8 pixels in [0, 1], and the digits that they show."""

    images: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)


def load_digits(xp: Any) -> tuple[Digits, Digits]:
    """Return the digits to train on and, every fifth of the 1797, those to test on."""
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    images = xp.asarray(images / 16, dtype=xp.float32)
    labels = xp.asarray(labels)
    tested = xp.arange(len(labels)) % 5 == 0
    return Digits(images[~tested], labels[~tested]), Digits(images[tested], labels[tested])


def batches(size: int, seed: int, start: int) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the indices of mini-batches, epoch after epoch, from the ``start``-th batch on.

    The order of an epoch is a function of the seed and the epoch alone. So nothing of it has to
    be saved: a resumed run asks for the batches from where it stood.
    """
    for number in itertools.count(start):
        epoch, batch = divmod(number, batches_per_epoch(size))
        if batch == 0 or number == start:
            order = np.random.default_rng([seed, 1, epoch]).permutation(size)
        yield order[batch * BATCH_SIZE : (batch + 1) * BATCH_SIZE]


def batches_per_epoch(size: int) -> int:
    """Return how many mini-batches hold ``size`` examples; the last may be smaller."""
    return -(-size // BATCH_SIZE)


class Classifier:
    """Two linear layers with a ReLU between them.

    Args:
        seed: decides the initial weights.
        device_name: where the parameters are, and so where everything is computed.
        dtype: what the parameters are stored as; gradients are float16 for float16, else float32.

    Attributes:
        parameters: by name.
    """

    def __init__(self, seed: int, device_name: str, dtype: str = "float32") -> None:
        self.xp = gpu.module(device_name)
        random = np.random.default_rng([seed, 0])
        self.parameters: dict[str, Parameter] = {}
        for layer, inputs, outputs in (("hidden", 64, HIDDEN), ("output", HIDDEN, CLASSES)):
            weight = random.normal(0, np.sqrt(2 / inputs), (inputs, outputs)).astype(np.float32)
            bias = np.zeros(outputs, np.float32)
            for name, value in ((f"{layer}.weight", weight), (f"{layer}.bias", bias)):
                self.parameters[name] = Parameter(
                    value.astype(DTYPES[dtype]),
                    name=name,
                    device=device_name,
                    grad_dtype="float16" if dtype == "float16" else "float32",
                )

    def forward(self, images: Array) -> tuple[Array, Array]:
        """Return the hidden layer, and one logit per class."""
        w1, b1, w2, b2 = self.weights()
        hidden = self.xp.maximum(images @ w1 + b1, 0)
        return hidden, hidden @ w2 + b2

    def weights(self) -> list[Array]:
        """Return the data of all parameters in float32."""
        data = [param.data for param in self.parameters.values()]
        return [each.astype(np.float32, copy=False) for each in data]

    def backward(
        self, images: Array, labels: Array, scale: Callable[[Array], Array] = lambda loss: loss
    ) -> tuple[Array, Array]:
        """Set the gradients of the mean cross-entropy.

        Args:
            images: to recognize.
            labels: what they show.
            scale: what the loss is multiplied by, applied to its derivative.

        Returns:
            The sum of the cross-entropies and the number of correct answers, still on the device.
        """
        xp = self.xp
        _, _, w2, _ = self.weights()
        hidden, logits = self.forward(images)
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_p = shifted - xp.log(xp.exp(shifted).sum(axis=1, keepdims=True))
        target = xp.eye(CLASSES, dtype=xp.float32)[labels]

        d_logits = scale((xp.exp(log_p) - target) / len(labels))
        d_hidden = (d_logits @ w2.T) * (hidden > 0)
        grads = (
            images.T @ d_hidden,
            d_hidden.sum(axis=0),
            hidden.T @ d_logits,
            d_logits.sum(axis=0),
        )
        with np.errstate(over="ignore"):  # an infinity has the scaler skip the step
            for param, grad in zip(self.parameters.values(), grads, strict=True):
                param.grad = grad.astype(param.grad_dtype, copy=False)
        return -(target * log_p).sum(), (logits.argmax(axis=1) == labels).sum()

    def accuracy(self, digits: Digits) -> float:
        """Return the share of digits that are recognized."""
        _, logits = self.forward(digits.images)
        return float((logits.argmax(axis=1) == digits.labels).mean())


class Run:
    """All that changes while training, which is all that a checkpoint holds.

    Args:
        settings: as in ``DEFAULTS``.
        device_name: where to train.

    Attributes:
        model: the classifier.
        optimizer: what trains it.
        scheduler: writes the learning rate of each step.
        step: how many mini-batches were trained on.
        totals: cross-entropy and correct answers, summed over the current epoch on the device, so
            that no batch waits for the host to read them.
        history: of each epoch, the mean ``loss``, and the ``train`` and ``test`` accuracy.
        interrupted_by: the signal that ended the run early; None if none did.
    """

    def __init__(self, settings: dict[str, Any], device_name: str) -> None:
        self.settings = settings
        self.model = Classifier(settings["seed"], device_name, settings["dtype"])
        self.scaler = GradScaler(device_name, enabled=settings["dtype"] == "float16")
        self.optimizer = OPTIMIZERS[settings["optimizer"]](self.model.parameters.values())
        steps = settings["epochs"] * batches_per_epoch(TRAINING_IMAGES)
        schedule = SCHEDULES[settings["schedule"]](steps)
        self.scheduler = schedules.Scheduler(self.optimizer, every="step", lr=schedule)
        self.step = 0
        self.totals = self.model.xp.zeros(2)
        self.history: list[dict[str, float]] = []
        self.interrupted_by: signal.Signals | None = None
        self._saved_step: int | None = None

    def tree(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {
            "settings": self.settings,
            "parameters": self.model.parameters,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
            "step": self.step,
            "totals": self.totals,
            "history": self.history,
        }

    def save(self, checkpointer: Checkpointer) -> None:
        """Save a checkpoint, unless this very step was saved already."""
        if self.step != self._saved_step:
            checkpointer.save(self.step, self.tree())
            self._saved_step = self.step

    def restore(self, checkpointer: Checkpointer, step: int) -> None:
        """Load a checkpoint in place: arrays into the arrays that are here, state into objects."""
        # None stands where the saved value is to be returned, whatever it is.
        place = {**self.tree(), "settings": None, "step": None, "history": None}
        tree = checkpointer.restore(step, into=place)
        self.step = self._saved_step = tree["step"]
        self.history = tree["history"]

    def train_batch(self, digits: Digits, indices: np.ndarray[Any, Any]) -> None:
        """Take one optimizer step."""
        chosen = self.model.xp.asarray(indices)
        images, labels = digits.images[chosen], digits.labels[chosen]
        loss, correct = self.model.backward(images, labels, self.scaler.scale)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.totals[0] += loss
        self.totals[1] += correct
        self.step += 1

    def end_epoch(self, train_set: Digits, test_set: Digits) -> None:
        """Turn the totals of the epoch into an entry of the history."""
        loss, correct = (self.totals / len(train_set)).tolist()
        free = self.optimizer
        if isinstance(free, optim.AdamWScheduleFree | optim.SGDScheduleFree):
            free.eval()
            test = self.model.accuracy(test_set)
            free.train()
        else:
            test = self.model.accuracy(test_set)
        self.history.append({"loss": loss, "train": correct, "test": test})
        self.totals[...] = 0

    def summary(self) -> str:
        """Return the figures of the last whole epoch as a line."""
        line = f"epoch {len(self.history)}/{self.settings['epochs']}"
        if self.history:
            last = self.history[-1]
            line += f"  loss {last['loss']:.4f}  train {last['train']:.1%}  test {last['test']:.1%}"
        return line

    def digest(self) -> str:
        """Return a short hash of the parameters: the same for runs that agree to the bit."""
        data = b"".join(param.numpy().tobytes() for param in self.model.parameters.values())
        return hashlib.sha256(data).hexdigest()[:16]


def train(
    directory: str | Path,
    device_name: str = "cpu",
    optimizer: str | None = None,
    schedule: str | None = None,
    seed: int | None = None,
    epochs: int | None = None,
    resume: bool = False,
    dtype: str | None = None,
) -> Run:
    """Train, with a checkpoint after every epoch and when SIGINT or SIGTERM asks to stop.

    Args:
        directory: where the checkpoints of this run are, and of no other.
        device_name: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; a run may be resumed on another.
        optimizer: one of ``OPTIMIZERS``. None means that of the run to resume, or of ``DEFAULTS``;
            so it does for ``schedule``, ``seed``, ``epochs`` and ``dtype``.
        schedule: one of ``SCHEDULES``.
        seed: decides the initial weights and the order of the images.
        epochs: how often each image is seen, the epochs of the run to resume included. Only a run
            with a constant rate can be resumed with others than it was started with.
        resume: go on from the newest checkpoint in ``directory``.
        dtype: one of ``DTYPES``, which parameters are stored as.

    Raises:
        DemoError: there is no run to resume, or it was started with other settings; a new run would
            be mixed with one that is there; or a package is missing.
        lucid_gpu.checkpoint.CheckpointError: the directory cannot be used, or nothing in it.
        lucid_gpu.device.DeviceUnavailableError: ``device_name`` is a GPU that cannot be used.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:  # doctest: +ELLIPSIS
        ...     run = train(directory, epochs=1)
        epoch 1/1  loss ...
        >>> run.step
        45
    """
    check_packages()
    device_name = gpu.resolve(device_name)
    given = {
        "optimizer": optimizer,
        "schedule": schedule,
        "seed": seed,
        "epochs": epochs,
        "dtype": dtype,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    if resume and not Path(directory).is_dir():
        raise DemoError(f"{directory} does not exist: there is no run to resume")
    stops = (signal.SIGINT, signal.SIGTERM)
    with gpu.on(device_name), Checkpointer(directory, save_on_signal=stops) as checkpointer:
        if resume:
            run = resumed(checkpointer, settings, device_name)
        elif checkpointer.steps():
            raise DemoError(f"{directory} holds a run: add --resume, or choose another directory")
        else:
            run = Run({**DEFAULTS, **settings}, device_name)
        loop(run, checkpointer)
    return run


def loop(run: Run, checkpointer: Checkpointer) -> None:
    """Train until all epochs are done, or a signal asks to stop.

    Raises:
        DemoError: more is done already.
    """
    train_set, test_set = load_digits(run.model.xp)
    epoch_length = batches_per_epoch(len(train_set))
    total = run.settings["epochs"] * epoch_length
    if run.step > total:
        raise DemoError(
            f"--epochs is {run.settings['epochs']}, but the run in {checkpointer.directory} is at "
            f"{run.step / epoch_length:.4g} epochs: ask for at least as many"
        )
    with progress(run.step, total, run.summary()) as show:
        for indices in batches(len(train_set), run.settings["seed"], run.step):
            if run.step >= total or checkpointer.interrupted_by:
                break
            run.train_batch(train_set, indices)
            if run.step % epoch_length == 0:
                run.end_epoch(train_set, test_set)
                run.save(checkpointer)
            show(run.step, run.summary())
    run.save(checkpointer)
    if run.step < total:
        run.interrupted_by = checkpointer.interrupted_by


def resumed(checkpointer: Checkpointer, settings: dict[str, Any], device_name: str) -> Run:
    """Return the saved run, to be continued.

    What was saved says what to build, so it is read once before anything exists; then its arrays
    are read again, into those of the new model and optimizer, on whatever device they are.

    Raises:
        DemoError: there is none, it is not the demo's, or ``settings`` contradict it.
    """
    if not checkpointer.steps():
        raise DemoError(f"{checkpointer.directory} holds no checkpoint: there is no run to resume")
    match checkpointer.restore():
        case {
            "settings": {
                "optimizer": str(),
                "schedule": str(),
                "seed": int(),
                "epochs": int(),
                "dtype": str(),
            } as saved,
            "step": int() as step,
        } if (
            saved["optimizer"] in OPTIMIZERS
            and saved["schedule"] in SCHEDULES
            and saved["dtype"] in DTYPES
        ):
            pass
        case _:
            raise DemoError(f"{checkpointer.directory} holds checkpoints, but not of the demo")
    fixed = ["optimizer", "schedule", "seed", "dtype"]
    if saved["schedule"] != CONSTANT:
        fixed.append("epochs")  # which decide the rate of every step
    for name in fixed:
        if settings.get(name, saved[name]) != saved[name]:
            raise DemoError(
                f"--{name} is {settings[name]}, but the run in {checkpointer.directory} was "
                f"started with --{name} {saved[name]}: leave --{name} out to resume it"
            )
    run = Run({**saved, **settings}, device_name)
    run.restore(checkpointer, step)
    return run
