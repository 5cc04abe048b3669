"""Tables that people write: CSV or Parquet, read with errors that name the file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import path_to_text

if TYPE_CHECKING:
    from pandas import DataFrame


def read_table(path: Path, **options: Any) -> "DataFrame":
    """The rows of a Parquet file, or of a CSV file by pandas' options.

    Raises: OSError if the file can't be opened; ValueError naming it if it isn't a table.
    """
    import pandas as pd  # loaded where it is used: importing this package leaves pandas alone

    try:
        with path.open("rb") as file:
            return pd.read_parquet(file) if path.suffix.lower() == ".parquet" else pd.read_csv(file, **options)
    except Exception as error:  # pandas and pyarrow raise whatever they stumble over
        if isinstance(error, OSError) and error.errno is not None:
            raise
        complaint = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{path_to_text(path)} is not a table that can be read ({complaint[0]:.200}). Save it as CSV in UTF-8, or "
            "as Parquet."
        ) from error
