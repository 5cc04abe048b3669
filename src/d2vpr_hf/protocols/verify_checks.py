"""What is looked at when a folder is compared with a protocol: counts, names, photos, coordinates, positives."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..messages import first_few
from ..photos.images import UnreadableImage, open_image
from ..photos.positions import apart_in_names_m, positives_within
from .layouts.base import Split, UtmFolders
from .open import ProtocolFolder, missing_photos
from .records import Count, ProtocolRecord
from .rules import Within, positives_by_frame

_SHOWN = 5
# Names cut degrees after the fifth place, about a metre.
_NAME_DEGREES_M = 5.0
_EASTINGS_M = (100_000, 900_000)
_MOCK_RADIUS_M = 25.0


@dataclass(frozen=True)
class Finding:
    """One thing that differs or is worth knowing.

    Attributes:
        check: what was looked at: layout, counts, names, photos, coordinates or positives.
        text: what was found, what was expected, and what to do.
        is_error: whether it makes the folder another thing than the protocol.
    """

    check: str
    text: str
    is_error: bool = True


@dataclass(frozen=True)
class Opened:
    """Photos that were opened.

    Attributes:
        counts: {"database": photos, "queries": photos}.
        sizes: {(width, height): photos}, most frequent first.
        findings: photos that can't be used.
    """

    counts: dict[str, int]
    sizes: dict[tuple[int, int], int]
    findings: list[Finding]


def sides(opened: ProtocolFolder) -> dict[str, Split]:
    """{"database": ..., "queries": ...}; the photos of a training set are its database."""
    return {"database" if side == "train" else side: split for side, split in opened.splits.items()}


def expected_counts(record: ProtocolRecord, counts: dict[str, int]) -> Iterator[tuple[str, Count, int]]:
    """Side, expected and found count, where one is expected."""
    for side, found in counts.items():
        expected = getattr(record, side)
        if expected is not None:
            yield side, expected, found


def check_counts(opened: ProtocolFolder) -> Iterator[Finding]:
    """Differences from a count that was verified are errors, from one that is only cited remarks."""
    record = opened.record
    counts = {side: len(split) for side, split in sides(opened).items()}
    for side, expected, found in expected_counts(record, counts):
        if expected.fits(found):
            continue
        text = f"{found:,} {_photos(side)}, but {record.id} has {expected} ({expected.source})"
        if expected.verified:
            remedy = "Some are missing: unpack all of the set" if found < expected.number else "Remove what isn't of it"
            yield Finding("counts", f"{text}. {remedy}.")
        else:
            yield Finding("counts", f"{text}; that figure isn't verified, so this isn't an error.", is_error=False)
    if record.dropped is not None and not record.dropped.fits(found := len(opened.left_out)) and found:
        text = f"{found} queries have no positive and are left out, but {record.id} leaves out {record.dropped}."
        yield Finding("counts", text, is_error=False)
    for side, split in sides(opened).items():
        if not len(split):
            yield Finding("counts", f"there are no {_photos(side)}. Give a folder that holds them.")
        if missing := missing_photos(split):
            text = f"{len(missing):,} listed {_photos(side)} aren't there: {_some(missing)}. Unpack all of the set."
            yield Finding("photos", text)


def check_names(opened: ProtocolFolder) -> Iterator[Finding]:
    """Names that other code reads otherwise."""
    if any("@" in part for part in opened.root.absolute().parts):
        text = (
            "a folder above the photos has an '@' in its name. Positions are read correctly here, but other code "
            "splits the whole path at '@' and reads wrong ones: rename the folder before using it."
        )
        yield Finding("names", text, is_error=False)
    if not opened.record.rule.is_published:
        return
    usual = (".jpg",) if isinstance(opened.layout, UtmFolders) else (".jpg", ".png")
    for side, split in sides(opened).items():
        if odd := [name for name in split.photos.names if not name.endswith(usual)]:
            yield Finding(
                "names",
                f"{len(odd):,} {_photos(side)} end otherwise than in {' or '.join(usual)}: {_some(odd)}. They are read "
                "here, but other code looks for that ending alone and has fewer photos: rename or convert them.",
            )


def check_coordinates(opened: ProtocolFolder) -> Iterator[Finding]:
    """Positions that are missing, elsewhere, or written twice and differently."""
    record, zones = opened.record, set()
    # Where positives come from a list, nobody needs positions.
    needed = record.rule.radius_m is not None and opened.rule == str(Within(record.rule.radius_m))
    for side, split in sides(opened).items():
        positions, apart_m = split.photos.positions, apart_in_names_m(split.photos.paths)
        known, zone, easting = positions.known, positions.zone, positions.easting
        zones |= set(zone[known & (zone > 0)].tolist())
        doubtful = apart_m > _NAME_DEGREES_M
        elsewhere = (record.zone is not None) & known & (zone != record.zone)
        outside = (zone > 0) & ((easting < _EASTINGS_M[0]) | (easting > _EASTINGS_M[1]))
        farthest = np.max(apart_m, initial=0, where=doubtful)
        for rows, what, is_error in (
            (needed & ~known & ~doubtful, "have no position", record.rule.is_published),
            (elsewhere, f"aren't in UTM zone {record.zone}", True),
            (outside, "have an easting that no UTM zone has", True),
            (doubtful, f"have degrees and metres in their names that are up to {farthest:,.0f} m apart", True),
        ):
            if rows.any():
                names = [split.photos.names[row] for row in np.flatnonzero(rows)]
                text = f"{len(names):,} {_photos(side)} {what}: {_some(names)}. Restore their names or tables."
                yield Finding("coordinates", text, is_error)
    if len(zones) > 1:
        text = (
            f"the photos lie in the UTM zones {sorted(zones)}. Distances are measured across the border here; other "
            "code compares the metres of different zones and finds positives that aren't, or misses some."
        )
        yield Finding("coordinates", text, is_error=False)


def check_positives(opened: ProtocolFolder) -> Iterator[Finding]:
    """Queries that nothing answers, and rules that say different things."""
    record, positives = opened.record, opened.positives
    if positives is None:
        if not record.rule.is_published:
            yield Finding("positives", f"{opened.rule}. The photos can be ranked, but not scored.", is_error=False)
        return
    counts = np.array([len(rows) for rows in positives], np.int64)
    if not counts.any():
        text = f"no query has a positive ({opened.rule}). Check that database and queries show the same area."
        yield Finding("positives", text)
        return
    if without := int((counts == 0).sum()):
        first = opened.queries.photos.names[int(np.argmin(counts))]
        text = f"{without:,} queries have no positive, such as {first}; they count as misses."
        yield Finding("positives", text, is_error=False)
    found = (int(counts.min()), int(counts.max()))
    if record.positives is not None and found != record.positives:
        published = "{} to {}".format(*record.positives)
        text = f"{found[0]} to {found[1]} positives a query, but the published lists give {published}."
        yield Finding("positives", text, is_error=False)
    yield from _rules_that_disagree(opened, positives)


def _rules_that_disagree(opened: ProtocolFolder, positives: list[np.ndarray]) -> Iterator[Finding]:
    """Frames may have a list of positives and mock positions too; all say the same in a set that is whole."""
    record, database, queries = opened.record, opened.database, opened.queries
    if record.rule.reach is None or database.frame is None or queries.frame is None:
        return
    by_frame = positives_by_frame(database.frame, queries.frame, record.rule.reach)
    if (query := _first_difference(positives, by_frame)) is not None:
        yield Finding(
            "positives",
            f"{opened.rule}: {len(positives[query])} photos for {queries.photos.names[query]}, but by its number it "
            f"has {len(by_frame[query])}. The list is another protocol's: take the one of {record.id}.",
        )
    mock = [split.photos.positions for split in (database, queries)]
    if isinstance(opened.layout, UtmFolders) and all(each.known.all() for each in mock):
        within = positives_within(*mock, _MOCK_RADIUS_M)
        if (query := _first_difference(by_frame, within)) is not None:
            yield Finding(
                "positives",
                f"the positions in the names put {len(within[query])} database photos within {_MOCK_RADIUS_M:g} m of "
                f"{queries.photos.names[query]}, but {record.id} has {len(by_frame[query])} ({record.rule}). The names "
                "were made for another protocol: format the set again, or verify it as that one.",
            )


def _first_difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> int | None:
    pairs = enumerate(zip(ours, theirs, strict=True))
    return next((query for query, (first, second) in pairs if not np.array_equal(first, second)), None)


def open_photos(opened: ProtocolFolder, sample: int | None, seed: int) -> Opened:
    """Decodes `sample` photos of each side, drawn by `seed`, or all."""
    random = np.random.default_rng(seed)
    counts: dict[str, int] = {}
    sizes: Counter[tuple[int, int]] = Counter()
    findings = []
    for side, split in sides(opened).items():
        rows = np.flatnonzero([path.is_file() for path in split.photos.paths])
        if sample is not None and sample < len(rows):
            rows = np.sort(random.choice(rows, sample, replace=False))
        with ThreadPoolExecutor() as pool:
            seen = list(pool.map(_size_or_reason, [split.photos.paths[row] for row in rows]))
        counts[side] = len(rows)
        sizes.update(size for size in seen if isinstance(size, tuple))
        pairs = zip(rows, seen, strict=True)
        if bad := [f"{split.photos.names[row]} ({reason})" for row, reason in pairs if isinstance(reason, str)]:
            text = f"{len(bad):,} {_photos(side)} can't be used: {_some(bad)}. Download them again."
            findings.append(Finding("photos", text))
    return Opened(counts, dict(sizes.most_common()), findings)


def _size_or_reason(path: Path) -> tuple[int, int] | str:
    try:
        return open_image(path).size
    except UnreadableImage as error:
        return error.reason


def _photos(side: str) -> str:
    return {"database": "database photos", "queries": "queries"}[side]


def _some(names: list[str]) -> str:
    return first_few(names, _SHOWN)
