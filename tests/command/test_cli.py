from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lucid_gpu
from lucid_gpu import checkpoint
from lucid_gpu.command import cli, demo
from lucid_gpu.device import gpu

COMMAND = [sys.executable, "-m", "lucid_gpu"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(lucid_gpu.__file__).parents[1])}


def run(*arguments: object) -> int:
    """Return the exit code, also where argparse ends the program."""
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished") / "run"
    assert run("demo", "--checkpoint", directory, "--device", "cpu", "--epochs", 2) == 0
    return directory


def test_the_demo_ends_with_accuracy_parameters_and_checkpoints(tmp_path, capsys) -> None:
    code = run("demo", "--device", "cpu", "--epochs", 1, "--seed", 3, "--checkpoint", tmp_path)
    saved = demo.train(tmp_path, resume=True)
    out = capsys.readouterr().out
    assert code == 0
    assert re.fullmatch(
        r"epoch 1/1  loss \d\.\d{4}  train [\d.]+%  test [\d.]+%\n"
        rf"test accuracy {saved.history[0]['test']:.1%} after epoch 1 of adam, seed 3, on cpu\n"
        rf"parameters {saved.digest()}, checkpoints in {re.escape(str(tmp_path))}\n",
        out,
    )


def test_a_demo_without_a_directory_makes_a_new_one(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for _ in range(2):
        assert run("demo", "--device", "cpu", "--epochs", 1) == 0
    out = capsys.readouterr().out
    named = re.findall(r"checkpoints in (.*)", out)
    assert sorted(named) == sorted(map(str, tmp_path.iterdir()))
    assert len(set(named)) == 2


def test_a_new_directory_is_named_with_the_reason_that_it_stays(
    monkeypatch, tmp_path, capsys
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run("demo", "--device", "cpu", "--epochs", 1) == 0
    *_, reason, command = capsys.readouterr().out.splitlines()
    assert reason == "kept, for you to delete, so that training can go on:"
    words = shlex.split(command)
    assert run(*words[words.index("demo") :]) == 0
    [directory] = tmp_path.iterdir()
    assert demo.train(directory, resume=True).step == 2 * 45


def test_a_run_with_a_schedule_is_named_by_it_and_not_to_be_made_longer(
    monkeypatch, tmp_path, capsys
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run("demo", "--device", "cpu", "--epochs", 1, "--schedule", "wsd") == 0
    *_, result, _, reason = capsys.readouterr().out.splitlines()
    assert "after epoch 1 of adam with schedule wsd, seed 0, on cpu" in result
    assert reason == "kept, for you to delete; a schedule ends with its run"


@pytest.mark.parametrize(
    ("error", "code"), [(OSError("disk full"), 1), (KeyboardInterrupt(), 130), (SystemExit(1), 1)]
)
def test_a_new_directory_goes_with_a_run_that_fails(monkeypatch, tmp_path, error, code) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = []

    def fail(directory: Path, *_) -> None:
        checkpoint.save(directory / "step-000000000045", {"w": 1})
        made.append(directory)
        raise error

    monkeypatch.setattr(demo, "train", fail)
    assert run("demo", "--device", "cpu") == code
    assert made[0].parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_given_directory_stays_when_a_run_fails(monkeypatch, tmp_path) -> None:
    def fail(directory: Path, *_) -> None:
        checkpoint.save(directory / "step-000000000045", {"w": 1})
        raise OSError("disk full")

    monkeypatch.setattr(demo, "train", fail)
    assert run("demo", "--device", "cpu", "--checkpoint", tmp_path) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_the_plot_of_a_resumed_run_shows_the_whole_history(monkeypatch, finished, tmp_path) -> None:
    drawn = []
    monkeypatch.setattr(
        "lucid_gpu.command.display.plot", lambda *arguments: drawn.append(arguments)
    )
    path = tmp_path / "curves.png"
    assert run("demo", "--resume", "--checkpoint", finished, "--plot", path) == 0
    [(history, where)] = drawn
    assert (len(history), where) == (2, path)


def test_the_demo_draws_its_curves(finished, tmp_path) -> None:
    path = tmp_path / "curves.png"
    assert run("demo", "--resume", "--checkpoint", finished, "--plot", path) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "train",
        "demo --epochs 0",
        "demo --epochs x",
        "demo --epochs 1.5",
        "demo --seed -1",
        "demo --optimizer rprop",
        "demo --schedule sine",
        "demo --device gpu",
        "demo --resume",
        "inspect",
        "diff one",
    ],
)
def test_a_wrong_command_line_ends_with_2(arguments: str, capsys) -> None:
    assert run(*arguments.split()) == 2
    assert capsys.readouterr().err.startswith("usage: lucid-gpu")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--resume --checkpoint {0}/absent", "absent does not exist"),
        ("--resume --checkpoint {0}/empty", "holds no checkpoint"),
        ("--checkpoint {0}/file", "file cannot be used for checkpoints"),
        ("--plot {0}/absent/curves.png", "the folder .*absent does not exist"),
        ("--plot {0}/curves.txt", "name an image file"),
        ("--resume --checkpoint {1} --optimizer sgd", "--optimizer is sgd.*--optimizer adam"),
        ("--resume --checkpoint {1} --seed 9", "--seed is 9.*--seed 0"),
        ("--checkpoint {1}", "holds a run"),
    ],
)
def test_a_demo_that_cannot_run_says_why_in_one_line(
    finished, tmp_path, capsys, arguments: str, text: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert run("demo", "--device", "cpu", *arguments.format(tmp_path, finished).split()) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(f"lucid-gpu: .*{text}.*\n", err)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_gpu_that_is_not_there_is_a_failure(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    gpu._probe.cache_clear()
    try:
        assert run("demo", "--device", "cuda") == 1
    finally:
        gpu._probe.cache_clear()
    assert "pip install '.[cuda13]'" in capsys.readouterr().err


def test_a_senseless_number_of_threads_is_a_failure(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setenv("LUCID_GPU_NUM_THREADS", "some")
    assert run("demo", "--device", "cpu", "--checkpoint", tmp_path / "run") == 1
    assert "LUCID_GPU_NUM_THREADS must be" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_warning_is_one_line(monkeypatch, tmp_path, capsys) -> None:
    assert run("demo", "--device", "cpu", "--epochs", 2, "--checkpoint", tmp_path) == 0
    (tmp_path / "step-000000000090" / "manifest.json").write_text("{}")
    capsys.readouterr()
    monkeypatch.setattr("warnings.filters", [])
    assert run("demo", "--resume", "--checkpoint", tmp_path) == 0
    err = capsys.readouterr().err
    assert re.fullmatch(r"lucid-gpu: warning: fell back to step 45: .*\n", err)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_demo_says_how_to_continue_and_does(tmp_path, number, code) -> None:
    directory = tmp_path / "a folder with spaces"
    plot = tmp_path / "curves.png"
    options = ["--epochs", "25", "--device", "cpu", "--plot", str(plot)]
    with subprocess.Popen(
        [*COMMAND, "demo", "--checkpoint", str(directory), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout.readline().startswith("epoch 1/25")
        process.send_signal(number)
        out, err = process.communicate()
    assert (process.returncode, "test accuracy" in out) == (code, False)
    assert plot.exists()
    message, again = err.splitlines()
    assert re.fullmatch(r"lucid-gpu: stopped after \d+ mini-batches, all saved; .*:", message)
    done = subprocess.run(
        shlex.split(again), capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert done.stderr == ""
    assert demo.train(tmp_path / "whole", epochs=25).digest() in done.stdout


def test_an_interrupt_elsewhere_ends_with_130(monkeypatch, capsys) -> None:
    def interrupt() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("lucid_gpu.command.info.report", interrupt)
    assert run("info") == 130
    assert capsys.readouterr().err == "lucid-gpu: interrupted\n"


def in_shell(words: str, redirected: str, **environment: object) -> subprocess.CompletedProcess:
    """Run the command in a shell, its output redirected."""
    return subprocess.run(
        ["bash", "-c", f"{shlex.join([*COMMAND, *words.split()])} {redirected}"],
        capture_output=True,
        text=True,
        check=False,
        env={**ENVIRONMENT, **{name: str(value) for name, value in environment.items()}},
    )


def test_a_reader_that_has_enough_sees_no_traceback_and_no_folder_stays(tmp_path) -> None:
    done = in_shell("demo --device cpu --epochs 20", "| head -n 1", TMPDIR=tmp_path)
    assert done.stdout.startswith("epoch 1/20")
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_a_demo_trains_where_its_output_is_closed(tmp_path) -> None:
    words = f"demo --device cpu --epochs 1 --checkpoint {tmp_path / 'run'}"
    done = in_shell(words, ">&-")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(demo.train(tmp_path / "run", resume=True).history) == 1


@pytest.mark.parametrize("redirected", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_change_no_exit_code(redirected) -> None:
    for words, code in (("info", 0), ("inspect /absent", 1)):
        done = in_shell(words, redirected)
        assert done.returncode == code
        assert "Traceback" not in done.stderr
        assert bool(done.stdout) == (redirected == "2>&-" and code == 0)


def test_a_reader_that_is_gone_sees_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, "info"], stdout=writer, stderr=subprocess.PIPE, check=False, env=ENVIRONMENT
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_info_is_printed(capsys) -> None:
    assert run("info") == 0
    assert capsys.readouterr().out.startswith(f"lucid_gpu     {lucid_gpu.__version__} in ")


def test_the_version_is_printed(capsys) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"{lucid_gpu.__version__}\n"


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [*COMMAND, "verify", "/absent"],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    assert done.returncode == 1
    assert "/absent" in done.stderr


def test_the_program_is_named_as_the_shell_finds_it(monkeypatch, tmp_path) -> None:
    script = tmp_path / "some folder" / "lucid-gpu"
    script.parent.mkdir()
    script.touch(mode=0o755)
    monkeypatch.setattr("sys.argv", [str(script)])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli._program() == shlex.quote(str(script))
    monkeypatch.setenv("PATH", str(script.parent))
    assert cli._program() == "lucid-gpu"


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "before", tmp_path / "after"]
    for value, path in enumerate(paths):
        checkpoint.save(path, {"w": np.full(3, value, np.float32)})
    return paths


def test_inspect_prints_the_tree(two, capsys) -> None:
    assert run("inspect", two[0]) == 0
    assert "w: float32 [3]" in capsys.readouterr().out


def test_verify_tells_a_good_checkpoint_from_a_damaged_one(two, capsys) -> None:
    assert run("verify", two[0]) == 0
    assert capsys.readouterr().out.startswith("ok: ")
    [data] = two[0].glob("data-*")
    data.write_bytes(data.read_bytes()[:-1] + b"\xff")
    assert run("verify", two[0]) == 1
    assert "DAMAGED" in capsys.readouterr().err


def test_diff_ends_as_diff_does(two, tmp_path, capsys) -> None:
    assert run("diff", two[0], two[0]) == 0
    assert run("diff", *two) == 1
    assert "3 of 3 elements differ" in capsys.readouterr().out
    assert run("diff", two[0], tmp_path / "absent") == 2
    assert capsys.readouterr().err.startswith("lucid-gpu: ")
