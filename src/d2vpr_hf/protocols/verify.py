"""Says which protocol a folder is, and what differs from it."""

import math
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..files import path_to_text
from .layouts.base import Layout, Reading
from .open import ProtocolFolder, assemble, find_layout, names_in
from .records import PROTOCOLS, ProtocolRecord, find_record
from .verify_checks import (
    Finding,
    check_coordinates,
    check_counts,
    check_names,
    check_positives,
    expected_counts,
    open_photos,
    sides,
)

# Cited counts that aren't verified may be off by a little and still tell which set a folder is.
_CITED_SLACK = 0.02
# A folder whose counts differ by less in all (natural logarithms of the ratios) is compared with the nearest protocol.
_NEAR = 0.2


@dataclass
class Verification:
    """How a folder compares with a protocol.

    Attributes:
        root: the folder given.
        protocol: id of the protocol that it was compared with; None where none is near.
        folder: where the layout begins; None where none was found.
        findings: what differs or is worth knowing.
        counts: {"database": photos, "queries": photos} as found.
        opened: how many photos of each were opened.
        sizes: {(width, height): opened photos}, most frequent first.
        positives: fewest, mean and most of a query; None without labels.
        nearest: protocols with their expected counts, nearest first, where none fits.
    """

    root: Path
    protocol: str | None = None
    folder: Path | None = None
    findings: list[Finding] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    opened: dict[str, int] = field(default_factory=dict)
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    positives: tuple[int, float, int] | None = None
    nearest: list[str] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        """What makes the folder another thing than the protocol."""
        return [finding for finding in self.findings if finding.is_error]

    @property
    def remarks(self) -> list[Finding]:
        """What is worth knowing, differences from unverified counts among it."""
        return [finding for finding in self.findings if not finding.is_error]

    @property
    def exact(self) -> bool:
        """Whether the folder is exactly the protocol, as far as it was looked at."""
        return self.protocol is not None and not self.errors

    def to_json(self) -> dict[str, Any]:
        """Everything as one JSON object."""
        positives = self.positives and dict(zip(("fewest", "mean", "most"), self.positives, strict=True))
        return {
            "root": path_to_text(self.root),
            "exact": self.exact,
            "protocol": self.protocol,
            "folder": None if self.folder is None else path_to_text(self.folder),
            "counts": self.counts,
            "opened": self.opened,
            "sizes": [{"width": size[0], "height": size[1], "photos": count} for size, count in self.sizes.items()],
            "positives": positives,
            "errors": [{"check": finding.check, "text": finding.text} for finding in self.errors],
            "remarks": [{"check": finding.check, "text": finding.text} for finding in self.remarks],
            "nearest": self.nearest,
        }

    def text(self) -> str:
        """The same for people."""
        record = None if self.protocol is None else find_record(self.protocol)
        verdict = "no protocol that is known"
        if record is not None:
            verdict = f"{'exactly' if self.exact else 'not exactly'} {record.id} ({record.title})"
        lines = [f"{path_to_text(self.root)} is {verdict}."]
        for side, count in self.counts.items():
            wanted = None if record is None else getattr(record, side)
            expected = "" if wanted is None else f" (expected {wanted}; {wanted.source})"
            lines.append(f"  {side:<9}  {count:,}{expected}")
        if self.positives is not None:
            fewest, mean, most = self.positives
            lines.append(f"  positives  {fewest} to {most} a query, mean {mean:.1f}")
        if self.opened:
            opened = ", ".join(f"{count:,} of {self.counts[side]:,} {side}" for side, count in self.opened.items())
            sizes = ", ".join(f"{width} x {height}" for width, height in list(self.sizes)[:3])
            more = ", ..." if len(self.sizes) > 3 else ""
            lines.append(f"  opened     {opened}{f'; {sizes}{more} (width x height)' if sizes else ''}")
        for title, findings in (("Errors", self.errors), ("Remarks", self.remarks)):
            if findings:
                lines += ["", f"{title}:", *(f"  {finding.check}: {finding.text}" for finding in findings)]
        if self.nearest:
            lines += ["", "Nearest protocols:", *(f"  {line}" for line in self.nearest)]
        return "\n".join(lines) + "\n"


def verify_folder(
    root: str | Path, protocol: str | None = None, *, sample: int | None = 200, seed: int = 0
) -> Verification:
    """Compares a folder with a protocol, or finds out which protocol it is.

    A difference from a count that was verified is an error, from one that is only cited a remark.

    Args:
        root: the folder of the set.
        protocol: id of the protocol; by default the one whose layout and counts fit.
        sample: how many photos of each side are opened; None opens all.
        seed: which photos are.

    Raises: NotADirectoryError if there is no such folder; ValueError if the protocol is unknown or sample is negative.
    """
    root = Path(root)
    if sample is not None and sample < 0:
        raise ValueError(f"sample is {sample}, but must be a number of photos from 0, or None to open all.")
    if not root.is_dir():
        raise NotADirectoryError(f"{path_to_text(root)} is not a folder. Give the folder of a protocol's photos.")
    result = Verification(root)
    opened = _identified(root, result) if protocol is None else _opened(find_record(protocol), root, result)
    if opened is not None:
        _compare(opened, result, sample, seed)
    return result


