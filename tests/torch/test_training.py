"""A small transformer trained here and by PyTorch, under what PyTorch puts around optimizers."""

from __future__ import annotations

import copy
import io

import pytest

import lucid_gpu
from tests.torch.support import parameters, torch

ours = pytest.importorskip("lucid_gpu.torch")
F = torch.nn.functional

WORDS, WIDTH, LENGTH = 16, 16, 8
STEPS = 200


class Transformer(torch.nn.Module):
    """Two blocks of attention and a feed-forward net, with tied embeddings."""

    def __init__(self, checkpointed=False):
        super().__init__()
        self.checkpointed = checkpointed
        self.words = torch.nn.Embedding(WORDS, WIDTH)
        self.places = torch.nn.Parameter(torch.zeros(LENGTH, WIDTH))
        self.blocks = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True)
            for _ in range(2)
        )
        self.head = torch.nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens):
        x = self.words(tokens) + self.places
        for block in self.blocks:
            if self.checkpointed:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.head(x)


def model(dtype=torch.float64, checkpointed=False):
    torch.manual_seed(1)
    return Transformer(checkpointed).to(dtype)


def batch(step):
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(WORDS, (4, 1), generator=generator)
    return (start + torch.arange(LENGTH + 1)) % WORDS


def loss_of(net, step):
    tokens = batch(step)
    return F.cross_entropy(net(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def plain(net, optimizer, step):
    optimizer.zero_grad()
    loss = loss_of(net, step)
    loss.backward()
    optimizer.step()
    return loss.item()


def both(train, steps, dtype=torch.float64, **options):
    """Train by each library and return the models and the losses of each."""
    results = []
    for library in (ours, torch.optim):
        net = model(dtype)
        optimizer = library.AdamW(net.parameters(), **{"lr": 1e-2, "weight_decay": 0.1, **options})
        results.append((net, [train(net, optimizer, step) for step in range(steps)]))
    return results


def gap(one, other):
    """The largest difference of two models, in units of the largest parameter."""
    pairs = [*zip(one.parameters(), other.parameters(), strict=True)]
    most = max(their.abs().max().item() for _, their in pairs)
    return max((own - their).abs().max().item() for own, their in pairs) / most


@pytest.fixture(params=["numpy", "compiled"])
def either_code(request):
    lucid_gpu.set_cpu_code(request.param)
    yield request.param
    lucid_gpu.set_cpu_code(None)


def test_200_steps_of_a_transformer_stay_beside_pytorchs(either_code):
    """In float64, where what either rounds stays far below what training amplifies it to."""
    (own, losses), (theirs, others) = both(plain, STEPS, amsgrad=True)
    assert losses[-1] < 0.1 * losses[0]
    assert losses == pytest.approx(others, rel=1e-7)
    assert gap(own, theirs) < 1e-7


def test_200_steps_in_float32_stay_within_two_ulps_a_step_of_pytorchs(either_code):
    """Of the larger of a value and its update, as in tests/contract; both take our gradients."""
    net, other = model(torch.float32), model(torch.float32)
    mine = ours.AdamW(net.parameters(), lr=1e-2)
    theirs = torch.optim.AdamW(other.parameters(), lr=1e-2)
    pairs = [*zip(net.parameters(), other.parameters(), strict=True)]
    allowed = [torch.zeros_like(param) for param in other.parameters()]
    for step in range(STEPS):
        before = [param.detach().clone() for param in other.parameters()]
        plain(net, mine, step)
        for own, their in pairs:
            their.grad = own.grad.clone()
        theirs.step()
        for number, (old, (own, their)) in enumerate(zip(before, pairs, strict=True)):
            scale = torch.maximum(their.abs(), (their - old).abs())
            allowed[number] += 2 * (torch.nextafter(scale, torch.tensor(torch.inf)) - scale)
            assert ((own - their).abs() <= allowed[number]).all(), step


SCHEDULES = {
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=15),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.02, total_steps=30),
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "lr", [1e-2, torch.tensor(1e-2, dtype=torch.float64)], ids=["number", "tensor"]
)
def test_schedulers_of_pytorch_act(schedule, lr):
    schedulers = {}

    def train(net, optimizer, step):
        if optimizer not in schedulers:
            schedulers[optimizer] = SCHEDULES[schedule](optimizer)
        loss = plain(net, optimizer, step)
        schedulers[optimizer].step()
        return loss

    own_lr = copy.deepcopy(lr)
    results = []
    for library in (ours, torch.optim):
        net = model()
        optimizer = library.AdamW(net.parameters(), lr=copy.deepcopy(own_lr))
        results.append((net, [train(net, optimizer, step) for step in range(30)]))
    (own, _), (theirs, _) = results
    assert gap(own, theirs) < 1e-9


lrs = torch.optim.lr_scheduler
EVERY_SCHEDULER = {
    "LambdaLR": lambda o: lrs.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: lrs.MultiplicativeLR(o, lambda _: 0.9),
    "StepLR": lambda o: lrs.StepLR(o, 2),
    "MultiStepLR": lambda o: lrs.MultiStepLR(o, [1, 3]),
    "ConstantLR": lrs.ConstantLR,
    "LinearLR": lrs.LinearLR,
    "ExponentialLR": lambda o: lrs.ExponentialLR(o, 0.9),
    "PolynomialLR": lrs.PolynomialLR,
    "CosineAnnealingLR": lambda o: lrs.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 3),
    "ReduceLROnPlateau": lambda o: lrs.ReduceLROnPlateau(o, patience=1),
    "CyclicLR": lambda o: lrs.CyclicLR(o, 0.001, 0.01, 2, cycle_momentum=moves(o)),
    "OneCycleLR": lambda o: lrs.OneCycleLR(o, 0.01, total_steps=9, cycle_momentum=moves(o)),
    "SequentialLR": lambda o: lrs.SequentialLR(
        o, [lrs.ConstantLR(o), lrs.ExponentialLR(o, 0.9)], [2]
    ),
    "ChainedScheduler": lambda o: lrs.ChainedScheduler(
        [lrs.ConstantLR(o), lrs.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.05, anneal_epochs=2),
}


