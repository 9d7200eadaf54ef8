"""Builds go on beside other work, once for all processes, and fail without harm."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lucid_gpu.execution import building
from tests.execution.compilers import SEVEN, counting, endless, failing, run, value, waiting


@pytest.fixture
def temporary(monkeypatch, tmp_path):
    """A folder of its own for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def lives(process):
    """Say whether a process runs; one that nobody has asked for since it ended does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def until(condition):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it takes longer than half a minute")


def test_a_build_is_pending_until_the_compiler_is_done(use):
    compiler = use(waiting)
    build = building.start(SEVEN)
    assert build.is_pending
    assert build.poll()
    assert (build.library, build.failure) == (None, None)
    compiler.open()
    until(lambda: not build.poll())
    assert value(build) == 7


def test_a_text_is_built_once_in_a_process(use):
    compiler = use(counting)
    first = building.finish(SEVEN)
    assert building.start(SEVEN) is first
    assert building.finish(SEVEN) is first
    assert compiler.count == 1


def test_waiting_ends_when_nothing_is_pending(use):
    use(counting)
    builds = [building.start(SEVEN), building.start(f"{SEVEN}\n")]
    building.wait()
    assert [value(build) for build in builds] == [7, 7]


def test_nothing_is_left_in_the_temporary_folder(use, temporary):
    use(counting)
    building.finish(SEVEN)
    building.finish("an error")
    assert list(temporary.iterdir()) == []


def test_the_compiler_in_the_background_yields_to_the_steps(use):
    use(waiting)
    build = building.start(SEVEN)
    priority = os.getpriority(os.PRIO_PROCESS, build._work.process.pid)
    assert priority == min(19, os.getpriority(os.PRIO_PROCESS, 0) + building.NICENESS)


def test_an_interrupt_from_the_keyboard_does_not_reach_the_compiler(use):
    use(waiting)
    build = building.start(SEVEN)
    assert os.getpgid(build._work.process.pid) != os.getpgid(0)


def test_without_a_compiler_it_fails_at_once(fresh, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert building.start(SEVEN).failure == building.NO_COMPILER
    assert building.finish(SEVEN).failure == building.NO_COMPILER


def test_a_compiler_that_fails_is_quoted_by_its_first_error(use):
    compiler = use(failing)
    build = building.finish(SEVEN)
    assert build.failure == f"{compiler.path} failed: error: out of sorts"
    assert build.output == "some words\nerror: out of sorts"
    assert not build.is_pending


def test_a_compiler_that_fails_is_not_run_again_unless_it_is_waited_for(use):
    compiler = use(failing)
    building.finish(SEVEN)
    assert building.start(SEVEN).failure is not None
    assert compiler.count == 1
    building.finish(SEVEN)
    assert compiler.count == 2


def test_a_compiler_that_says_nothing_and_builds_nothing_is_a_failure(fresh, monkeypatch):
    monkeypatch.setenv("CXX", "true")
    assert "built nothing that can be loaded" in building.finish(SEVEN).failure
    monkeypatch.setenv("CXX", "false")
    assert building.finish(SEVEN).failure.endswith("failed: it exits with 1")


def test_a_compiler_that_cannot_be_run_is_a_failure(fresh, monkeypatch, tmp_path):
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF")
    broken.chmod(0o700)
    monkeypatch.setenv("CXX", str(broken))
    assert "cannot be run" in building.start(SEVEN).failure


def test_a_compiler_is_named_with_its_arguments(fresh, monkeypatch):
    monkeypatch.setenv("CXX", "c++ -DNUMBER=7")
    text = 'extern "C" int seven() { return NUMBER; }'
    assert value(building.finish(text)) == 7
    monkeypatch.setenv("CXX", "c++ -DNUMBER=8")
    assert value(building.finish(text)) == 8


def test_a_temporary_folder_that_cannot_be_made_is_a_failure(fresh, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    assert "No such file or directory" in building.start(SEVEN).failure


SECOND = f"""
from lucid_gpu.execution import building
build = building.start({SEVEN!r})
print(build.is_pending)
build.wait()
assert build.library.seven() == 7
"""


def test_the_next_process_begins_with_the_code_and_compiles_nothing(use):
    compiler = use(counting)
    assert run(SECOND).stdout == "True\n"
    assert run(SECOND).stdout == "False\n"
    assert compiler.count == 1


def test_processes_that_race_all_get_the_code(use):
    use(counting)
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(run, [SECOND] * 4))
    assert [(each.returncode, each.stderr) for each in done] == [(0, "")] * 4


@pytest.mark.parametrize("kept", [0, 1, 4096])
def test_an_entry_cut_short_is_built_anew(use, fresh, monkeypatch, kept):
    compiler = use(counting)
    building.finish(SEVEN)
    (entry,) = fresh.glob("*.so")
    whole = entry.read_bytes()
    entry.unlink()  # not cut in place: this process has it loaded
    entry.write_bytes(whole[:kept])
    monkeypatch.setattr(building, "_builds", {})
    assert value(building.finish(SEVEN)) == 7
    assert compiler.count == 2
    assert entry.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_no_failure(use, monkeypatch, tmp_path):
    compiler = use(counting)
    (tmp_path / "file").touch()
    monkeypatch.setenv("LUCID_GPU_CACHE_DIR", str(tmp_path / "file" / "cache"))
    for number in (1, 2):
        monkeypatch.setattr(building, "_builds", {})
        assert value(building.finish(SEVEN)) == 7
        assert compiler.count == number


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("flags\t\t: fpu", "flags\t\t: fpu avx512"),
        lambda text: text.replace("model name\t: A", "model name\t: B"),
    ],
)
def test_code_for_another_cpu_is_not_loaded(use, monkeypatch, tmp_path, edit):
    compiler = use(counting)
    cpu = tmp_path / "cpuinfo"
    text = "processor\t: 0\nmodel name\t: A\ncpu MHz\t\t: 1\nflags\t\t: fpu\n\nprocessor\t: 1\n"
    monkeypatch.setattr(building, "CPU_INFO", cpu)
    for content, expected in (
        (text, 1), (edit(text), 2), (text.replace("MHz\t\t: 1", "MHz\t\t: 2"), 2),
    ):  # fmt: skip
        cpu.write_text(content)
        monkeypatch.setattr(building, "_builds", {})
        building.finish(SEVEN)
        assert compiler.count == expected


def test_code_is_not_kept_where_no_one_tells_the_cpu(use, fresh, monkeypatch, tmp_path):
    use(counting)
    monkeypatch.setattr(building, "CPU_INFO", tmp_path / "absent")
    assert value(building.finish(SEVEN)) == 7
    assert not fresh.exists()


def test_another_version_of_the_compiler_builds_anew(use, fresh, monkeypatch):
    compiler = use(counting)
    building.finish(SEVEN)
    os.utime(compiler.path, (1, 1))
    monkeypatch.setattr(building, "_builds", {})
    building.finish(SEVEN)
    assert compiler.count == 2


def test_threads_that_race_share_one_build(use):
    compiler = use(counting)
    together = threading.Barrier(8, timeout=30)

    def build(number):
        together.wait()
        own = building.start(SEVEN)
        while own.poll() and number % 2:
            time.sleep(0)
        own.wait()
        return own

    with ThreadPoolExecutor(8) as pool:
        builds = list(pool.map(build, range(8)))
    assert len(set(map(id, builds))) == 1
    assert value(builds[0]) == 7
    assert compiler.count == 1


def test_nobody_waits_for_a_thread_that_waits_for_the_compiler(use):
    compiler = use(waiting)
    build = building.start(SEVEN)
    other = threading.Thread(target=build.wait)
    other.start()
    assert build.poll()
    compiler.open()
    other.join(30)
    assert value(build) == 7


FORK = f"""
import os, sys
from pathlib import Path
from lucid_gpu.execution import building
build = building.start({SEVEN!r})
child = os.fork()
if not child and sys.argv[1:] == ["leave"]:
    sys.exit()