def _compare(opened: ProtocolFolder, result: Verification, sample: int | None, seed: int) -> None:
    result.protocol, result.folder = opened.record.id, opened.root
    result.counts = {side: len(split) for side, split in sides(opened).items()}
    if opened.positives:
        numbers = np.array([len(rows) for rows in opened.positives])
        result.positives = (int(numbers.min()), float(numbers.mean()), int(numbers.max()))
    checks = (check_counts, check_names, check_coordinates, check_positives)
    result.findings += chain.from_iterable(check(opened) for check in checks)
    photos = open_photos(opened, sample, seed)
    result.opened, result.sizes = photos.counts, photos.sizes
    result.findings += photos.findings


def _opened(record: ProtocolRecord, root: Path, result: Verification) -> ProtocolFolder | None:
    """The folder as a protocol; what keeps it from being read becomes a finding."""
    result.protocol = record.id
    try:
        layout, folder = find_layout(record, root)
        return assemble(record, folder, layout, layout.read(folder))
    except ValueError as error:
        result.findings.append(Finding("layout", str(error)))
        return None


def _identified(root: Path, result: Verification) -> ProtocolFolder | None:
    """The folder as the protocol that fits best, if one is near; otherwise it says so and lists the nearest."""
    readings: dict[Layout, tuple[Path, Reading] | None] = {}
    complaints: list[str] = []
    candidates: list[_Candidate] = []
    # Folders of one's own may be anything; that they are meant has to be said.
    for record in (each for each in PROTOCOLS if each.rule.is_published):
        for layout in record.layouts:
            if layout not in readings:
                readings[layout] = _read(layout, root, complaints)
            if readings[layout] is not None:
                candidates.append(_candidate(record, layout, *readings[layout]))
                break
    # Sorting is stable: among equals the first of the records wins.
    candidates.sort(key=lambda candidate: (candidate.away, -candidate.counted))
    for candidate in candidates:
        if candidate.away > _NEAR or not candidate.counted:
            break
        try:
            opened = assemble(candidate.record, candidate.folder, candidate.layout, candidate.reading)
        except ValueError as error:
            # What its rule needs isn't there: it is another protocol with the same counts.
            complaints.append(f"{candidate.record.id}: {error}")
            continue
        equal = (each for each in candidates if each.away == candidate.away == 0 and each.counted == candidate.counted)
        if others := [each.record.id for each in equal if each is not candidate]:
            text = f"by layout and counts the folder is {', '.join(others)} too; name one with --protocol ID."
            result.findings.append(Finding("layout", text, is_error=False))
        return opened
    if not candidates:
        result.findings.append(Finding("layout", "\n".join(dict.fromkeys(complaints)) or _no_layout(root)))
        return None
    result.counts = candidates[0].counts
    found = ", ".join(f"{count:,} {side}" for side, count in result.counts.items())
    text = (
        f"found {found}, but no protocol of this layout has about as many. Give --protocol ID to see what differs from "
        "one, or --protocol folders if this is a set of your own."
    )
    result.findings.append(Finding("counts", text))
    result.findings += [Finding("layout", complaint) for complaint in dict.fromkeys(complaints)]
    result.nearest = [_words(candidate.record) for candidate in candidates[:3]]
    return None


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A protocol with a layout that was found: how far its counts are away, and how many it has."""

    record: ProtocolRecord
    layout: Layout
    folder: Path
    reading: Reading
    counts: dict[str, int]
    away: float
    counted: int


def _candidate(record: ProtocolRecord, layout: Layout, folder: Path, reading: Reading) -> _Candidate:
    counts = {"database": len(reading.database)}
    if reading.queries is not None:
        counts["queries"] = len(reading.queries)
        # Positives take long in large sets, so they are only looked for where they decide the count.
        if record.denominator == "with_positives":
            counts["queries"] = len(assemble(record, folder, layout, reading).queries)
    away, counted = 0.0, 0
    for _, expected, found in expected_counts(record, counts):
        counted += 1
        ratio = abs(math.log(max(found, 1) / max(expected.number, 1)))
        if not expected.fits(found) and (expected.verified or ratio > _CITED_SLACK):
            away += ratio
    # A protocol without counts fits anything, but less well than one whose counts are nearly right.
    return _Candidate(record, layout, folder, reading, counts, away if counted else _NEAR, counted)


def _read(layout: Layout, root: Path, complaints: list[str]) -> tuple[Path, Reading] | None:
    folder = layout.find(root)
    if folder is None:
        return None
    try:
        return folder, layout.read(folder)
    except ValueError as error:
        complaints.append(str(error))
        return None


def _no_layout(root: Path) -> str:
    return (
        f"the folder holds {names_in(root)}, which is not a known layout. Give the folder that holds images/SPLIT/ or "
        "SPLIT/ with database/ and queries/ of names such as @easting@northing@...@.jpg, or ref/ and query/, or "
        "train_val/CITY/, or Images/ and Dataframes/; --protocol ID shows the layout of one, and --protocol folders "
        "takes database/ and queries/ of your own."
    )


def _words(record: ProtocolRecord) -> str:
    counts = [f"{count} {side}" for side in ("database", "queries") if (count := getattr(record, side)) is not None]
    return f"{record.id}: {', '.join(counts) or 'any counts'}"