def moves(optimizer):
    """Whether an optimizer has the momentum that these schedulers move."""
    return bool({"momentum", "betas"} & optimizer.defaults.keys())


def test_no_scheduler_of_pytorch_is_left_out():
    assert {*lrs.__all__, "SWALR"} - {"LRScheduler"} == EVERY_SCHEDULER.keys()


@pytest.mark.parametrize("name", [name for name in ours.__all__ if hasattr(torch.optim, name)])
def test_every_scheduler_of_pytorch_moves_every_class(name):
    for schedule, make in EVERY_SCHEDULER.items():
        ends = []
        for library in (ours, torch.optim):
            params = parameters((3, 2), (4,), dtype=torch.float64)
            optimizer = getattr(library, name)(params, lr=0.01)
            scheduler = make(optimizer)
            for _ in range(6):
                optimizer.step()
                scheduler.step(*[1.0] * (schedule == "ReduceLROnPlateau"))
            (group,) = optimizer.param_groups
            ends.append(([group.get(key) for key in ("lr", "momentum", "betas")], params))
        (moved, own), (expected, theirs) = ends
        assert moved == expected, schedule
        if name != "ASGD":  # whose learning rate PyTorch reads a step late
            for mine, other in zip(own, theirs, strict=True):
                assert torch.allclose(mine, other, rtol=1e-9, atol=1e-12), schedule


def test_a_gradient_scaler_unscales_and_skips():
    scalers = {}

    def train(net, optimizer, step):
        scaler = scalers.setdefault(optimizer, torch.amp.GradScaler("cpu", init_scale=2.0**10))
        optimizer.zero_grad()
        loss = loss_of(net, step)
        scaler.scale(loss).backward()
        if step == 7:
            net.places.grad[0, 0] = torch.inf
        if step % 2:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    (own, _), (theirs, _) = both(train, 20)
    assert gap(own, theirs) < 1e-9
    assert [scaler.get_scale() for scaler in scalers.values()] == [2.0**9] * 2


def test_clipped_gradients_are_those_that_step():
    def train(net, optimizer, step):
        optimizer.zero_grad()
        loss = loss_of(net, step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        optimizer.step()
        return loss.item()

    (own, _), (theirs, _) = both(train, 20)
    assert gap(own, theirs) < 1e-9


@pytest.mark.parametrize("set_to_none", [False, True])
def test_gradients_that_accumulate_step_once(set_to_none):
    def train(net, optimizer, step):
        optimizer.zero_grad(set_to_none=set_to_none)
        for part in range(3):
            loss = loss_of(net, 3 * step + part) / 3
            loss.backward()
        optimizer.step()
        return loss.item()

    (own, _), (theirs, _) = both(train, 10)
    assert gap(own, theirs) < 1e-9


def test_checkpointed_blocks_train():
    nets = model(checkpointed=True), model()
    for net in nets:
        optimizer = ours.AdamW(net.parameters(), lr=1e-2)
        for step in range(10):
            plain(net, optimizer, step)
    assert gap(*nets) < 1e-12


def test_a_retained_graph_of_old_values_raises_as_in_pytorch():
    for library in (ours, torch.optim):
        net = model()
        optimizer = library.AdamW(net.parameters())
        loss = loss_of(net, 0)
        loss.backward(retain_graph=True)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_a_copy_of_model_and_optimizer_trains_alike():
    net = model()
    optimizer = ours.AdamW(net.parameters(), lr=1e-2)
    plain(net, optimizer, 0)
    pairs = (net, optimizer), copy.deepcopy((net, optimizer))
    for step in range(1, 5):
        for own, mine in pairs:
            plain(own, mine, step)
    assert gap(pairs[0][0], pairs[1][0]) == 0


def test_a_run_that_passes_through_a_file_ends_as_one_that_did_not():
    net, twin = model(torch.float32), model(torch.float32)
    optimizer = ours.AdamW(net.parameters(), lr=1e-2)
    for step in range(4):
        plain(net, optimizer, step)
    file = io.BytesIO()
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    twin.load_state_dict(saved["model"])
    resumed = ours.AdamW(twin.parameters())
    resumed.load_state_dict(saved["optimizer"])
    for step in range(4, 8):
        plain(net, optimizer, step)
        plain(twin, resumed, step)
    assert gap(net, twin) == 0


def test_a_compiled_training_step_trains_alike():
    net, other = model(), model()
    optimizer = ours.AdamW(net.parameters(), lr=1e-2)
    theirs = ours.AdamW(other.parameters(), lr=1e-2)
    step = torch.compile(optimizer.step, backend="eager")
    for number in range(3):
        optimizer.zero_grad()
        loss_of(net, number).backward()
        step()
        plain(other, theirs, number)
    assert gap(net, other) == 0


def test_optimizers_that_step_while_gradients_are_computed_train_alike():
    """One for each parameter, in a hook that frees the gradient, as those do who lack memory."""
    nets = model(), model()
    for net, library in zip(nets, (ours, torch.optim), strict=True):
        own = {param: library.AdamW([param], lr=1e-2) for param in net.parameters()}

        def step(param, own=own):
            own[param].step()
            own[param].zero_grad()

        for param in net.parameters():
            param.register_post_accumulate_grad_hook(step)
        for number in range(5):
            loss_of(net, number).backward()
    assert gap(*nets) < 1e-9
