from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import lucid_gpu
from lucid_gpu.command import startup

SCRIPT = """
import sys
from lucid_gpu.command.cli import main
sys.exit(main())
"""


LAUNCHER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.Handlers(int(sys.argv[1])))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def interrupted_by_an_import(folder: Path, *arguments: str, handler=signal.SIG_DFL):
    """Run Python with an import of NumPy that sends the process SIGINT, as Ctrl-C would."""
    (folder / "numpy").mkdir()
    (folder / "numpy" / "__init__.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit(7)\n"
    )
    paths = os.pathsep.join([str(folder), str(Path(lucid_gpu.__file__).parents[1])])
    return subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, str(int(handler)), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )


@pytest.mark.parametrize("arguments", [["-m", "lucid_gpu", "info"], ["-mlucid_gpu"], ["lucid-gpu"]])
def test_ctrl_c_during_the_imports_of_the_command_ends_it_with_130(tmp_path, arguments) -> None:
    (tmp_path / "lucid-gpu").write_text(SCRIPT)
    if arguments == ["lucid-gpu"]:
        arguments = [str(tmp_path / "lucid-gpu"), "info"]
    done = interrupted_by_an_import(tmp_path, *arguments)
    assert (done.returncode, done.stderr) == (130, "lucid-gpu: interrupted\n")


def test_elsewhere_ctrl_c_during_the_imports_is_an_exception(tmp_path) -> None:
    code = "try:\n    import lucid_gpu\nexcept KeyboardInterrupt:\n    print('caught')"
    done = interrupted_by_an_import(tmp_path, "-c", code, "lucid-gpu")
    assert (done.returncode, done.stdout) == (0, "caught\n")


def test_ctrl_c_stays_ignored_where_it_is(tmp_path) -> None:
    done = interrupted_by_an_import(tmp_path, "-m", "lucid_gpu", handler=signal.SIG_IGN)
    assert (done.returncode, done.stderr) == (7, "")


def test_after_the_imports_ctrl_c_is_an_exception_again(monkeypatch) -> None:
    before = signal.signal(signal.SIGINT, startup._end)
    try:
        startup.finish()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        startup.finish()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
