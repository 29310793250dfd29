"""PDFs: text with its pages from all kinds of files, and one kind of error for those that cannot be read."""

from __future__ import annotations

import io
import logging
import time
from pathlib import Path
from typing import Any

import pypdf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pdfs import column, write_pdf
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from clara.io.corpus.pdf import read_pdf
from clara.io.corpus.rawtext import Limits
from clara.io.errors import ClaraError

PROSE = [
    "Lamps burn for as long as somebody fills them with oil, and the oil of",
    "Vessany is known to burn longer than that of any other town on the gorge.",
    "Nobody has found out why that is so, though many people have tried.",
]


def refusal(path: Path, **limits: Any) -> str:
    """Return the message with which a PDF is refused; it names the file."""
    with pytest.raises(ClaraError) as caught:
        read_pdf(path, Limits(**limits))
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


def page_of(text: str, starts: tuple[int, ...], number: int) -> str:
    """Return the text of a page, counted from 1."""
    return text[starts[number - 1] : [*starts, len(text)][number]]


def test_lines_become_paragraphs_and_pages_are_known(tmp_path: Path) -> None:
    pages = [column(["!On Lamps", "", *PROSE, "", *PROSE]), column(["A short page."]), [], column(["The last page."])]
    document, notes = read_pdf(write_pdf(tmp_path / "a.pdf", pages))
    prose = " ".join(PROSE)
    assert document.text == f"On Lamps\n\n{prose}\n\n{prose}\n\nA short page.\n\nThe last page."
    assert [page_of(document.text, document.page_starts, n).strip() for n in (2, 3, 4)] == [
        "A short page.",
        "",
        "The last page.",
    ]
    assert (document.title, document.source, notes) == ("On Lamps", str(tmp_path / "a.pdf"), [])


def test_a_paragraph_goes_on_over_the_end_of_a_page(tmp_path: Path) -> None:
    pages = [column([*PROSE, "Yet one morning it was found that"]), column(["the oil had gone.", "", "So it was."])]
    document, _ = read_pdf(write_pdf(tmp_path / "a.pdf", pages))
    assert "it was found that the oil had gone.\n\nSo it was." in document.text
    assert page_of(document.text, document.page_starts, 2).startswith("the oil")


def test_the_left_column_comes_before_the_right_one(tmp_path: Path) -> None:
    left, right = (
        ["The left column tells", "of lamps and goes on", "to the right, where"],
        ["doors are told of in", "as many words again."],
    )
    document, _ = read_pdf(write_pdf(tmp_path / "a.pdf", [column(left) + column(right, x=320)]))
    assert document.text == " ".join([*left, *right])


def test_hyphens_at_the_ends_of_lines_are_repaired(tmp_path: Path) -> None:
    lines = [
        "Nobody could explain the extraordi-",
        "nary light, which the well-known Anglo-",
        "Saxon lamps gave, and which is a well-",
        "known thing in pre-",
        "and post-war towns, as is the explana-",
        "tion of it.",
    ]
    document, _ = read_pdf(write_pdf(tmp_path / "a.pdf", [column(lines)]))
    assert " ".join(document.text.split()) == (
        "Nobody could explain the extraordinary light, which the well-known Anglo-Saxon lamps gave, and which is a "
        "well-known thing in pre- and post-war towns, as is the explanation of it."
    )


def test_ligatures_are_letters_again(tmp_path: Path) -> None:
    fonts: Any = pytest.importorskip("reportlab.pdfbase.ttfonts")
    metrics: Any = pytest.importorskip("reportlab.pdfbase.pdfmetrics")
    metrics.registerFont(fonts.TTFont("Vera", "Vera.ttf"))  # reportlab's own; it has ligatures
    path = write_pdf(tmp_path / "a.pdf", [column(["She \ufb01nds \ufb02our."])], font="Vera")
    assert read_pdf(path)[0].text == "She finds flour."


