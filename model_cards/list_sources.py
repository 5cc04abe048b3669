"""Lists where training files come from, by source and licence, for the card of a checkpoint trained on them.

    python model_cards/list_sources.py SOURCES.tsv FILES.txt --use training > sources.json

SOURCES.tsv has a header and six columns: file, source, path there, licence, where that is stated, author. FILES.txt
names the files used, one a line, as the first column does; they lie beside SOURCES.tsv. The result has `data_sources`
and `credits` as `about.json` has them, and `model_cards/ship.py --sources` takes it.
"""

import argparse
import csv
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Licences that ask for the author's name or the notice; of the others nobody need be named.
CREDITED = ("CC-BY", "MIT", "BSD", "Apache")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def list_sources(table: Path, names: Sequence[str], use: str | None = None) -> dict[str, Any]:
    """{"data_sources": [...], "credits": [...]} of the files, sorted by source and licence.

    Args:
        table: SOURCES.tsv, beside which the files lie.
        names: of the files used, as the table has them.
        use: what they are used for.

    Raises: ValueError if the table lacks a file. FileNotFoundError if a file isn't there.
    """
    with table.open(encoding="utf-8", newline="") as file:
        rows = {row[0]: row for row in list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:] if row}
    if missing := sorted({name for name in names if name not in rows}):
        raise ValueError(
            f"{table} has no row for {', '.join(missing[:5])}{' ...' if missing[5:] else ''} ({len(missing)} in all), "
            "so nobody knows their terms. Add the rows, or leave the files out."
        )
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    authors: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for name in sorted(set(names)):
        _, source, path, licence, stated, *author = rows[name]
        groups[source, licence, stated].append(name)
        if licence.startswith(CREDITED):
            who = author[0] if author and author[0] else source
            authors[who, source, licence].append(Path(path or name).name)
    sources = []
    for (source, licence, stated), files in sorted(groups.items()):
        entry = {"name": source, "terms": f"{licence} ({stated})", "files": len(files)}
        entry["files_sha256"] = files_sha256(table.parent, files)
        if _REPOSITORY.fullmatch(source):
            entry["url"] = f"https://github.com/{source}"
        sources.append(entry if use is None else entry | {"use": use})
    credits = [
        f"{who}{'' if who == source else f' (from {source})'}, {licence}: {', '.join(files)}"
        for (who, source, licence), files in sorted(authors.items())
    ]
    return {"data_sources": sources, "credits": credits}


def files_sha256(root: Path, names: Sequence[str]) -> str:
    """SHA-256 of the list of files: a line a file, its SHA-256, two spaces and its name, sorted by name."""
    lines = []
    for name in sorted(names):
        with (root / name).open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path, help="SOURCES.tsv, beside which the files lie")
    parser.add_argument("files", type=Path, help="names of the files used, one a line")
    parser.add_argument("--use", help="what they are used for, such as training (default: not said)")
    options = parser.parse_args()
    names = [line.strip() for line in options.files.read_text(encoding="utf-8").splitlines() if line.strip()]
    print(json.dumps(list_sources(options.table, names, options.use), indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
