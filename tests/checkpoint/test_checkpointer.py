import errno
import multiprocessing
import os
import shutil

import numpy as np
import pytest

from lucid_gpu.checkpoint import Checkpointer, CheckpointError, load, retention, save
from tests.checkpoint import forge
from tests.checkpoint.stateful import Stateful


@pytest.fixture(autouse=True)
def _quick(quick_sync):
    pass


def saved(directory, steps, **options):
    with Checkpointer(directory, **options) as checkpointer:
        for step in steps:
            checkpointer.save(step, {"step": step})
        return checkpointer.steps()


def damage(directory, step):
    manifest = directory / f"step-{step:012d}" / "manifest.json"
    raw = bytearray(manifest.read_bytes())
    raw[len(raw) // 2] ^= 1
    manifest.write_bytes(raw)


def damage_array(directory, step):
    shard = directory / f"step-{step:012d}" / "data-00000.safetensors"
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)


def test_the_newest_steps_are_kept(tmp_path):
    assert saved(tmp_path, [1, 2, 3, 4, 5], keep=2) == [4, 5]


def test_steps_divisible_by_keep_every_are_kept_too(tmp_path):
    assert saved(tmp_path, range(10, 70, 10), keep=1, keep_every=20) == [20, 40, 60]


def test_nothing_but_checkpoints_is_left_in_the_directory(tmp_path):
    saved(tmp_path, [1, 2, 3, 4, 5], keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000000004", "step-000000000005"]


def test_a_named_step_is_restored(tmp_path):
    saved(tmp_path, [1, 2, 3])
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.restore(2) == {"step": 2}


def test_the_newest_step_is_restored_into_objects(tmp_path):
    scheduler = Stateful({"epoch": 1})
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"s": scheduler})
        scheduler.state["epoch"] = 2
        checkpointer.save(2, {"s": scheduler})
        scheduler.state["epoch"] = 3
        assert checkpointer.restore(into={"s": scheduler})["s"] is scheduler
    assert scheduler.state == {"epoch": 2}


def test_a_damaged_newest_step_falls_back_with_a_warning_that_says_why(tmp_path):
    saved(tmp_path, [1, 2, 3])
    damage(tmp_path, 3)
    with (
        Checkpointer(tmp_path) as checkpointer,
        pytest.warns(UserWarning, match=r"fell back to step 2: .*step-000000000003/manifest.json"),
    ):
        assert checkpointer.restore() == {"step": 2}


def test_a_named_step_never_falls_back(tmp_path):
    saved(tmp_path, [1, 2, 3])
    damage(tmp_path, 3)
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(CheckpointError, match="0003/man"):
        checkpointer.restore(3)


def test_a_step_under_another_steps_name_is_refused(tmp_path):
    saved(tmp_path, [1])
    (tmp_path / "step-000000000001").rename(tmp_path / "step-000000000002")
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(CheckpointError, match="of step 1"):
        checkpointer.restore(2)


def test_a_step_that_does_not_fit_never_falls_back(tmp_path):
    saved(tmp_path, [1, 2])
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(CheckpointError, match="lacks"):
        checkpointer.restore(into={"epoch": 1})


def test_no_checkpoint_at_all_is_an_error(tmp_path):
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(CheckpointError, match="holds no"):
        checkpointer.restore()


def test_when_all_are_damaged_every_reason_is_given(tmp_path):
    saved(tmp_path, [1, 2])
    damage(tmp_path, 1)
    damage(tmp_path, 2)
    with (
        Checkpointer(tmp_path) as checkpointer,
        pytest.raises(CheckpointError, match=r"step-000000000002.*step-000000000001"),
    ):
        checkpointer.restore()


def test_damaged_steps_neither_count_nor_go(tmp_path):
    saved(tmp_path, [1, 2, 3], keep=3)
    damage(tmp_path, 3)
    assert saved(tmp_path, [4], keep=2) == [2, 3, 4]


def test_a_step_found_damaged_by_a_restore_no_longer_counts(tmp_path):
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, np.full(3, step))
        damage_array(tmp_path, 2)
        with pytest.warns(UserWarning, match="fell back to step 1"):
            checkpointer.restore()
        checkpointer.save(3, np.full(3, 3))
        assert checkpointer.steps() == [1, 2, 3]