@pytest.mark.parametrize("count", [2, 3, 8])
def test_heads_feet_and_page_numbers_that_repeat_are_dropped(count: int, tmp_path: Path) -> None:
    def page(n: int) -> list[Any]:
        body = column([f"Page text {'abcdefgh'[n]} begins here.", f"It speaks of lamp {'abcdefgh'[n]}."], top=700)
        return [
            (72, 800, f"Annals of Lamps, vol. 3   {n + 17}"),
            *body,
            (280, 40, f"- {n + 1} -"),
            (72, 30, "Lamp Press"),
        ]

    document, _ = read_pdf(write_pdf(tmp_path / "a.pdf", [page(n) for n in range(count)]))
    paragraphs = document.text.split("\n\n")
    assert paragraphs == [f"Page text {c} begins here.\nIt speaks of lamp {c}." for c in "abcdefgh"[:count]] or (
        " ".join(document.text.split())
        == " ".join(f"Page text {c} begins here. It speaks of lamp {c}." for c in "abcdefgh"[:count])
    )


def test_numbers_and_first_lines_that_do_not_go_with_the_pages_stay(tmp_path: Path) -> None:
    numbers = [12, 5, 40, 7, 1984, 3]
    pages = [column([f"Lamp {'abcdef'[i]} stands here.", str(n)]) for i, n in enumerate(numbers)]
    document, _ = read_pdf(write_pdf(tmp_path / "a.pdf", pages))
    assert [word for word in document.text.split() if word.isdigit()] == list(map(str, numbers))


