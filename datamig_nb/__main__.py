"""The command line: demo and verify; work; runs, pause, resume and cancel; clones."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from datamig_nb.clones import clones, drop_clones
from datamig_nb.database import connect
from datamig_nb.errors import DatamigError, MissingExtraError
from datamig_nb.vetted import verify
from datamig_nb.watch import cancel, pause, resume, runs
from datamig_nb.workers import work

_NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


_STEER = {
    "pause": (pause, "let a running revision rest after the batch under way"),
    "resume": (resume, "let a paused revision go on"),
    "cancel": (cancel, "end a revision after the batch under way"),
}


def main(words: Sequence[str] | None = None) -> int:
    """Carry out a command; give the exit code: 0 done, 1 refused or failed, 2 not understood."""
    given = _parser().parse_args(words)
    try:
        if given.command == "demo":
            return _demo()
        if given.command == "verify":
            return _verify(given.files)
        db = connect(given.url)
        if given.command == "clones":
            print(drop_clones(db) if given.drop else clones(db))
        elif given.command == "runs":
            print(runs(db))
        elif given.command == "work":
            print(work(db, given.revision, progress=lambda job: print(job.progress, flush=True)))
        else:
            print(_STEER[given.command][0](db, given.revision, given.step))
    except DatamigError as error:
        print(f"datamig-nb: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="datamig-nb", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("demo", help="run the template notebooks from end to end")
    check = commands.add_parser("verify", help="fail if a vetted revision file was edited")
    check.add_argument("files", nargs="+", type=Path)
    worker = commands.add_parser("work", help="work off the jobs that revisions left to workers")
    worker.add_argument("revision", type=_no_url, nargs="?", help="only the job of this one")
    steered = [commands.add_parser(word, help=what) for word, (_, what) in _STEER.items()]
    for command in steered:
        command.add_argument("revision", type=_no_url)
        command.add_argument("--step", type=_no_url, help="only this step, as runs shows it")
    shown = commands.add_parser("runs", help="show how far the revisions are")
    copies = commands.add_parser("clones", help="list the copies that rehearsals made")
    copies.add_argument("--drop", action="store_true", help="drop those that nobody is using")
    for command in (shown, copies, worker, *steered):
        command.add_argument("--url", help="the database; else DATABASE_URL, which nobody sees")
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what was not understood; where it is a URL, without its password."""
        super().error(re.sub("://.*@", "://***@", message, flags=re.DOTALL))


def _no_url(word: str) -> str:
    if "://" in word:
        raise argparse.ArgumentTypeError("this is a URL; give it after --url")
    return word


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
