import numpy as np
import pytest

from lucid_gpu.checkpoint import Checkpointer, CheckpointError, latest, load
from tests.checkpoint.test_checkpointer import add_file, damage, damage_array


@pytest.fixture
def run(tmp_path, quick_sync):
    with Checkpointer(tmp_path) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, {"w": np.full(3, step)})
    return tmp_path


def test_the_newest_step_of_a_run_is_found_and_loaded(run):
    assert latest(run) == run / "step-000000000003"
    assert load(run)["w"].tolist() == [3, 3, 3]


def test_a_run_that_is_being_written_is_read_without_its_lock(run):
    with Checkpointer(run):
        assert load(run)["w"].tolist() == [3, 3, 3]


@pytest.mark.parametrize("harm", [damage, damage_array])
def test_damaged_steps_are_passed_over(run, harm):
    harm(run, 3)
    assert latest(str(run)) == run / "step-000000000002"
    with pytest.warns(UserWarning, match=r"fell back to step 2: .*step-000000000003"):
        assert load(run)["w"].tolist() == [2, 2, 2]


def test_the_newest_step_is_loaded_into_arrays_on_a_device(run, device):
    loaded = load(run, device=device)
    assert loaded["w"].tolist() == [3, 3, 3]
    target = np.zeros(3, int)
    load(run, into={"w": target})
    assert target.tolist() == [3, 3, 3]


def test_what_is_not_damaged_but_foreign_is_told(run):
    add_file(run, 3)
    for reading in (latest, load):
        with pytest.raises(CheckpointError, match="DS_Store"):
            reading(run)


def test_a_run_without_a_checkpoint_that_verifies_is_an_error(run, tmp_path):
    for step in (1, 2, 3):
        damage(run, step)
    for reading in (latest, load):
        with pytest.raises(CheckpointError, match=r"step-000000000003.*step-000000000001"):
            reading(run)


def test_an_empty_directory_is_no_run(tmp_path):
    with pytest.raises(CheckpointError, match=r"that can be used\.$"):
        latest(tmp_path)
    with pytest.raises(CheckpointError, match="this is no checkpoint"):
        load(tmp_path)
