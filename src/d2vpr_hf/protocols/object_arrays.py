"""Reads the published `.npy` lists of names and positives without ever running what a file says.

NumPy stores ragged lists as pickles, and opening a pickle can run any program. Here a pickle's steps are checked
first, and arrays are put together from plain numbers by this file alone: NumPy's own unpickling isn't used, because a
forged array description can make it read memory that isn't its own.
"""

import codecs
import io
import math
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# A pickle that lists photos needs no other steps. INST, OBJ, NEWOBJ and the extension registry make objects of any
# class; persistent ids and out-of-band buffers refer outside of the file.
_STEPS = frozenset(
    [
        *("PROTO", "FRAME", "STOP", "MARK", "POP_MARK"),
        *("MEMOIZE", "PUT", "GET", "BINPUT", "BINGET", "LONG_BINPUT", "LONG_BINGET"),
        *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
    ]
)
_PUTS = frozenset(["PUT", "BINPUT", "LONG_BINPUT"])
_INTEGERS = {f"{kind}{size}": np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)}
# One list may be named many times over; this many rows are more than any set has.
_MOST_ROWS = 100_000_000


def read_names(path: str | Path) -> list[str]:
    """The names in an `.npy` file, an array of text or an object array of text.

    Raises: ValueError naming the file and the first entry that is no text, or as `read_positive_rows`.
    """
    entries = _read_array(Path(path))
    if isinstance(entries, np.ndarray):
        entries = entries.tolist()
    for row, entry in enumerate(entries):
        if not isinstance(entry, str):
            raise ValueError(
                f"{path}, row {row} is {entry!r:.60}, but should be the name of a photo. "
                "Give the file that lists names, not the one that lists positives."
            )
    return list(entries)


def read_row_numbers(path: str | Path) -> np.ndarray:
    """(rows,) int64 from an `.npy` file of whole numbers, such as the kept queries of a list.

    Raises: ValueError naming the file if it isn't one row of whole numbers, or as `read_positive_rows`.
    """
    return _as_rows(_read_array(Path(path)), f"{path}")


def read_positive_rows(path: str | Path, *, queries: int, database: int) -> list[np.ndarray]:
    """For each query its positives as rows of the database, ascending, from an `.npy` file.

    Known shapes: one array or list a query, one number a query, and VPR-Bench's pairs (query number, list).

    Args:
        queries: how many queries there are.
        database: how many database photos there are.

    Raises: ValueError naming the file and the query if there is not one entry a query, an entry is anything but
        whole numbers, or a row isn't in the database; if the file holds or builds anything but arrays, lists, text and
        whole numbers.
    """
    path = Path(path)
    entries = _read_array(path)
    if isinstance(entries, np.ndarray) and entries.ndim == 1:
        entries = [[entry] for entry in entries.tolist()]
    if len(entries) != queries:
        raise ValueError(
            f"{path} has positives for {len(entries)} queries, but there are {queries}. "
            "Use the ground truth and the query photos of one release."
        )
    entries = _without_query_numbers(list(entries), path)
    total, positives = 0, []
    for query, entry in enumerate(entries):
        rows = np.unique(_as_rows(entry if np.ndim(entry) or _is_list(entry) else [entry], f"{path}, query {query}"))
        total += len(rows)
        if total > _MOST_ROWS:
            raise ValueError(f"{path} lists more than {_MOST_ROWS:,} positives, more than any set has. Check it.")
        if len(rows) and not 0 <= rows[0] <= rows[-1] < database:
            wrong = rows[0] if rows[0] < 0 else rows[-1]
            raise ValueError(
                f"{path}, query {query} names database row {wrong}, but rows go from 0 to {database - 1}. "
                "Use the ground truth and the database photos of one release."
            )
        positives.append(rows)
    return positives


def _without_query_numbers(entries: list[Any], path: Path) -> list[Any]:
    """VPR-Bench's pairs (query number, [rows]) without the numbers; other shapes as they are."""
    pairs = all(_is_list(entry) and len(entry) == 2 and not _is_list(entry[0]) for entry in entries)
    if not pairs or not any(_is_list(entry[1]) for entry in entries):
        return entries
    numbers = [entry[0] for entry in entries]
    if numbers != list(range(len(entries))):
        raise ValueError(
            f"{path}: its pairs of query number and positives are numbered {str(numbers[:5])[:-1]}, ...], but should "
            "count from 0 in the order of the queries. Sort them, or write one list a query."
        )
    return [entry[1] for entry in entries]


def _is_list(entry: Any) -> bool:
    return isinstance(entry, (list, tuple, np.ndarray))


def _as_rows(entry: Any, where: str) -> np.ndarray:
    values = entry.tolist() if isinstance(entry, np.ndarray) else entry
    if not isinstance(values, (list, tuple)) or any(type(value) is not int for value in values):
        raise ValueError(
            f"{where} holds {entry!r:.60}, but should be a list of row numbers (whole numbers from 0). "
            "Give the file that lists positives."
        )
    if any(not -(2**63) <= value < 2**63 for value in values):
        raise ValueError(f"{where} holds a number beyond 64 bits, which is no row of any database. Check the file.")
    return np.array(values, np.int64)


