"""Writes a report that people read: one HTML page that needs no network, and the same as Markdown.

Run `python -m clara.shell.report FOLDER…`, with folders of evaluations and of training runs. Several evaluations show
how answers depend on the compression rate and cost on the number of documents.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from clara.io.errors import ClaraError
from clara.io.evaluation.evaluations import Evaluation, Run, read_folder
from clara.io.files import reason, write_atomic
from clara.io.report.document import Report, pictures
from clara.io.report.markdown import markdown
from clara.io.report.page import page
from clara.io.report.png import can_draw, write_png
from clara.io.report.svg import write_svg
from clara.shell.command import guarded
from clara.shell.reporting.chapters import TITLE, report_of
from clara.shell.reporting.maps import map_sections
from clara.shell.reporting.states import can_embed

MOST = 1_000_000
"""Documents of a map, and questions that are shown."""

EXTRA = 'pip install "clara-mlx[report]"'


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 done, 1 a message to the user."""
    arguments = parser().parse_args(argv)
    return guarded(lambda: run(arguments))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    found = argparse.ArgumentParser(
        prog="python -m clara.shell.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("folders", nargs="+", metavar="FOLDER", help="what evaluate or train has written")
    add(
        "--out", default="report.html", metavar="FILE", help="the page; Markdown and figures go beside it [%(default)s]"
    )
    add("--questions", type=int, default=6, metavar="N", help="questions on which systems disagree most [%(default)s]")
    add("--map", type=int, default=0, metavar="N", help="map memory and document states of N documents; loads the base")
    add("--map-data", default="", metavar="DATA", help="documents of the map [those of the evaluation or run]")
    return found


def run(arguments: argparse.Namespace) -> int:
    """Do what the arguments say; return the exit status.

    Raises ClaraError, with nothing written, where something is missing or damaged.
    """
    out = Path(arguments.out).expanduser()
    check(arguments, out)
    found = [each for name in arguments.folders for each in read_folder(Path(name).expanduser())]
    folders = {each.path.resolve(): each for each in found}
    evaluations = [each for each in folders.values() if isinstance(each, Evaluation)]
    runs = [each for each in folders.values() if isinstance(each, Run)]
    maps = map_sections(evaluations, runs, arguments.map, arguments.map_data) if arguments.map else ()
    write(out, report_of(evaluations, runs, maps, arguments.questions))
    missing = [what for what, there in (("PNG", can_draw()), ("t-SNE", can_embed() or not arguments.map)) if not there]
    if missing:
        print(f"note      without {' and '.join(missing)}: {EXTRA} adds that")
    return 0


def check(arguments: argparse.Namespace, out: Path) -> None:
    """Raise ClaraError where an argument cannot be meant."""
    if out.suffix not in (".html", ".htm") or out.is_dir():
        raise ClaraError(f"--out {arguments.out}: wanted the name of a file that ends in .html")
    for name in ("questions", "map"):
        if not 0 <= (value := getattr(arguments, name)) <= MOST:
            raise ClaraError(f"--{name} {value}: wanted 0 to {MOST:,}")
    beside = out.with_suffix(".md")
    if beside.is_file() and not beside.read_bytes().startswith(f"# {TITLE}".encode()):
        raise ClaraError(f"{beside}: is no report, and would be overwritten; give another --out")


def write(out: Path, report: Report) -> None:
    """Write the figures, the Markdown and the page. Raises ClaraError where that cannot be."""
    folder = out.with_name(f"{out.stem}_figures")
    ending, draw = ("png", write_png) if can_draw() else ("svg", write_svg)
    drawn = list(pictures(report.sections))
    try:
        (folder if drawn else out.parent).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClaraError(f"{folder}: cannot be made ({reason(error)}); give another --out") from error
    for each in drawn:
        draw(folder / f"{each.name}.{ending}", each.figure)
    images = {each.name: quote(f"{folder.name}/{each.name}.{ending}") for each in drawn}
    write_atomic(out.with_suffix(".md"), markdown(report, images).encode())
    write_atomic(out, page(report).encode())
    print(f"written   {out} and {out.with_suffix('.md').name}; {len(drawn)} figures in {folder.name}")


if __name__ == "__main__":
    sys.exit(main())
