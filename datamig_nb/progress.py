"""One line that tells how far something is, where somebody is looking on."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any


@contextmanager
def live_line() -> Generator[Callable[[str], None]]:
    """What takes a line and shows it in place of the one before; nothing is left at the end.

    Nothing is shown where nobody is looking on: outside a terminal, and in a notebook that a
    program runs, whose outputs are compared.
    """
    if not _is_watched():
        yield lambda _: None
        return
    width = shutil.get_terminal_size().columns - 1

    def show(line: str) -> None:
        sys.stdout.write(f"\r{line[:width]:{width}}")
        sys.stdout.flush()

    try:
        yield show
    finally:
        show("")
        sys.stdout.write("\r")


def _is_watched() -> bool:
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    kernel = getattr(shell, "kernel", None)
    if kernel is not None:  # whoever can be asked for input is looking on; a program cannot
        return bool(getattr(kernel, "_allow_stdin", False))
    return sys.stdout.isatty()
