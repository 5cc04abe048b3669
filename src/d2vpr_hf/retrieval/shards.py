"""A list of photos that several processes embed, each a range of it into a part folder of its own.

The first process writes the whole list (`shards.json`); the others compare theirs with it. Part folders are ordinary
folders of descriptors, so each resumes by itself.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..files import LOCK_FILE, TEMPORARY_SUFFIX, holding, replace_file
from ..messages import first_few
from .provenance import differences

MANIFEST_FILE = "shards.json"
# Whose numbers fit the names of part folders.
MOST_SHARDS = 99_999
# How long a process waits for others that start in the same moment and compare their lists.
_PATIENCE_S = 300.0
_ANEW = "Name another folder, or remove this one to embed everything anew."


@dataclass(frozen=True)
class Manifest:
    """What `shards.json` says.

    Attributes:
        shards: number of parts.
        about: who makes the rows.
        block: rows that stay together in one part: the first process's batch. A model rounds a row by which others are
            in its batch, so batches are those of one process.
        names: what each photo of the whole list is known by, in order.
    """

    shards: int
    block: int
    about: dict[str, Any]
    names: list[str]

    def rows(self, number: int) -> range:
        """The rows of a part, counted from 1. Parts are contiguous, so that one after the other they are the list."""
        total, blocks = len(self.names), -(-len(self.names) // self.block)
        ends = [min(total, blocks * count // self.shards * self.block) for count in (number - 1, number)]
        return range(*ends)


def part_folder(folder: Path, number: int, shards: int) -> Path:
    """Where the part of this number lies, counted from 1."""
    return folder / f"part-{number:05d}-of-{shards:05d}"


def check_shard(shard: tuple[int, int]) -> tuple[int, int]:
    """Raises: ValueError unless it is a part's number, counted from 1, and the number of parts."""
    whole = isinstance(shard, Sequence) and [type(each) for each in shard] == [int, int]
    if not whole or not 1 <= shard[0] <= shard[1] <= MOST_SHARDS:
        raise ValueError(
            f"shard is {shard!r}, but must be a part's number, counted from 1, and the number of parts: (3, 16), say."
        )
    return shard[0], shard[1]


def claim_part(
    folder: Path, shard: tuple[int, int], block: int, names: Sequence[str], about: dict[str, Any]
) -> tuple[Path, list[int]]:
    """A part's folder, and the rows of the list that belong in it; the list is written, or compared if it is there.

    Raises: ValueError if the folder holds something else, or parts of another list, another number of parts, or of
        other weights, another processor or dtype.
    """
    number, shards = check_shard(shard)
    mine = Manifest(shards, block, json.loads(json.dumps(about, default=str)), list(names))
    with holding(folder, wait=_PATIENCE_S):
        if (folder / MANIFEST_FILE).is_file():
            manifest = read_manifest(folder)
            _refuse_another(folder, manifest, mine)
        else:
            there = {each.name for each in folder.iterdir() if not each.name.endswith(TEMPORARY_SUFFIX)}
            if others := sorted(there - {LOCK_FILE}):
                raise ValueError(
                    f"{folder} holds {others[0]} and no {MANIFEST_FILE}, so no parts of a list. Name a new or empty "
                    "folder for the parts."
                )
            manifest = mine
            replace_file(folder / MANIFEST_FILE, json.dumps(asdict(mine)) + "\n")
    return part_folder(folder, number, shards), list(manifest.rows(number))


def read_manifest(folder: Path) -> Manifest:
    """Raises: ValueError if `shards.json` isn't as it was written."""
    path = folder / MANIFEST_FILE
    try:
        manifest = Manifest(**json.loads(path.read_text(encoding="utf-8")))
        check_shard((1, manifest.shards))
        texts = isinstance(manifest.names, list) and all(type(name) is str for name in manifest.names)
        if not texts or not isinstance(manifest.about, dict) or type(manifest.block) is not int or manifest.block < 1:
            raise ValueError("names, about or block are of another kind")
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} isn't as it was written ({error}): it was changed or is of another program."
        ) from error
    return manifest


def check_parts(folder: Path, parts: Sequence[tuple[Sequence[str], dict[str, Any]] | None]) -> None:
    """Refuses parts that together aren't the whole list, each photo once, by one maker.

    Args:
        parts: names of the rows of each part, and what its `descriptors.json` says; None where it isn't finished.

    Raises: ValueError naming the parts at fault.
    """
    manifest = read_manifest(folder)
    if open_parts := [number for number, part in enumerate(parts, 1) if part is None]:
        told = [
            f"{number}/{manifest.shards} ({'unfinished' if path.is_dir() else 'missing'})"
            for number in open_parts
            for path in [part_folder(folder, number, manifest.shards)]
        ]
        raise ValueError(
            f"{folder} isn't whole: of {manifest.shards} parts {len(open_parts)} aren't finished, {first_few(told)}. "
            f"Run `d2vpr embed` with --shard {open_parts[0]}/{manifest.shards} and so on."
        )
    for number, (names, about) in enumerate(parts, 1):
        part = part_folder(folder, number, manifest.shards)
        if found := differences(manifest.about, about):
            raise ValueError(
                f"{part} was made with other settings than the list: {found}. Remove it and embed it anew."
            )
        wanted = [manifest.names[row] for row in manifest.rows(number)]
        left = iter(wanted)
        stranger = next((name for name in names if name not in left), None)  # `in` walks on: also the order counts
        if stranger is not None:
            raise ValueError(
                f"{part} holds {stranger}, which isn't there in the list, is there twice, or out of order. Remove the "
                "part and embed it anew."
            )
        if len(names) + len(about["skipped"]) != len(wanted):
            raise ValueError(
                f"{part} holds {len(names)} photos and {len(about['skipped'])} that were skipped, but has "
                f"{len(wanted)} in the list. Embed it again with --shard {number}/{manifest.shards}."
            )


def _refuse_another(folder: Path, there: Manifest, mine: Manifest) -> None:
    if there.shards != mine.shards:
        raise ValueError(f"{folder} is made of {there.shards} parts, not of {mine.shards}. {_ANEW}")
    if there.names != mine.names:
        pairs = zip(there.names, mine.names, strict=False)
        row = next(
            (row for row, (one, other) in enumerate(pairs) if one != other), min(len(there.names), len(mine.names))
        )
        one, other = (names[row] if row < len(names) else "nothing" for names in (there.names, mine.names))
        raise ValueError(
            f"{folder} is made of another list of photos: {len(there.names)} of them, now {len(mine.names)}, and "
            f"number {row + 1} is {one} there, now {other}. All processes need the same list. {_ANEW}"
        )
    if found := differences(there.about, mine.about):
        raise ValueError(f"{folder} is made with other settings: {found}. Rows of both can't be mixed. {_ANEW}")