def _read_array(path: Path) -> np.ndarray | list[Any]:
    """What an `.npy` file holds: an array of numbers or text, or the entries of an object array, one a row."""
    data = path.read_bytes()
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"its version {version} is unknown")
        shape, column_order, dtype = readers[version](stream)
    except (ValueError, SyntaxError, EOFError) as error:
        raise ValueError(f"{path} is no .npy file ({str(error)[:80]}). Download it again.") from error
    if not dtype.hasobject:
        if dtype.kind not in "iuU":
            raise ValueError(f"{path} holds {dtype}, but should hold names or row numbers. Give another file.")
        expected, found = math.prod(shape) * dtype.itemsize, len(data) - stream.tell()
        if expected != found:
            raise ValueError(f"{path} has {found} bytes of content, but its head says {expected}. Download it again.")
        return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order="F" if column_order else "C")
    entries = _unpickled(data[stream.tell() :], path)
    if isinstance(entries, np.ndarray) or not isinstance(entries, list):
        raise ValueError(f"{path} holds no object array, though its head says so. Download it again.")
    if len(entries) != (shape[0] if shape else 0):
        raise ValueError(f"{path} has {len(entries)} rows, but its head says {shape}. Download it again.")
    return entries


def _unpickled(data: bytes, path: Path) -> Any:
    refusal = f"{path} is a pickle that does more than list photos"
    remedy = "Nothing of it was run. Don't use this file; get it again from the set's authors."
    try:
        steps = [(step.name, argument) for step, argument, _ in pickletools.genops(data)]
    except Exception as error:  # pickletools raises whatever it stumbles over: the file is at fault
        raise ValueError(f"{path} is cut short or damaged ({error}). Download it again.") from error
    for name, argument in steps:
        if name not in _STEPS:
            raise ValueError(f"{refusal}: it has the step {name}. {remedy}")
        # The memo grows to its largest number, whatever was stored.
        if name in _PUTS and argument > len(steps):
            raise ValueError(f"{refusal}: it stores a value as number {argument}. {remedy}")
    try:
        # latin1 keeps every byte of Python 2's strings, in which old files hold their numbers.
        return _finished(_Restricted(io.BytesIO(data), encoding="latin1").load())
    except _Refused as error:
        raise ValueError(f"{refusal}: {error}. {remedy}") from error
    except Exception as error:  # wrong steps in the right names end in any exception
        raise ValueError(f"{path} can't be read as arrays and lists ({error!r:.80}). Download it again.") from error


class _Refused(Exception):  # noqa: N818 - becomes a ValueError with the file's name
    pass


class _Description:
    """Stands in for numpy.dtype: remembers a name and a byte order, and builds nothing."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name = name if isinstance(name, str) else ""
        self.order = "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def integers(self) -> np.dtype:
        if self.name not in _INTEGERS or self.order not in ("<", ">", "|", "="):
            raise _Refused(f"it holds an array of {self.name!r:.20}")
        return _INTEGERS[self.name].newbyteorder(self.order)


class _Array:
    """Stands in for numpy.ndarray: remembers shape, type and content until all is checked."""

    state: tuple | None = None

    def __setstate__(self, state: tuple) -> None:
        self.state = state

    def entries(self) -> np.ndarray | list[Any]:
        """An integer array, or an object array as one entry a row."""
        if self.state is None:
            raise _Refused("it holds an array without content")
        _, shape, description, column_order, content = self.state
        if not isinstance(description, _Description) or any(type(side) is not int or side < 0 for side in shape):
            raise _Refused("it describes an array wrongly")
        if description.name in ("O8", "O", "O4"):
            if not isinstance(content, list) or len(content) != math.prod(shape) or len(shape) not in (1, 2):
                raise _Refused("its object array doesn't have the shape it claims")
            values = [_finished(value) for value in content]
            if len(shape) == 1:
                return values
            if column_order:
                return [values[row :: shape[0]] for row in range(shape[0])]
            return [values[row * shape[1] : (row + 1) * shape[1]] for row in range(shape[0])]
        dtype = description.integers()
        content = content.encode("latin1") if isinstance(content, str) else content
        if not isinstance(content, bytes) or len(content) != math.prod(shape) * dtype.itemsize:
            raise _Refused("its array doesn't have the size it claims")
        return np.frombuffer(content, dtype).reshape(shape, order="F" if column_order else "C")


def _finished(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.entries()
    # Lists are left as they are: what is inside is checked where it is used, one level deep.
    if isinstance(value, (int, str, list, tuple)) and not isinstance(value, bool):
        return value
    raise _Refused(f"it holds {type(value).__name__}")


def _scalar(description: Any, content: Any) -> int:
    content = content.encode("latin1") if isinstance(content, str) else content
    return int(np.frombuffer(content, description.integers())[0])


def _latin1(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise _Refused("it encodes text in another way than NumPy does")
    return codecs.encode(text, "latin1")


def _not_called(*_: Any) -> None:
    raise _Refused("it makes an array in another way than NumPy does")


class _Call:
    """What a pickle may call; unlike a plain function or class it can't be changed by the pickle."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise _Refused("it changes what it calls")


_ALLOWED = {
    ("numpy", "ndarray"): _Call(_not_called),
    ("numpy", "dtype"): _Call(_Description),
    ("_codecs", "encode"): _Call(_latin1),
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED[_module, "_reconstruct"] = _Call(lambda *_: _Array())
    _ALLOWED[_module, "scalar"] = _Call(_scalar)


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _Refused(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]
