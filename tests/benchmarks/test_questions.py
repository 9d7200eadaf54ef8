"""Every line of the questions, on tiny work."""

import sys

import pytest

from benchmarks import host, in_pytorch, memory, mixed, offload, peers, step
from benchmarks.plot import save
from benchmarks.protocol import Measurement, Options, Report, Unavailable

QUICK = Options("cpu", quick=True, seconds=0.5)
KEPT = ("ours", "ours, NumPy", "array expressions")


@pytest.fixture(scope="module", autouse=True)
def only_what_is_always_there():
    """Keep the peers that need no installation; the others are missing everywhere."""

    def missing(task):
        raise Unavailable("not installed")

    with pytest.MonkeyPatch.context() as patch:
        for name in set(peers.BUILDERS) - set(KEPT):
            patch.setitem(peers.BUILDERS, name, missing)
        yield


@pytest.fixture(scope="module")
def steps():
    return step.run(QUICK)


def measured(report, contender):
    return {
        (m.workload, m.metric)
        for m in report.measurements
        if m.contender == contender and m.samples
    }


def test_step_measures_ours_on_all_work(steps):
    work = {m.workload for m in steps.measurements}
    assert {work for work, metric in measured(steps, "ours") if metric == "wall"} == work
    assert {"ResNet-50", "GPT-2 124M", "LoRA, 256 matrices", "5000 tensors of 1000"} <= work
    assert {"ResNet-50, 64 groups", "Adam, amsgrad raw", "SGD, Nesterov"} <= work
    assert ("5000 tensors of 1000", "wall, moving gradients") in measured(steps, "ours")


def test_step_reports_every_peer_of_every_work_measured_or_missing(steps):
    for work in ("ResNet-50", "one tensor of 2²⁵"):
        assert {m.contender for m in steps.measurements if m.workload == work} == set(
            peers.names("cpu")
        )
    assert all(bool(m.samples) != bool(m.missing) for m in steps.measurements)


def test_host_measures_gradients_that_stay_move_and_are_set():
    report = host.run(QUICK)
    assert {metric for _, metric in measured(report, "ours")} == {
        "gradients stay", "gradients move", "setting the gradients",
        "setting the gradients and the step", "one gradient comes and goes",
    }  # fmt: skip
    assert {work for work, _ in measured(report, "ours")} == {
        "161 tensors", "5000 tensors", "1 tensor", "50 tensors", "161 tensors, 64 groups",
    }  # fmt: skip


def test_torch_measures_both_numbers_of_parameters_large_and_small():
    pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[oracle]'")
    report = in_pytorch.run(QUICK)
    assert {work for work, _ in measured(report, "ours")} == {
        "ResNet-50", "5000 tensors of 1000", "161 tensors of 1", "5000 tensors of 1",
    }  # fmt: skip
    assert {metric for _, metric in measured(report, "ours")} == {
        "host, gradients stay", "host, gradients move", "wall, moving gradients",
    }  # fmt: skip


def test_torch_without_pytorch_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    report = in_pytorch.run(QUICK)
    assert all(
        "PyTorch is not installed" in m.missing
        for m in report.measurements
        if m.contender == "ours"
    )


def test_mixed_compares_every_kind_of_storage():
    report = mixed.run(QUICK)
    for name in ("ours", "ours, bfloat16", "ours, bfloat16, split", "ours, bfloat16, no master"):
        assert {work for work, _ in measured(report, name)} == {
            "one tensor of 2²⁴", "ResNet-50", "5000 tensors of 1000",
        }  # fmt: skip


def test_memory_measures_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(peers, "names", lambda device: ["ours"])
    report = memory.run(QUICK)
    assert [(m.unit, len(m.samples)) for m in report.measurements] == [("B", 1)] * 3
    assert all(abs(m.samples[0]) < 16 << 20 for m in report.measurements)


def test_offload_is_no_question_for_a_cpu():
    with pytest.raises(Unavailable, match="on the host already"):
        offload.run(QUICK)


@pytest.mark.parametrize("question", [step, memory], ids=lambda question: question.NAME)
def test_each_kind_of_plot_is_a_picture(question, tmp_path):
    rows = [
        Measurement(work, contender, [value])
        for work in ("one", "two")
        for contender, value in (("ours", 1.0), ("peer", 2.0), ("limit", 0.5))
    ]
    rows.append(Measurement("one", "gone", [], missing="not installed"))
    save(Report(question.NAME, "cpu", rows), question, "title", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