@pytest.mark.parametrize("reopened", [False, True])
def test_a_step_of_which_a_bit_flipped_does_not_count(tmp_path, reopened):
    checkpointer = Checkpointer(tmp_path, keep=2)
    for step in (1, 2):
        checkpointer.save(step, np.full(3, step))
    damage_array(tmp_path, 2)
    if reopened:
        checkpointer.close()
        checkpointer = Checkpointer(tmp_path, keep=2)
    checkpointer.save(3, np.full(3, 3))
    assert checkpointer.steps() == [1, 2, 3]
    checkpointer.close()


def test_a_damaged_step_above_does_not_cost_the_one_just_saved(tmp_path):
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(20, np.full(3, 20))
        damage_array(tmp_path, 20)
        checkpointer.save(15, np.full(3, 15))
        assert checkpointer.steps() == [15, 20]
        assert load(tmp_path / "step-000000000015").tolist() == [15] * 3


def raise_version(directory, step):
    forge.rewrite(directory / f"step-{step:012d}", lambda body: body.update(version=[2, 0]))


def add_file(directory, step):
    (directory / f"step-{step:012d}" / ".DS_Store").write_bytes(b"mine")


def replace_by_link(directory, step):
    shard = directory / f"step-{step:012d}" / "data-00000.safetensors"
    shard.rename(directory / "elsewhere")
    shard.symlink_to(directory / "elsewhere")


def use_the_name(directory, step):
    path = directory / f"step-{step:012d}"
    shutil.rmtree(path)
    path.mkdir()
    (path / "notes.txt").write_bytes(b"mine")


def exchange_names(directory, step):
    path = directory / f"step-{step:012d}"
    shutil.rmtree(path)
    shutil.copytree(directory / "step-000000000001", path)


FOREIGN = [raise_version, add_file, replace_by_link, use_the_name, exchange_names]


@pytest.mark.parametrize("change", FOREIGN)
def test_what_is_foreign_is_never_removed(tmp_path, change):
    with Checkpointer(tmp_path, keep=1, keep_every=1) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, np.full(3, step))
    change(tmp_path, 2)
    before = sorted(tmp_path.glob("step-000000000002/*"))
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        with pytest.raises(CheckpointError, match="step-000000000002"):
            checkpointer.save(2, {"step": 2})
        checkpointer.save(3, {"step": 3})
        assert checkpointer.steps() == [2, 3]
        assert sorted(tmp_path.glob("step-000000000002/*")) == before


@pytest.mark.parametrize("change", FOREIGN)
def test_what_is_foreign_is_not_passed_over_by_a_restore(tmp_path, change):
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, np.full(3, step))
        change(tmp_path, 2)
        with pytest.raises(CheckpointError, match="step-000000000002"):
            checkpointer.restore()


def test_a_bit_flip_in_the_version_is_damage_and_no_newer_version(tmp_path):
    saved(tmp_path, [1, 2])
    path = tmp_path / "step-000000000002" / "manifest.json"
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b'"version":[1,', b'"version":[3,'))
    with Checkpointer(tmp_path) as checkpointer, pytest.warns(UserWarning, match="was altered"):
        assert checkpointer.restore() == {"step": 1}


@pytest.mark.parametrize("call", ["open", "preadv"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES])
def test_what_cannot_be_read_now_never_falls_back(tmp_path, monkeypatch, call, number):
    real = getattr(os, call)

    def refuse(*arguments, **options):
        if call == "preadv" or options.get("dir_fd") is not None:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    with Checkpointer(tmp_path, keep=2) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, np.full(3, step))
        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            with pytest.raises(CheckpointError, match=rf"0002/.*{os.strerror(number)}.*may pass"):
                checkpointer.restore()
        assert checkpointer.restore().tolist() == [2] * 3


def test_steps_that_cannot_be_read_now_are_neither_counted_nor_removed(tmp_path, monkeypatch):
    saved(tmp_path, [1, 2, 3], keep=3)
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", full_disk)
            checkpointer.save(4, {"step": 4})
        assert checkpointer.steps() == [1, 2, 3, 4]
        checkpointer.save(5, {"step": 5})
        assert checkpointer.steps() == [4, 5]


