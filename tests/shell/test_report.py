"""The reporting command: every number on page and in Markdown is that of the evaluation, and no text is markup."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from evaluations import NASTY, SYSTEMS, write_evaluation, write_run
from runs import Run, command_of

from clara.io.evaluation.labels import decimals, label
from clara.io.evaluation.predictions import Scores, predictions_path, read_scores, write_scores
from clara.io.report.png import can_draw
from clara.shell import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Tables(HTMLParser):
    """Gathers the tables of a page: rows of the texts of their cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.captions: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
            self.inside = "cell"
        elif tag == "caption":
            self.captions.append("")
            self.inside = "caption"

    def handle_endtag(self, tag: str) -> None:
        if tag in ("th", "td", "caption"):
            self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "cell":
            self.tables[-1][-1][-1] += data
        elif self.inside == "caption":
            self.captions[-1] += data


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return the command as a function of its arguments: (exit status, output, errors)."""
    return command_of(report.main, capsys)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with evaluations at three rates, a run, and their report."""
    folder = tmp_path_factory.mktemp("place")
    rates = [write_evaluation(folder / f"rate-{rate}", rate) for rate in (4, 16, 64)]
    run = write_run(folder / "run", stage="end_to_end")
    assert report.main([*map(str, rates), str(run), "--out", str(folder / "out" / "report.html")]) == 0
    return folder


def page_of(place: Path) -> str:
    """Return the page of the report."""
    return (place / "out" / "report.html").read_text("utf-8")


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Return the tables of a Markdown text: rows of the texts of their cells, without what escapes them."""
    blocks = [block.strip().split("\n") for block in text.split("\n\n") if block.startswith("| ")]
    return [[cells(line) for line in (head, *rows)] for head, _, *rows in blocks]


def cells(line: str) -> list[str]:
    """Return the texts of a row's cells, without what escapes them and without brackets."""
    return [bare(re.sub(r"\\(.)", r"\1", cell)) for cell in re.split(r"(?<!\\) \| ", line[2:-2])]


def bare(text: str) -> str:
    """Return a text on one line, without brackets."""
    return " ".join(re.sub("[()]", "", text).split())


def test_every_number_of_the_tables_is_that_of_the_scores(place: Path) -> None:
    found = Tables(page_of(place))
    answers = [t for t, name in zip(found.tables, found.captions, strict=True) if name.startswith("Answers, best over")]
    assert len(answers) == 3
    for table, rate in zip(answers, (4, 16, 64), strict=True):
        scores = read_scores(place / f"rate-{rate}")
        rows = {row[0]: dict(zip(table[0], row, strict=True)) for row in table[1:]}
        assert list(rows) == list(SYSTEMS)
        for each in scores.systems:
            for metric in ("exact_match", "cover_exact_match", "token_f1"):
                mean, low, high = (decimals(getattr(each.means[metric], part)) for part in ("mean", "low", "high"))
                assert rows[each.system][label(metric)].split() == [mean, low, "to", high]
            assert rows[each.system]["questions"] == "12"


def test_the_markdown_has_the_same_tables_and_figures(place: Path) -> None:
    text = (place / "out" / "report.md").read_text("utf-8")
    page = [[[bare(cell) for cell in row] for row in table] for table in Tables(page_of(place)).tables]
    assert markdown_tables(text) == page
    assert text.count("![") == page_of(place).count("<svg")


def test_figures_have_as_many_marks_as_data(place: Path) -> None:
    drawn = re.findall(r"<svg.*?</svg>", page_of(place), re.DOTALL)
    rates = [svg for svg in drawn if 'aria-label="cover-EM against compression' in svg]
    bars = [svg for svg in drawn if 'aria-label="cover-EM. mean' in svg]
    losses = [svg for svg in drawn if 'aria-label="Loss' in svg]
    assert [svg.count(' mark"') for svg in rates] == [3 * len(SYSTEMS)]
    assert [svg.count(' mark"') for svg in bars] == [len(SYSTEMS)] * 3
    assert [svg.count(' mark"') for svg in losses] == [6 + 3 + 3]


def test_nothing_of_a_prediction_becomes_markup(place: Path) -> None:
    text = page_of(place)
    assert "<script" not in text and "<b>" not in text and "&lt;script&gt;alert(&quot;x&quot;)" in text
    shown = {cell for table in Tables(text).tables for row in table for cell in row}
    assert NASTY.replace("\x00", "\ufffd") in {cell.strip() for cell in shown}
    assert not re.search(r"(?<!\\)<", (place / "out" / "report.md").read_text("utf-8"))


def test_the_page_asks_for_nothing(place: Path) -> None:
    found = Tables(page_of(place))
    assert [a for a in found.attributes if a[1] in ("src", "href") and not a[2].startswith("#")] == []
    assert not re.search(r"url\(|@import|<link|<script|<iframe", page_of(place))


