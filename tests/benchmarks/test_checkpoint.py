import pytest

from benchmarks import checkpoint
from benchmarks.peers import files
from benchmarks.protocol import Options
from lucid_gpu.checkpoint import Checkpointer, CheckpointError


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


@pytest.mark.parametrize(
    ("seconds_per_probe", "nbytes"),
    [(0.01, 1 << 30), (0.02, 512 << 20), (0.1, 128 << 20), (0.4, 32 << 20), (9.0, 16 << 20)],
)
def test_less_is_written_to_a_slow_disk(seconds_per_probe, nbytes, monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint.timing, "clock", lambda call: seconds_per_probe)
    assert checkpoint._fitting(tmp_path, seconds=50) == nbytes


def test_a_peer_that_fails_is_missing_and_the_others_are_measured(monkeypatch, tmp_path):
    def fail(path, arrays):
        raise OSError("no space left")

    contenders = {"ours": files.CONTENDERS["ours"], "peer": lambda: (fail, fail)}
    monkeypatch.setattr(checkpoint, "CONTENDERS", contenders)
    arrays = checkpoint._arrays(1 << 10, "cpu", 2)
    ours, peer = checkpoint._saving(tmp_path, arrays, 0.1)
    assert ours.samples
    assert (peer.samples, peer.missing) == ([], "OSError: no space left")


def test_a_background_save_that_fails_ends_no_later_than_its_time(monkeypatch, tmp_path):
    def fail(*arguments):
        raise CheckpointError("no space left")

    monkeypatch.setattr(Checkpointer, "_write", fail)
    options = Options(device="cpu", quick=True, seconds=1)
    with pytest.raises(CheckpointError, match="no space left"):
        list(checkpoint._training(tmp_path, options))