def test_a_huge_manifest_is_damage(tmp_path):
    saved(tmp_path, [1, 2])
    os.truncate(tmp_path / "step-000000000002" / "manifest.json", 1 << 43)
    with Checkpointer(tmp_path) as checkpointer, pytest.warns(UserWarning, match="more than any"):
        assert checkpointer.restore() == {"step": 1}


def test_a_damaged_step_is_replaced_by_a_save_of_the_same_step(tmp_path):
    saved(tmp_path, [1, 2])
    damage(tmp_path, 2)
    assert saved(tmp_path, [2]) == [1, 2]
    assert load(tmp_path / "step-000000000002") == {"step": 2}


def test_after_a_fallback_the_run_goes_on_below_the_damaged_step(tmp_path):
    saved(tmp_path, [10, 20])
    damage(tmp_path, 20)
    assert saved(tmp_path, [15], keep=1) == [15, 20]


@pytest.mark.parametrize("step", [2, 1])
def test_a_step_that_would_not_be_the_newest_is_refused(tmp_path, step):
    with pytest.raises(CheckpointError, match="already has a valid checkpoint of step 2"):
        saved(tmp_path, [2, step])


@pytest.mark.parametrize(
    ("step", "error"), [(-1, ValueError), (10**12, ValueError), (1.0, TypeError), (True, TypeError)]
)
def test_an_impossible_step_is_refused(tmp_path, step, error):
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(error, match="step"):
        checkpointer.save(step, {})


@pytest.mark.parametrize("options", [{"keep": 0}, {"keep_every": 0}])
def test_an_impossible_retention_is_refused(tmp_path, options):
    with pytest.raises(ValueError, match="must be at least 1"):
        Checkpointer(tmp_path, **options)


def test_two_writers_in_one_process_are_told(tmp_path):
    with Checkpointer(tmp_path), pytest.raises(CheckpointError, match="another Checkpointer"):
        Checkpointer(tmp_path)


def open_and_report(directory, answers):
    try:
        Checkpointer(directory)
    except CheckpointError as error:
        answers.put(str(error))


