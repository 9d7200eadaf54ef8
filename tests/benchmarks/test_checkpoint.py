import pytest

from benchmarks import checkpoint
from benchmarks.protocol import Options


@pytest.fixture(scope="module")
def report():
    return checkpoint.run(Options(device="cpu", quick=True, seconds=3))


def test_every_workload_measures_ours(report):
    workloads = {m.workload for m in report.measurements}
    ours = {m.workload for m in report.measurements if m.contender == "ours" and m.samples}
    assert workloads == ours
    assert {"save", "load", "load, cold", "background save"} <= workloads


def test_every_contender_has_the_same_number_of_samples(report):
    for workload in ("save", "load", "load, cold"):
        counts = {
            len(m.samples)
            for m in report.measurements
            if (m.workload, m.metric) == (workload, "wall") and not m.missing
        }
        assert len(counts) == 1


def test_saving_takes_less_memory_than_the_arrays(report):
    (peak,) = [
        m.samples[0]
        for m in report.measurements
        if (m.workload, m.contender, m.metric) == ("save", "ours", "extra memory")
    ]
    assert peak < 8 << 20