@pytest.mark.parametrize(
    ("given_title", "found"),
    [
        ("A Book of Lamps", "A Book of Lamps"),
        ("Microsoft Word - Lamps", "Lamps"),
        ("untitled", "On Lamps"),
        ("lamp.dvi", "On Lamps"),
    ],
)
def test_the_title_is_that_of_the_file_unless_it_says_nothing(given_title: str, found: str, tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", [column(["Lamp Press, 1984", "", "!On Lamps", "", *PROSE])], title=given_title)
    assert read_pdf(path)[0].title == found


def test_a_file_that_opens_without_a_password_is_read_and_another_is_refused(tmp_path: Path) -> None:
    opened = write_pdf(tmp_path / "open.pdf", [column(PROSE)], password="")
    assert read_pdf(opened)[0].text == " ".join(PROSE)
    locked = write_pdf(tmp_path / "locked.pdf", [column(PROSE)], password="secret")
    assert "encrypted with a password" in refusal(locked)


def test_a_scan_is_refused_with_advice(tmp_path: Path) -> None:
    image: Any = pytest.importorskip("PIL.Image")
    canvas_of: Any = pytest.importorskip("reportlab.pdfgen.canvas")
    image.new("RGB", (40, 40), "white").save(tmp_path / "scan.png")
    canvas = canvas_of.Canvas(str(tmp_path / "scan.pdf"))
    for _ in range(2):
        canvas.drawImage(str(tmp_path / "scan.png"), 0, 0, 500, 700)
        canvas.showPage()
    canvas.save()
    assert refusal(tmp_path / "scan.pdf").startswith("no text in its 2 pages; a scan needs OCR first")
    assert "no text in its 1 pages" in refusal(write_pdf(tmp_path / "empty.pdf", [[]]))


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_pages": 2}, "3 pages, more than 2; raise --max-pages"),
        ({"max_characters": 100}, "more than 100 characters; raise --max-characters"),
        ({"max_megabytes": 0.001}, "larger than 0.001 MB; raise --max-megabytes"),
    ],
)
def test_what_is_too_large_is_refused(limits: dict[str, float], said: str, tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", [column(PROSE)] * 3)
    assert said in refusal(path, **limits)
    assert read_pdf(path, Limits(max_pages=3))[0].text


def test_a_page_that_takes_too_long_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_pdf(tmp_path / "a.pdf", [column(PROSE), column(["slow"]), column(["The end."])])
    fast = pypdf.PageObject.extract_text

    def slow(page: Any, **how: Any) -> str:
        text = fast(page)
        while "slow" in text:
            pass
        return fast(page, **how)

    monkeypatch.setattr(pypdf.PageObject, "extract_text", slow)
    document, notes = read_pdf(path, Limits(page_seconds=0.3))
    assert notes == ["page 2 left out: it takes more than 0.3 s"]
    assert page_of(document.text, document.page_starts, 3).strip() == "The end."
    again = write_pdf(tmp_path / "b.pdf", [column(["slow"])] * 5)
    assert "3 pages take more than 0.1 s each; raise --page-seconds" in refusal(again, page_seconds=0.1)


@pytest.mark.parametrize(
    "error", [RecursionError(), MemoryError(), KeyError("/Font"), AssertionError(), ValueError("x")]
)
def test_a_page_that_ends_pypdf_is_left_out(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_pdf(tmp_path / "a.pdf", [column(PROSE)])

    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(pypdf.PageObject, "extract_text", fail)
    assert f"(page 1 left out: damaged ({type(error).__name__}" in refusal(path)


def test_forms_that_contain_themselves_end(tmp_path: Path) -> None:
    writer = pypdf.PdfWriter(clone_from=write_pdf(tmp_path / "a.pdf", [column(PROSE)]))
    form = DecodedStreamObject()
    form.set_data(b"/F Do /F Do /F Do")
    form.update({NameObject("/Type"): NameObject("/XObject"), NameObject("/Subtype"): NameObject("/Form")})
    held = writer._add_object(form)
    resources = DictionaryObject({NameObject("/XObject"): DictionaryObject({NameObject("/F"): held})})
    form[NameObject("/Resources")] = resources
    page = writer.pages[0]
    page[NameObject("/Resources")][NameObject("/XObject")] = resources["/XObject"]  # type: ignore[index]
    contents = DecodedStreamObject()
    contents.set_data(b"BT /F1 11 Tf 72 700 Td (Lamps burn.) Tj ET /F Do")
    page[NameObject("/Contents")] = writer._add_object(contents)
    with (tmp_path / "b.pdf").open("wb") as out:
        writer.write(out)
    begun = time.perf_counter()
    try:
        assert "Lamps burn." in read_pdf(tmp_path / "b.pdf", Limits(page_seconds=2))[0].text
    except ClaraError as error:
        assert str(tmp_path / "b.pdf") in str(error)
    assert time.perf_counter() - begun < 10


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"%PDF-1.7",
        b"garbage" * 100,
        b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 1 0 R>>endobj\ntrailer<</Root 1 0 R>>",
    ],
)
def test_what_is_no_pdf_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(content)
    assert refusal(tmp_path / "a.pdf")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a.pdf") == "does not exist; wanted a document"
    assert refusal(tmp_path) == "not a plain file; wanted a document"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a small PDF of two pages."""
    path = write_pdf(tmp_path_factory.mktemp("whole") / "a.pdf", [column(PROSE), column(["The end."])], title="Lamps")
    assert len(path.read_bytes()) < 10_000
    return path.read_bytes()


@settings(max_examples=120)
@given(data=st.data())
def test_damage_gives_text_or_a_refusal_and_no_message_of_pypdf(
    data: st.DataObject, whole: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = bytearray(whole[: data.draw(st.integers(1, len(whole)))] if data.draw(st.booleans()) else whole)
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=12)):
        raw[place] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.getbasetemp() / "damaged.pdf"
    path.write_bytes(raw)
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    logging.getLogger().addHandler(handler)
    try:
        document, notes = read_pdf(path, Limits(page_seconds=5))
        assert document.text.strip() and all(note.startswith("page ") for note in notes)
        assert list(document.page_starts) == sorted(document.page_starts)
    except ClaraError as error:
        assert str(error).startswith(f"{path}: ")
    finally:
        logging.getLogger().removeHandler(handler)
    assert heard.getvalue() == ""
