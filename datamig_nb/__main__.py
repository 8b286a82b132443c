"""The command line: ``datamig-nb demo`` and ``datamig-nb verify FILE…``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from datamig_nb.errors import DatamigError, MissingExtraError
from datamig_nb.export import verify

_NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def main(words: Sequence[str] | None = None) -> int:
    """Carry out a command; give the exit code: 0 done, 1 refused or failed, 2 not understood."""
    parser = argparse.ArgumentParser(prog="datamig-nb", description=__doc__)
    commands = parser.add_subparsers(required=True)
    demo = commands.add_parser("demo", help="run the template notebooks from end to end")
    demo.set_defaults(files=None)
    check = commands.add_parser("verify", help="fail if a vetted revision file was edited")
    check.add_argument("files", nargs="+", type=Path)
    files: list[Path] | None = parser.parse_args(words).files
    try:
        return _demo() if files is None else _verify(files)
    except DatamigError as error:
        print(f"datamig-nb: {error}", file=sys.stderr)
        return 1


def _verify(files: Sequence[Path]) -> int:
    failed = 0
    for file in files:
        try:
            verify(file)
        except DatamigError as error:
            failed += 1
            print(f"{file}: {error}", file=sys.stderr)
        else:
            print(f"{file}: as it was vetted")
    return 1 if failed else 0


def _demo() -> int:
    """Run the four notebooks in order against the sample database; say where things lie."""
    try:
        import papermill  # takes seconds, and only this command needs it
    except ImportError:
        raise MissingExtraError("the demo", "papermill", "notebooks") from None
    notebooks = sorted(_NOTEBOOKS.glob("[1-4]_*.ipynb"))
    if not notebooks:
        print("datamig-nb: the notebooks are in the repository, clone it", file=sys.stderr)
        return 1
    work = _NOTEBOOKS / "work"
    work.mkdir(exist_ok=True)
    for number, notebook in enumerate(notebooks, 1):
        print(f"[{number}/{len(notebooks)}] {notebook.name}", flush=True)
        papermill.execute_notebook(
            notebook,
            work / notebook.name,
            cwd=_NOTEBOOKS,
            kernel_name="python3",
            progress_bar=sys.stderr.isatty(),
            extra_arguments=["--log-level=ERROR"],  # else a kernel warns of its own transport
        )
    print("\nThe exported revisions, run by alembic upgrade head:")
    for revision in sorted((work / "alembic" / "versions").glob("*.py")):
        print(f"  {revision}")
    print(f"The report:\n  {work / 'report.html'}")
    print(f"The notebooks with their outputs:\n  {work}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