def test_figures_are_files_too_and_the_markdown_finds_them(place: Path) -> None:
    ending = "png" if can_draw() else "svg"
    text = (place / "out" / "report.md").read_text("utf-8")
    images = re.findall(r"\]\((report_figures/[^)]+)\)", text)
    assert sorted(images) == sorted(f"report_figures/{f.name}" for f in (place / "out" / "report_figures").iterdir())
    assert all(name.endswith(f".{ending}") for name in images) and len(images) > 10


def test_the_same_folders_give_the_same_bytes(place: Path, command: Run, tmp_path: Path) -> None:
    folders = [place / name for name in ("rate-4", "rate-16", "rate-64", "run")]
    status, out, _ = command(*folders, place / "rate-4", "--out", tmp_path / "report.html")
    assert status == 0 and f"written   {tmp_path / 'report.html'} and report.md" in out
    for name in ("report.html", "report.md"):
        assert (tmp_path / name).read_bytes() == (place / "out" / name).read_bytes()


def test_without_matplotlib_figures_are_svg_and_a_line_says_so(
    command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(report, "can_draw", lambda: False)
    status, out, _ = command(write_run(tmp_path / "run"), "--out", tmp_path / "my report.html")
    assert status == 0 and 'note      without PNG: pip install "clara-mlx[report]" adds that' in out
    assert {f.name for f in (tmp_path / "my report_figures").iterdir()} == {
        "training-1-loss.svg",
        "training-1-recall.svg",
    }
    assert "](my%20report_figures/training-1-loss.svg)" in (tmp_path / "my report.md").read_text()


def test_so_many_questions_as_are_wanted(command: Run, tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "dev")
    for count in (0, 2):
        assert command(folder, "--questions", count, "--out", tmp_path / "r.html")[0] == 0
        assert (tmp_path / "r.html").read_text("utf-8").count("<p>Gold answers: ") == count


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--out", "report.md"], "--out report.md: wanted the name of a file that ends in .html"),
        (["--questions", "-1"], "--questions -1: wanted 0 to 1,000,000"),
        (["--map", "-2"], "--map -2: wanted 0 to 1,000,000"),
        (["--map", "4"], "--map: none of the folders names a checkpoint"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(
    argv: list[str], message: str, command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = write_evaluation(tmp_path / "dev", count=2)
    monkeypatch.chdir(tmp_path)
    status, _, err = command(folder, *argv)
    assert status == 1 and f"error: {message}" in err
    assert [entry.name for entry in tmp_path.iterdir()] == ["dev"]


def test_a_folder_that_cannot_be_reported_is_named_and_nothing_is_written(command: Run, tmp_path: Path) -> None:
    whole = write_evaluation(tmp_path / "whole", count=3)
    broken = write_evaluation(tmp_path / "broken", count=3)
    predictions_path(broken, "text").write_bytes(predictions_path(broken, "memory").read_bytes()[:-200])
    status, _, err = command(whole, broken, "--out", tmp_path / "report.html")
    assert status == 1 and f"error: {predictions_path(broken, 'text')}: 2 predictions, but scores.json counts 3" in err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["broken", "whole"]


def test_a_place_that_cannot_be_written_is_named(command: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, _, err = command(write_run(tmp_path / "run"), "--out", tmp_path / "file" / "report.html")
    assert status == 1 and "cannot be made" in err and "give another --out" in err


def test_an_evaluation_without_any_system_is_still_a_report(command: Run, tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    write_scores(tmp_path / "dev", Scores(systems=[]))
    assert command(tmp_path / "dev", "--out", tmp_path / "r.html")[0] == 0
    assert "dev: no answer was scored." in (tmp_path / "r.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_is_no_wider_than_the_screen(width: int, place: Path, tmp_path: Path) -> None:
    ask = "document.title = [innerWidth, d.scrollWidth - d.clientWidth].join('/')"
    page = page_of(place).replace("<details>", "<details open>")
    page = page.replace("</body>", f"<script>const d = document.documentElement; {ask}</script></body>")
    (tmp_path / "page.html").write_text(page, "utf-8")
    frame = f'<iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe>'
    tell = "onload = () => { document.title = document.querySelector('iframe').contentDocument.title }"
    (tmp_path / "frame.html").write_text(f"<title></title><body>{frame}<script>{tell}</script></body>", "utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    call = [str(CHROMIUM), *flags, f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "frame.html").as_uri()]
    done = subprocess.run(call, capture_output=True, timeout=120, check=True)
    assert f"<title>{width}/0</title>" in done.stdout.decode()


def test_markdown_that_is_no_report_is_not_overwritten(command: Run, tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "dev", count=2)
    (tmp_path / "README.md").write_text("# Mine\n")
    status, _, err = command(folder, "--out", tmp_path / "README.html")
    assert status == 1 and "README.md: is no report, and would be overwritten" in err
    assert (tmp_path / "README.md").read_text() == "# Mine\n" and not (tmp_path / "README.html").exists()
    for _ in range(2):
        assert command(folder, "--out", tmp_path / "own.html")[0] == 0
