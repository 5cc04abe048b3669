"""The pages are what the records say."""

import runpy
from pathlib import Path

from d2vpr_hf.protocols.records import PROTOCOLS, find_record

DOCS = Path(__file__).parents[2] / "docs" / "protocols"
SCRIPT = runpy.run_path(str(DOCS.parent / "make_protocol_pages.py"))
pages, write_pages = SCRIPT["pages"], SCRIPT["write_pages"]


def test_the_pages_in_docs_are_up_to_date():
    written = {path.name: path.read_text(encoding="utf-8") for path in DOCS.glob("*.md")}
    assert written == pages(), "run: python docs/make_protocol_pages.py"
    assert len(written) == len(PROTOCOLS) + 1


def test_a_page_holds_what_people_ask_for():
    page = pages()["msls-val-740.md"]
    for part in ("`msls-val-740`", "18,871: counted in", "740: counted in", "Left out | 7: ", "83.4 instead of 88.2"):
        assert part in page
    assert "(cited)" not in page.split("## Notes")[0]
    assert "1,231 (cited): commonly cited, not verified" in pages()["amstertime.md"]
    for record in PROTOCOLS:
        assert f"[{record.id}]({record.id}.md)" in pages()["README.md"]


def test_every_count_has_a_source_and_cited_ones_say_so():
    for record in PROTOCOLS:
        for count in (record.database, record.queries, record.dropped):
            if count is not None:
                assert count.verified == ("counted in" in count.source or "read in" in count.source), record.id


def test_pages_of_protocols_that_are_no_more_are_removed(tmp_path):
    write_pages(tmp_path)
    old = tmp_path / "old-protocol.md"
    old.write_text(pages()["sped.md"])
    own = tmp_path / "own.md"
    own.write_text("# Mine")
    write_pages(tmp_path)
    assert not old.exists()
    assert own.exists()
    assert find_record("sped").title in (tmp_path / "sped.md").read_text(encoding="utf-8")