def test_two_writers_in_two_processes_are_told(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    with Checkpointer(tmp_path):
        other = spawn.Process(target=open_and_report, args=(tmp_path, answers))
        other.start()
        assert "another Checkpointer is writing here" in answers.get(timeout=60)
        other.join()


def test_a_closed_directory_can_be_opened_again(tmp_path):
    Checkpointer(tmp_path).close()
    Checkpointer(tmp_path).close()


def test_a_closed_checkpointer_saves_no_more(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.close()
    checkpointer.close()
    with pytest.raises(CheckpointError, match="is closed: open another"):
        checkpointer.save(1, {})
    assert checkpointer.steps() == []


def test_a_forked_process_does_not_keep_the_directory_locked(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    shared = os.dup(checkpointer._lock)
    checkpointer.close()
    Checkpointer(tmp_path).close()
    os.close(shared)


def test_a_step_that_cannot_be_read_is_not_replaced(tmp_path, monkeypatch):
    saved(tmp_path, [1])
    with Checkpointer(tmp_path) as checkpointer:
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", full_disk)
            with pytest.raises(CheckpointError, match="step-000000000001"):
                checkpointer.save(1, {"step": 2})
        assert checkpointer.restore() == {"step": 1}


def test_readers_need_no_lock(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"step": 1})
        assert load(tmp_path / "step-000000000001") == {"step": 1}


def test_leftovers_of_dead_writers_are_removed_at_open(tmp_path):
    left = tmp_path / ".tmp-step-000000000007-0123abcd"
    left.mkdir()
    (left / "data-00000.safetensors").write_bytes(b"half")
    Checkpointer(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


def test_the_work_of_a_living_writer_is_not_removed(tmp_path):
    save(tmp_path / "best", Interfering(tmp_path))
    assert load(tmp_path / "best") == {"epoch": 1}


class Interfering(Stateful):
    """Opens and sweeps the directory while it is being saved."""

    def __init__(self, directory):
        super().__init__({"epoch": 1})
        self.directory = directory

    def state_dict(self):
        Checkpointer(self.directory).close()
        return self.state


def test_foreign_files_are_left_alone(tmp_path):
    for name in ("notes.txt", ".tmp-mine", "step-1", ".tmp-step-000000000007-0123ABCD"):
        (tmp_path / name).mkdir()
    assert saved(tmp_path, [1, 2, 3], keep=1) == [3]
    assert len(list(tmp_path.iterdir())) == 5


def test_a_link_is_no_step(tmp_path):
    saved(tmp_path / "run", [1])
    (tmp_path / "run" / "step-000000000009").symlink_to(tmp_path / "run" / "step-000000000001")
    with Checkpointer(tmp_path / "run") as checkpointer:
        assert checkpointer.steps() == [1]


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_an_error_that_leaves_nothing_behind(tmp_path, monkeypatch):
    saved(tmp_path, [1])
    with Checkpointer(tmp_path) as checkpointer:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full_disk)
            with pytest.raises(CheckpointError, match=r"No space left on device.*has room"):
                checkpointer.save(2, {"step": 2})
        assert [p.name for p in tmp_path.iterdir()] == ["step-000000000001"]
        checkpointer.save(2, {"step": 2})
        assert checkpointer.restore() == {"step": 2}


def test_a_failed_sync_of_the_directory_takes_the_checkpoint_back(tmp_path, monkeypatch):
    with Checkpointer(tmp_path) as checkpointer:
        synced = []

        def fail_last(descriptor):
            synced.append(descriptor)
            if len(synced) == 3:
                raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "fsync", fail_last)
        with pytest.raises(CheckpointError, match="Input/output error"):
            checkpointer.save(1, {"step": 1})
        assert checkpointer.steps() == []
        checkpointer.save(1, {"step": 1})
        assert checkpointer.restore() == {"step": 1}


@pytest.mark.parametrize("block", [True, False], ids=["blocking", "background"])
def test_old_steps_that_cannot_be_removed_are_a_warning_after_the_save(
    tmp_path, monkeypatch, block
):
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(1, {"step": 1})
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", full_disk)
            with pytest.warns(UserWarning, match=r"step 2 was saved, but older.*No space left"):
                save_and_wait(checkpointer, 2, block)
        assert checkpointer.restore() == {"step": 2}


@pytest.mark.parametrize("block", [True, False])
def test_a_step_that_cannot_be_verified_for_its_removal_does_not_fail_the_save(
    tmp_path, monkeypatch, block
):
    saved(tmp_path, [1])

    def no_memory(*_):
        raise MemoryError

    with Checkpointer(tmp_path, keep=2) as checkpointer:
        with monkeypatch.context() as patch:
            patch.setattr(retention.Retention, "is_valid", no_memory)
            patch.setattr(Checkpointer, "_make_way", lambda *_: None)
            with pytest.warns(UserWarning, match="step 2 was saved, but older.*MemoryError"):
                save_and_wait(checkpointer, 2, block)
        assert checkpointer.restore() == {"step": 2}


def save_and_wait(checkpointer, step, block):
    checkpointer.save(step, {"step": step}, block=block)
    checkpointer.wait()


@pytest.mark.parametrize("call", ["rmtree", "rename"])
def test_a_removal_that_failed_is_done_by_the_next_save(tmp_path, monkeypatch, call):
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(1, {"step": 1})
        with monkeypatch.context() as patch:
            patch.setattr(*((shutil, call, full_disk) if call == "rmtree" else failing_rename()))
            with pytest.warns(UserWarning, match="could not be removed"):
                checkpointer.save(2, {"step": 2})
        checkpointer.save(3, {"step": 3})
        assert [path.name for path in tmp_path.iterdir()] == ["step-000000000003"]


def failing_rename():
    rename = os.rename

    def refuse_removal(old, new, **options):
        if new.startswith(".tmp-"):
            full_disk()
        rename(old, new, **options)

    return os, "rename", refuse_removal


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be used for checkpoints"):
        Checkpointer(tmp_path / "file" / "run")


@pytest.mark.parametrize("options", [{"keep": "2"}, {"keep": 2.5}, {"keep_every": 0.5}])
def test_what_is_no_whole_number_of_checkpoints_is_refused(tmp_path, options):
    with pytest.raises(TypeError, match="must be a whole number"):
        Checkpointer(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
