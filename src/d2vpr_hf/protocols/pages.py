"""Writes the documentation of the protocols from their records: `python -m d2vpr_hf.protocols.pages FOLDER`."""

import argparse
import sys
from pathlib import Path

from .records import PROTOCOLS, BenchmarkRecord, Count

_NOTICE = "<!-- Made from the records: python -m d2vpr_hf.protocols.pages docs/protocols -->\n"

_INDEX = """
A benchmark's number means something only with its protocol: which photos, which queries, what counts as right, and what
happens to queries that nothing answers. Here each protocol has one name.

```python
from d2vpr_hf import load_benchmark

benchmark = load_benchmark("pitts30k-test", "data/pitts30k")  # splits: database, queries
benchmark["queries"][0]["positives"]  # rows of benchmark["database"]
```

`d2vpr verify data/pitts30k` says which protocol a folder is and what differs; it ends with 0 only where the folder is
exactly a protocol.

Counts marked (cited) are repeated in papers and threads, but weren't counted in the set's own data or code: a
difference from one is a remark of `verify`, not an error.
"""

_BROKEN = """
## What happens to a set that isn't whole

| what is wrong | `load_benchmark` | `d2vpr verify` |
| --- | --- | --- |
| a listed photo is missing | error that names it | error that names it |
| a number of `ref/`, `query/` is missing | error that names it | error that names it |
| another count than one that was counted | warning | error |
| another count than one that is cited | warning | remark |
| an "@" in the name of a folder above | read correctly | remark: other code reads wrong positions |
| upper-case suffixes, such as .JPG | read | error: other code looks for .jpg alone |
| a query without positives | empty list; a miss, or left out where the protocol says so | remark |
| no query has a positive | empty lists | error |
| photos in two UTM zones | distances across the border are right | remark; error where the set has one zone |
| degrees and metres of a name disagree | metres are used | error |
| a name without position | no positives | error |
| a photo that can't be opened | found when it is read | error (a sample is opened, or all of them) |
| names made for another protocol (Nordland's spacing) | the protocol's rule | error |
"""


def record_text(record: BenchmarkRecord) -> str:
    """A protocol in Markdown, without its title."""
    treated = {
        "all": "All queries count; one without positives is a miss.",
        "with_positives": "Queries without positives are left out before anything is counted.",
    }[record.denominator]
    rows = [("Protocol", f"`{record.id}`")]
    for name, count in (("Database", record.database), ("Queries", record.queries), ("Left out", record.dropped)):
        if count is not None:
            rows.append((name, count_text(count)))
    rows += [("Positives", f"{record.rule}"), ("Denominator", treated)]
    if record.positives is not None:
        rows.append(("Positives a query", "{} to {} in the published lists".format(*record.positives)))
    if record.zone is not None:
        rows.append(("UTM zone", str(record.zone)))
    if record.image_size:
        rows.append(("Photos", record.image_size))
    if record.images:
        rows.append(("Where from", record.images))
    table = "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])
    trees = "\n\nor\n\n".join(f"```\n{layout.tree()}\n```" for layout in record.layouts)
    notes = "".join(f"- {note}\n" for note in record.notes)
    return f"{table}\n\n## Layout\n\n{trees}\n" + (f"\n## Notes\n\n{notes}" if notes else "")


def count_text(count: Count) -> str:
    """A count with its source, marked where it isn't verified."""
    return f"{count}{'' if count.verified else ' (cited)'}: {count.source}"


def protocol_page(record: BenchmarkRecord) -> str:
    """The page of one protocol."""
    return f"{_NOTICE}# {record.title}\n\n{record_text(record)}"


def index_page() -> str:
    """The page that lists them all."""
    lines = ["| protocol | set | database | queries | positives |", "| --- | --- | --- | --- | --- |"]
    for record in PROTOCOLS:
        counts = [
            "not known" if count is None else f"{count}{'' if count.verified else ' (cited)'}"
            for count in (record.database, record.queries)
        ]
        lines.append(f"| [{record.id}]({record.id}.md) | {record.title} | {' | '.join(counts)} | {record.rule} |")
    return f"{_NOTICE}# Protocols\n{_INDEX}\n" + "\n".join(lines) + f"\n{_BROKEN}"


def pages() -> dict[str, str]:
    """{file name: text} of all pages."""
    return {"README.md": index_page()} | {f"{record.id}.md": protocol_page(record) for record in PROTOCOLS}


def write_pages(folder: str | Path) -> list[Path]:
    """The pages written into a folder; pages there of protocols that are no more are removed."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = pages()
    for path in folder.glob("*.md"):
        if path.name not in wanted and path.read_text(encoding="utf-8").startswith(_NOTICE):
            path.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in wanted]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="where the pages go, such as docs/protocols")
    print(f"{len(write_pages(parser.parse_args().folder))} pages", file=sys.stderr)
