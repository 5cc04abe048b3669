"""A small table of text, for terminal, page and card."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A small table of text for terminal and page: the first column names the row, the others hold figures.

    Attributes:
        header: column titles.
        rows: cells as text, each row as long as the header.
        caption: what the table shows, in one line.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.header):
                raise ValueError(
                    f"rows[{number}] has {len(row)} cells ({list(row)}), but header has {len(self.header)} columns. "
                    "Give each row one cell a column."
                )

    def text(self) -> str:
        """The table for a terminal: columns two spaces apart, figures flush right."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.header))]
        formatted = [
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        rule = "  ".join("-" * width for width in widths)
        return "\n".join([*([self.caption] if self.caption else []), formatted[0], rule, *formatted[1:]])

    def markdown(self) -> str:
        """The table for a card or a README, without its caption; a bar within a cell becomes a slash."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
