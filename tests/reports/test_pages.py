import html.parser

import pytest
from PIL import Image

from d2vpr_hf.evaluation.table import Table
from d2vpr_hf.reports.pages import Entry, gallery_page
from d2vpr_hf.reports.pictures import Match

GREY = Image.new("RGB", (40, 30), (128, 128, 128))


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text, of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] != "style":
            self.words.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def entry(name="q.jpg", right=True, condition="", matches=2) -> Entry:
    candidates = [Match(GREY, f"db{n}.jpg", 0.9 - 0.1 * n, 5.0 + n, right=right) for n in range(matches)]
    return Entry(GREY, name, "47.37000, 8.54000", candidates, right, condition)


def test_the_page_holds_all_it_shows():
    page = gallery_page("Title", [entry(), entry(right=False)], lead="A lead.", notes=["A note."])
    parsed = Page(page)
    images = parsed.all("img")
    assert len(images) == 6
    assert all(image["src"].startswith("data:image/jpeg;base64,") and len(image["src"]) > 200 for image in images)
    assert all(image["alt"] for image in images)
    assert not parsed.all("script")
    assert not parsed.all("link")
    assert "http" not in page
    assert "url(" not in page
    for words in ("Title", "A lead.", "A note.", "score 0.900 · 5.0 m away", "db1.jpg", "47.37000, 8.54000"):
        assert words in parsed.text


def test_names_are_escaped():
    nasty = '"><script>alert(1)</script>.jpg'
    matches = [Match(GREY, nasty, 0.5)]
    page = gallery_page(nasty, [Entry(GREY, nasty, nasty, matches, None, nasty)], lead=nasty, notes=[nasty])
    parsed = Page(page)
    assert not parsed.all("script")
    assert parsed.text.count(nasty) == 8  # in title and heading, lead, note, group, answer, query and match
    assert parsed.all("img")[1]["alt"] == f"match 1: {nasty}"


def test_right_and_wrong_are_marked_and_the_switch_counts_the_wrong():
    parsed = Page(gallery_page("t", [entry(), entry(right=False), entry(right=False), entry(right=None)]))
    assert [each["class"].split() for each in parsed.all("article")] == [
        ["entry", "right"],
        ["entry", "wrong"],
        ["entry", "wrong"],
        ["entry"],
    ]
    assert "show the 2 wrong answers only (of 4)" in parsed.text
    assert [each["type"] for each in parsed.all("input")] == ["checkbox"]


@pytest.mark.parametrize("right", [True, False, None])
def test_no_switch_where_it_would_change_nothing(right):
    assert not Page(gallery_page("t", [entry(right=right)])).all("input")


def test_entries_are_grouped_by_condition():
    page = Page(
        gallery_page(
            "t", [entry("one", condition="night"), entry("two", condition="day"), entry("three", condition="night")]
        )
    )
    assert page.text.index("night") < page.text.index("three") < page.text.index("day") < page.text.index("two")
    assert len(page.all("section")) == 2


def test_a_photo_that_is_gone_is_said_to_be(tmp_path):
    page = Page(gallery_page("t", [Entry(tmp_path / "gone.jpg", "gone.jpg", "an answer")]))
    assert not page.all("img")
    assert "can't be opened any more" in page.text


def test_a_table_is_the_same_in_terminal_and_page():
    table = Table(["condition", "recall@1"], [["day", "91.7 %"], ["night <", "8.3 %"]], "Recall within 25 m")
    assert table.text().splitlines() == [
        "Recall within 25 m",
        "condition  recall@1",
        "---------  --------",
        "day          91.7 %",
        "night <       8.3 %",
    ]
    page = Page(gallery_page("t", [], tables=[table]))
    assert "condition recall@1 day 91.7 % night < 8.3 %" in page.text
    assert len(page.all("td")) == 4


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"rows\[1\] has 1 cells .* header has 2"):
        Table(["a", "b"], [["1", "2"], ["3"]])
