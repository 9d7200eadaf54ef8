"""The ``lucid-gpu`` command.

Exit codes: 0 when all went well, 1 when not, 2 for a wrong command line; a demo that a signal
stopped ends with 128 more than the signal's number, which is 130 for Ctrl-C. ``diff`` ends as the
tool of that name: 1 for a difference, 2 when it cannot tell.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lucid_gpu
from lucid_gpu.checkpoint import CheckpointError, report
from lucid_gpu.command import demo, display, info, startup
from lucid_gpu.device import gpu
from lucid_gpu.execution.threads import thread_count

_FAILURES = (display.DemoError, CheckpointError, gpu.DeviceUnavailableError, OSError)
"""What is not a defect of this program: one line says it all."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        The exit code.

    Example:
        >>> main(["verify", "/nowhere"])
        1
    """
    _replace_closed_streams()
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            startup.finish()
            arguments = _parser().parse_args(argv)
            code: int = arguments.run(arguments)
            sys.stdout.flush()
        except BrokenPipeError:
            # Whoever read the output has enough; what is left must not fail again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except KeyboardInterrupt:
            return _fail("interrupted", startup.EXIT_CODE)
        except _FAILURES as error:
            return _fail(str(error))
    return code


def _replace_closed_streams() -> None:
    """Have output go nowhere where a stream was closed ahead of the start."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - as long as it runs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lucid-gpu", description="Fused GPU optimizers, on CuPy or NumPy."
    )
    parser.add_argument("--version", action="version", version=lucid_gpu.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)
    about = commands.add_parser("info", help="what runs here, and what is missing")
    about.set_defaults(run=_info)
    for name, paths, unreadable, text in (
        ("inspect", ["PATH"], 1, "print what a checkpoint holds"),
        ("verify", ["PATH"], 1, "check every digest of a checkpoint, or of all those of a run"),
        ("diff", ["BEFORE", "AFTER"], 2, "say what changed between two checkpoints"),
    ):
        command = commands.add_parser(name, help=text, description=f"{text.capitalize()}.")
        for path in paths:
            command.add_argument(path, help="a checkpoint, or the directory of a run; or a URL")
        options = []
        if name == "inspect":
            command.add_argument("--json", dest="as_json", action="store_true", help="for programs")
            options.append("as_json")
        command.set_defaults(run=_reporter(getattr(report, name), [*paths, *options], unreadable))
    return parser


def _add_demo(commands: Any) -> None:
    text = "train a classifier of handwritten digits, with checkpoints"
    command = commands.add_parser("demo", help=text, description=f"{text.capitalize()}.")
    option = command.add_argument
    defaults = demo.DEFAULTS
    option("--device", type=_device, help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    option("--optimizer", choices=demo.OPTIMIZERS, help=f"(default: {defaults['optimizer']})")
    option(
        "--schedule", choices=demo.SCHEDULES, help=f"of the rate (default: {defaults['schedule']})"
    )
    option(
        "--dtype",
        choices=demo.DTYPES,
        help=f"what parameters are stored as (default: {defaults['dtype']})",
    )
    option("--epochs", type=_at_least(1), metavar="N", help=f"(default: {defaults['epochs']})")
    option(
        "--seed",
        type=_at_least(0),
        metavar="N",
        help=f"of the initial weights and the order of images (default: {defaults['seed']})",
    )
    option(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="where the run is saved after each epoch and on Ctrl-C (default: a new folder)",
    )
    option("--resume", action="store_true", help="continue the run in --checkpoint DIR")
    option("--plot", type=Path, metavar="FILE.png", help="draw the curves of loss and accuracy")
    command.set_defaults(run=_demo, usage_error=command.error)


def _demo(arguments: argparse.Namespace) -> int:
    if arguments.resume and arguments.checkpoint is None:
        arguments.usage_error("--resume needs --checkpoint DIR: the directory of the run")
    display.check_packages()
    if arguments.plot is not None:
        display.check_plot(arguments.plot)
    try:
        thread_count()
    except ValueError as error:
        return _fail(str(error))
    home = arguments.device or gpu.default()
    with _directory(arguments.checkpoint) as directory:
        run = demo.train(
            directory,
            home,
            arguments.optimizer,
            arguments.schedule,
            arguments.seed,
            arguments.epochs,
            arguments.resume,
            arguments.dtype,
        )
        if arguments.plot is not None and run.history:
            display.plot(run.history, arguments.plot)
        again = _resume_command(directory, home, arguments.plot)
        if run.interrupted_by is not None:
            message = f"stopped after {run.step} mini-batches, all saved; to continue:\n  {again}"
            return _fail(message, 128 + run.interrupted_by)
        print(
            f"test accuracy {run.history[-1]['test']:.1%} after epoch {len(run.history)} of "
            f"{_described(run.settings)}, seed {run.settings['seed']}, on {home}\n"
            f"parameters {run.digest()}, checkpoints in {directory}"
        )
        if arguments.checkpoint is None:
            longer = f"{again} --epochs {2 * len(run.history)}"
            ending = f", so that training can go on:\n  {longer}"
            if run.settings["schedule"] != demo.CONSTANT:
                ending = "; a schedule ends with its run"
            print(f"kept, for you to delete{ending}")
        sys.stdout.flush()
    return 0


def _described(settings: dict[str, Any]) -> str:
    schedule = settings["schedule"]
    rate = "" if schedule == demo.CONSTANT else f" with schedule {schedule}"
    return f"{settings['optimizer']}{rate}"


@contextlib.contextmanager
def _directory(given: Path | None) -> Iterator[Path]:
    """Yield the directory of a run; a new one does not outlive a failure, of which none is told."""
    if given is not None:
        yield given
        return
    made = Path(tempfile.mkdtemp(prefix="lucid-gpu-demo-"))
    try:
        yield made
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _resume_command(directory: Path, home: str, plot: Path | None) -> str:
    words = ["demo", "--resume", "--checkpoint", str(directory), "--device", home]
    if plot is not None:
        words += ["--plot", str(plot)]
    return f"{_program()} {shlex.join(words)}"


def _program() -> str:
    """Return how this program is called again: by its name where the shell finds it by that."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m lucid_gpu"
    found = shutil.which(called.name)
    if found is not None and called.exists() and Path(found).samefile(called):
        return called.name
    return shlex.quote(str(called))


def _info(_: argparse.Namespace) -> int:
    print(info.report())
    return 0


def _reporter(
    make: Callable[..., report.Report], names: Sequence[str], unreadable: int
) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        result = make(*(getattr(arguments, name) for name in names))
        if result.exit_code == unreadable:
            return _fail(result.text, unreadable)
        print(result.text)
        return result.exit_code

    return run


def _device(name: str) -> str:
    try:
        return gpu.resolve(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
        return int(text)

    return parse


def _show_warning(message: Warning | str, *_: Any) -> None:
    print(f"lucid-gpu: warning: {message}", file=sys.stderr)


def _fail(message: str, code: int = 1) -> int:
    print(f"lucid-gpu: {message}", file=sys.stderr)
    return code
