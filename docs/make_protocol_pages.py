"""Writes the pages of docs/protocols from the protocols' records.

python docs/make_protocol_pages.py
"""

import sys
from pathlib import Path

from d2vpr_hf.protocols.export import record_text
from d2vpr_hf.protocols.records import PROTOCOLS, ProtocolRecord

_NOTICE = "<!-- Made from the records: python docs/make_protocol_pages.py -->\n"

_INDEX = """
A published number means something only with its protocol: which photos, which queries, what counts as right, and what
happens to queries that nothing answers. Here each protocol has one name.

```python
from d2vpr_hf import load_protocol

splits = load_protocol("pitts30k-test", "data/pitts30k")  # database, queries
splits["queries"][0]["positives"]  # rows of splits["database"]
```

`d2vpr verify data/pitts30k` says which protocol a folder is and what differs; it ends with 0 only where the folder is
exactly a protocol.

Counts marked (cited) are repeated in papers and threads, but weren't counted in the set's own data or code: a
difference from one is a remark of `verify`, not an error.
"""

_BROKEN = """
## What happens to a set that isn't whole

| what is wrong | `load_protocol` | `d2vpr verify` |
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
| degrees and metres of a name disagree | metres are used; beyond 5 km the place is unknown | error |
| a name without position | no positives | error |
| a photo that can't be opened | found when it is read | error (a sample is opened, or all of them) |
| names made for another protocol (Nordland's spacing) | the protocol's rule | error |
"""


def protocol_page(record: ProtocolRecord) -> str:
    """The page of one protocol."""
    return f"{_NOTICE}# {record.title}\n\n{record_text(record)}"


def index_page() -> str:
    """The page that lists them all."""
    lines = ["| protocol | set | database | queries | positives |", "| --- | --- | --- | --- | --- |"]
    for record in PROTOCOLS:
        counts = [
            "not known" if count is None else f"{count}{count.mark}" for count in (record.database, record.queries)
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
    print(f"{len(write_pages(Path(__file__).parent / 'protocols'))} pages", file=sys.stderr)
