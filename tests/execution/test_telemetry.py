"""Steps that tell how large parameters are and how far they move: one figure on every device."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.amp import masters
from lucid_gpu.device import transfer
from lucid_gpu.execution import formats, plan, strided, twin
from lucid_gpu.optim import LAMB, LARS, SGD, AdamW
from tests import rules
from tests.conftest import installed
from tests.emulation.machine import Record
from tests.execution import sums_oracle as oracle
from tests.execution.claims import compiles_text, layout_claims
from tests.optim.core.test_judging_devices import train
from tests.optim.core.test_judging_graphs import Replayed
from tests.stepping import bits, place

BRIEF, HALF = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)
SHAPES = [(5,), (3, 1501), (4099,), (7, 2)]
every_rule = pytest.mark.parametrize("rule", rules.rules(), ids=lambda rule: rule.__name__)
some_rules = pytest.mark.parametrize("rule", [AdamW, SGD, LAMB], ids=lambda rule: rule.__name__)
STORAGES = {
    "float64": (np.dtype(np.float64), {}),
    "float16": (HALF, {}),
    "split": (BRIEF, {"master": "split"}),
    "none": (BRIEF, {"master": "none"}),
    "brief-state": (np.dtype(np.float32), {"state_dtype": "bfloat16"}),
}
every_storage = pytest.mark.parametrize("storage", STORAGES)


def values(shape, dtype, rng):
    drawn = rng.normal(size=shape)
    if dtype in formats.HALVES:
        return formats.nearest(drawn.astype(np.float32), dtype)
    return drawn.astype(dtype)


class Training:
    """An optimizer that tells, over parameters of some shapes and layouts."""

    def __init__(self, rule, device, dtype=np.float32, layout="C", shapes=SHAPES, **options):
        self.rng, self.device = np.random.default_rng(5), device
        self.dtype, self.layout = np.dtype(dtype), layout
        self.params = [
            Parameter(self.placed(shape), name=f"p{number}") for number, shape in enumerate(shapes)
        ]
        named = [(param.name, param) for param in self.params]
        self.optimizer = rule(named, **{"telemetry": True, **options})

    def placed(self, shape):
        return place(values(shape, self.dtype, self.rng), self.device, self.layout).view

    def step(self, times=1):
        for _ in range(times):
            for param in self.params:
                param.grad = self.placed(param.shape)
            self.optimizer.step()
        return self.optimizer.report()

    def exact(self):
        """What the rule works on, on the host."""
        kept = masters(self.optimizer)
        return [transfer.to(kept.get(p.name, p.data), "cpu").copy() for p in self.params]


def expected(before, after):
    """Both norms by plain loops, of values in the dtype that computes."""
    with np.errstate(all="ignore"):
        return [
            (math.sqrt(oracle.tensor(new)), math.sqrt(oracle.tensor(new - old)))
            for old, new in zip(before, after, strict=True)
        ]


def told(report):
    return [(own["param_norm"], own["update_norm"]) for own in report.values()]


@every_rule
def test_norms_are_those_of_a_plain_loop_for_every_rule(rule):
    run = Training(rule, "cpu", shapes=[(5,), (4099,)])
    run.step()
    before = run.exact()
    assert told(run.step()) == expected(before, run.exact())


@some_rules
@pytest.mark.parametrize(
    "code", ["cpu", "compiled", "cuda", pytest.param("gpu", marks=pytest.mark.gpu)]
)
def test_norms_are_those_of_a_plain_loop_everywhere(rule, code):
    with installed(code) as device:
        run = Training(rule, device, weight_decay=0.1, max_norm=1.0)
        run.step(2)
        before = run.exact()
        assert told(run.step()) == expected(before, run.exact())


@every_storage
def test_norms_are_of_masters_and_the_same_everywhere(storage):
    dtype, options = STORAGES[storage]
    seen = []
    for code in ("cpu", "compiled", "cuda"):
        with installed(code) as device:
            run = Training(AdamW, device, dtype, lr=0.1, **options)
            run.step(2)
            before = run.exact()
            report = run.step()
            if storage != "none":
                assert told(report) == expected(before, run.exact())
            seen.append(report)
    assert seen[0] == seen[1] == seen[2]


def test_norms_are_of_what_is_not_rounded_yet():
    run = Training(SGD, "cpu", BRIEF, master="none", lr=1e-4, shapes=[(9000,)])
    before = run.params[0].numpy().astype(np.float32)
    ((_, update),) = told(run.step())
    moved = np.float32(1e-4) * transfer.to(run.params[0].grad, "cpu").astype(np.float32)
    assert update == pytest.approx(float(np.linalg.norm(moved)), rel=1e-3)
    stored = run.params[0].numpy().astype(np.float32) - before
    assert np.linalg.norm(stored) > 2 * update


@pytest.mark.parametrize("rule", [AdamW, LARS], ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("layout", ["F", "strided", "reversed", 1, 3])
def test_the_layout_changes_no_bit(rule, layout, device):
    plain, laid_out = (Training(rule, device, layout=own) for own in ("C", layout))
    assert plain.step(2) == laid_out.step(2)


@pytest.mark.parametrize("threads", ["1", "3"])
@some_rules
def test_neither_threads_nor_blocks_matter(rule, threads, monkeypatch):
    expected = Training(rule, "cpu").step(2)
    monkeypatch.setenv("LUCID_GPU_NUM_THREADS", threads)
    monkeypatch.setattr(twin, "BLOCK_ELEMENTS", 4096)
    assert Training(rule, "cpu").step(2) == expected


@some_rules
def test_whichever_block_comes_last_folds_to_the_same_bits(rule, emulated, monkeypatch):
    shapes = [(4096 * 258 + 5,), (3, 1501)]
    expected = Training(rule, "cpu", shapes=shapes).step()
    monkeypatch.setenv("EMULATION_BLOCK_ORDER", "1")
    assert Training(rule, "cuda:0", shapes=shapes).step() == expected


@pytest.mark.parametrize(
    ("rule", "master"), [(AdamW, "split"), (AdamW, None), (LAMB, None), (SGD, None)]
)
def test_state_on_the_host_tells_the_same(rule, master, accelerator, monkeypatch):
    monkeypatch.setattr("lucid_gpu.execution.streamed.WINDOW_BYTES", 1 << 15)
    dtype = np.float32 if master is None else BRIEF
    shapes = [(5,), (0,), (20000,), (3, 1501)]
    here, there = (
        Training(rule, accelerator, dtype, shapes=shapes, master=master, state_device=where)
        for where in (None, "host")
    )
    assert here.step(3) == there.step(3)


@every_rule
def test_telling_changes_no_bit_of_a_step(rule):
    telling, silent = (Training(rule, "cpu", telemetry=own) for own in (True, False))
    telling.step(3), silent.step(3)
    for one, other in zip(telling.params, silent.params, strict=True):
        np.testing.assert_array_equal(bits(one.data), bits(other.data))


@pytest.mark.parametrize("rule", [AdamW, LAMB, LARS], ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("code", ["compiled", "cuda"])
def test_telling_changes_no_bit_of_a_step_elsewhere(rule, code):
    with installed(code) as device:
        telling, silent = (Training(rule, device, telemetry=own) for own in (True, False))
        telling.step(3), silent.step(3)
        for one, other in zip(telling.params, silent.params, strict=True):
            np.testing.assert_array_equal(bits(one.data), bits(other.data))


@some_rules
def test_telling_takes_no_launch_and_no_allocation_of_its_own(rule, emulated):
    run = Training(rule, "cuda:0")
    run.step(2)
    emulated.record = Record()
    run.optimizer.step()
    assert len(emulated.record.launches) == 1 + (2 if rule.sums else 1)
    assert (emulated.record.allocations, emulated.record.synchronizations) == (0, 0)
    assert emulated.record.compiles == []


def test_what_was_not_updated_did_not_move(device):
    run = Training(AdamW, device, skip_nonfinite=True)
    run.step()
    run.params[1].grad = None
    run.optimizer.step()
    seen = run.optimizer.report()
    assert (seen["p1"]["param_norm"], seen["p1"]["update_norm"]) == (None, 0.0)
    assert seen["p0"]["update_norm"] > 0
    run.params[0].grad[2] = np.inf
    run.optimizer.step()
    assert told(run.optimizer.report()) == [(None, 0.0)] * len(SHAPES)
    assert run.optimizer.report()["p0"]["nonfinite"] == 1
    assert all(norm > 0 for norm, _ in told(run.step()))


@pytest.mark.parametrize("is_lazy", [False, True])
@some_rules
def test_replays_of_a_graph_tell_what_steps_would(rule, is_lazy, emulated):
    run = Replayed(rule, telemetry=True, skip_nonfinite=True)
    emulated.lazy = is_lazy
    for number in range(1, 6):
        run.replay(number, bad=number in (2, 5))
        with run.stream:
            here, there = (optimizer.report() for _, optimizer, _ in run.sides)
        assert repr(here) == repr(there)


@pytest.mark.parametrize("rule", [AdamW, LAMB], ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("places", [["cuda:0", "cuda:1"], ["cpu", "cuda:1"]], ids=str)
@pytest.mark.usefixtures("emulated")
def test_several_devices_tell_what_one_does(rule, places):
    expected = train(["cpu"], rule, telemetry=True)
    assert train(places, rule, telemetry=True) == expected


def test_a_large_tensor_is_folded_page_by_page(device):
    run = Training(SGD, device, lr=0.1, shapes=[(4096 * 257 + 3,)])
    before = run.exact()
    assert told(run.step()) == expected(before, run.exact())


def test_the_option_may_change_between_steps(device):
    run = Training(AdamW, device, telemetry=False)
    run.step()
    assert run.optimizer.report() == {}
    run.optimizer.param_groups[0]["telemetry"] = True
    assert all(move > 0 for _, move in told(run.step()))
    run.optimizer.param_groups[0]["telemetry"] = False
    run.optimizer.param_groups[0]["max_norm"] = 1.0
    assert set(run.step()["p0"]) == {"grad_norm", "nonfinite"}
    assert {int(run.optimizer.state[param]["step"]) for param in run.params} == {3}


@pytest.mark.parametrize("rule", [AdamW, LAMB], ids=lambda rule: rule.__name__)
def test_records_lie_as_the_structs_of_the_kernels(rule):
    variant, storage = rules.variants(rule)[0], rules.storage(rule, "float32")
    record = strided.sums_record(strided.tensor_record(rule.rule, variant, storage))
    assert record.itemsize <= 4096  # what a launch takes
    functor = plan.functor(rule.rule, variant, "float32")
    claims = layout_claims(record, f"StridedSums<{functor}, float, float>")
    compiles_text(strided.source(rule.rule, telemetry=True), claims)


@pytest.mark.parametrize("home", ["cpu", "cuda:0"])
@pytest.mark.usefixtures("emulated")
def test_explain_says_that_steps_tell(home, capsys):
    for telemetry in (True, False):
        run = Training(AdamW, home, telemetry=telemetry)
        run.step()
        run.optimizer.explain()
        text = capsys.readouterr().out
        assert (
            "told by report(), with norms of parameters and of their updates" in text
        ) == telemetry
        assert ("Watching<" in text) == (telemetry and home != "cpu")


def test_a_state_dict_resumes_a_run_with_and_without_telling(device):
    """Row 30i of docs/contract.md."""
    run, other = Training(AdamW, device), Training(AdamW, device, telemetry=False)
    run.step(2), other.step(2)
    saved = run.optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["telemetry"]
    other.optimizer.load_state_dict(saved)
    assert [group["telemetry"] for group in other.optimizer.param_groups] == [False]
    run.step(), other.step()
    for one, twin_of_it in zip(run.params, other.params, strict=True):
        np.testing.assert_array_equal(bits(one.data), bits(twin_of_it.data))
