"""Ctrl-C while the command is still importing: it ends at once, and without a traceback.

Python imports the package before it finds the command in it, so :mod:`lucid_gpu` imports this
module ahead of all that takes time. In any other program it does nothing.
"""

import contextlib
import os
import signal
import sys
from typing import Any

EXIT_CODE = 128 + signal.SIGINT


def is_command(arguments: list[str], original: list[str]) -> bool:
    """Say whether this process is the ``lucid-gpu`` command.

    Args:
        arguments: ``sys.argv``, in which ``-m`` stands for a module that is still to be found.
        original: ``sys.orig_argv``.

    Example:
        >>> is_command(["/usr/bin/lucid-gpu", "info"], ["python", "/usr/bin/lucid-gpu", "info"])
        True
        >>> is_command(["-m", "info"], ["python", "-m", "lucid_gpu", "info"])
        True
        >>> is_command(["train.py"], ["python", "train.py"])
        False
    """
    if arguments[:1] == ["-m"]:
        return original[-len(arguments)].removeprefix("-m") == "lucid_gpu"
    name = os.path.basename(arguments[0]) if arguments else ""  # noqa: PTH119 - pathlib takes time
    return os.path.splitext(name)[0] == "lucid-gpu"  # noqa: PTH122


def finish() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(*_: Any) -> None:
    # No exception: modules that are half imported turn one into errors of their own.
    with contextlib.suppress(OSError):
        os.write(2, b"lucid-gpu: interrupted\n")
    os._exit(EXIT_CODE)


if is_command(sys.argv, sys.orig_argv) and (
    signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, _end)