if child and sys.argv[1:] == ["leave"]:
    assert os.waitpid(child, 0)[1] == 0
    assert build.poll()
build.poll()
Path(os.environ["GATE"]).touch()
build.wait()
assert build.library.seven() == 7
if child and sys.argv[1:] != ["leave"]:
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_process_builds_for_itself(use):
    compiler = use(waiting)
    done = run(FORK, GATE=compiler.gate)
    assert (done.returncode, done.stderr) == (0, "")
    assert compiler.count == 2


def test_a_forked_process_that_ends_leaves_the_compiler_of_its_parent_alone(use):
    compiler = use(waiting)
    done = run(FORK, "leave", GATE=compiler.gate)
    assert (done.returncode, done.stderr) == (0, "")
    assert compiler.count == 1


LEAVE = f"""
import os, time
from pathlib import Path
from lucid_gpu.execution import building
def leave():
    assert building.start({SEVEN!r}).is_pending
    while not list(Path(os.environ["TMPDIR"]).glob("*/left")):
        time.sleep(0.01)
"""
WAYS_TO_LEAVE = {
    "end": f"{LEAVE}leave()",
    "exit": f"{LEAVE}leave(); raise SystemExit(0)",
    "thread": f"{LEAVE}import threading; threading.Thread(target=leave).start()",
    "worker": f"{LEAVE}import multiprocessing as m; p = m.get_context('fork').Process(target=leave)"
    "; p.start(); p.join(); raise SystemExit(p.exitcode)",
    "late": f"{LEAVE}import atexit; atexit.register(leave)",
}


@pytest.mark.parametrize("way", WAYS_TO_LEAVE)
def test_an_exit_while_the_compiler_runs_leaves_nothing_behind(
    fresh, use, tmp_path, temporary, way
):
    compiler = use(endless)
    done = run(WAYS_TO_LEAVE[way], TMPDIR=temporary)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(temporary.iterdir()) == []
    assert not fresh.exists()
    assert not any(map(lives, map(int, compiler.runs.read_text().split())))


def test_code_that_is_done_at_exit_is_kept(use):
    compiler = use(counting)
    wait = (
        "import time; time.sleep(0.1)\nwhile build._work.process.poll() is None: time.sleep(0.01)"
    )
    script = f"from lucid_gpu.execution import building\nbuild = building.start({SEVEN!r})\n{wait}"
    assert run(script).stderr == ""
    assert run(SECOND).stdout == "False\n"
    assert compiler.count == 1


def test_nothing_is_started_while_the_interpreter_exits(use):
    compiler = use(counting)
    script = f"""
import atexit
atexit.register(lambda: print(building.finish({SEVEN!r}).failure))
from lucid_gpu.execution import building
"""
    done = run(script)
    assert (done.stdout, done.stderr) == ("the interpreter exits\n", "")
    assert compiler.count == 0
