"""Reads the published `.npy` lists of names and positives without ever running what a file says.

NumPy stores ragged lists as pickles, and opening a pickle can run any program. Here a pickle's steps are carried out by
this file alone, as far as they put together arrays, lists, text and integers; any other step is refused. NumPy's own
unpickling isn't used, because a forged array description can make it read memory that isn't its own.
"""

import io
import math
import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_VALUES = frozenset(
    [
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    ]
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
# What a pickle of arrays names.
_NAMED = frozenset(
    [("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")]
    + [(module, name) for module in _MULTIARRAY for name in ("_reconstruct", "scalar")]
)
_INTEGERS = {f"{kind}{size}": np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)}
# An array of queries, of pairs, of rows: nothing published lies deeper.
_DEPTH = 3


def read_names(path: str | Path) -> list[str]:
    """The names in an `.npy` file, an array of text or an object array of text.

    Raises: ValueError naming the file and the first entry that isn't text, or as `read_positive_rows`.
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
    return entries


def read_row_numbers(path: str | Path) -> np.ndarray:
    """(rows,) int64 from an `.npy` file of integers, such as the kept queries of a list.

    Raises: ValueError naming the file if it isn't one row of integers, or as `read_positive_rows`.
    """
    return _as_rows(_read_array(Path(path)), f"{path}")


def read_positive_rows(path: str | Path, *, queries: int, database: int) -> list[np.ndarray]:
    """For each query its positives as rows of the database, ascending, from an `.npy` file.

    Known shapes: one array or list a query, one number a query, and VPR-Bench's pairs (query number, list).

    Args:
        queries: how many queries there are.
        database: how many database photos there are.

    Raises: ValueError naming the file and the query if there is not one entry a query, an entry is anything but
        integers, or a row isn't in the database; if the file holds or builds anything but arrays, lists, text and
        integers.
    """
    entries = list(_read_array(Path(path)))
    if len(entries) != queries:
        raise ValueError(
            f"{path} has positives for {len(entries)} queries, but there are {queries}. "
            "Use the ground truth and the query photos of one release."
        )
    positives = []
    for query, entry in enumerate(_without_query_numbers(entries, path)):
        entry = [int(entry)] if isinstance(entry, np.integer) or type(entry) is int else entry
        rows = np.unique(_as_rows(entry, f"{path}, query {query}"))
        if len(rows) and not 0 <= rows[0] <= rows[-1] < database:
            wrong = rows[0] if rows[0] < 0 else rows[-1]
            raise ValueError(
                f"{path}, query {query} names database row {wrong}, but rows go from 0 to {database - 1}. "
                "Use the ground truth and the database photos of one release."
            )
        positives.append(rows)
    return positives


def _without_query_numbers(entries: list[Any], path: str | Path) -> list[Any]:
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
    return isinstance(entry, (list, np.ndarray))


def _as_rows(entry: Any, where: str) -> np.ndarray:
    integers = isinstance(entry, list) and all(type(value) is int for value in entry)
    if integers or (isinstance(entry, np.ndarray) and entry.dtype.kind in "iu" and entry.ndim == 1):
        return np.array(entry, np.int64)
    raise ValueError(
        f"{where} holds {entry!r:.60}, but should be a list of row numbers (integers of at least 0). "
        "Give the file that lists positives."
    )


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
        if len(shape) not in (1, 2) or min(shape) < 0 or 0 in shape[1:] or not dtype.itemsize:
            raise ValueError(f"it holds {dtype} of shape {shape}")
    # NumPy reads the head with Python's own parser, which raises whatever it stumbles over: the file is at fault.
    except Exception as error:
        raise ValueError(f"{path} is not an .npy file of a list ({error!s:.80}). Download it again.") from error
    content = data[stream.tell() :]
    if dtype.hasobject:
        entries = _unpickled(content, path)
        if len(entries) != shape[0]:
            raise ValueError(f"{path} has {len(entries)} rows, but its head says {shape}. Download it again.")
        return entries
    if dtype.kind not in "iuU":
        raise ValueError(f"{path} holds {dtype}, but should hold names or row numbers. Give another file.")
    if (expected := math.prod(shape) * dtype.itemsize) != len(content):
        raise ValueError(
            f"{path} has {len(content)} bytes of content, but its head says {expected}. Download it again."
        )
    return np.frombuffer(content, dtype).reshape(shape, order="F" if column_order else "C")


def _unpickled(data: bytes, path: Path) -> list[Any]:
    try:
        return _Plain(len(data)).of_array(_carried_out(data))
    except _Refused as error:
        raise ValueError(
            f"{path} is a pickle that does more than list photos: {error}. Nothing of it was run. Don't use this file; "
            "get it again from the set's authors."
        ) from error
    except _Damaged as error:
        raise ValueError(f"{path} is cut short or damaged ({error}). Download it again.") from error
    except Exception as error:  # wrong steps in the right names end in any exception
        raise ValueError(f"{path} can't be read as arrays and lists ({error!r:.80}). Download it again.") from error


class _Refused(Exception):  # noqa: N818 - becomes a ValueError with the file's name
    pass


class _Damaged(Exception):  # noqa: N818 - as above
    pass


class _Type:
    """What a pickle says of an array's type."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name, self.order = name, "<"

    def build(self, state: tuple) -> None:
        self.order = state[1]

    def numbers(self, content: str | bytes) -> np.ndarray:
        if self.name not in _INTEGERS or self.order not in ("<", ">", "|", "="):
            raise _Refused(f"it holds an array of {self.name!r:.20}")
        content = content.encode("latin1") if isinstance(content, str) else content
        dtype = _INTEGERS[self.name].newbyteorder(self.order)
        if not isinstance(content, bytes) or len(content) % dtype.itemsize:
            raise _Refused("its array doesn't have the size it claims")
        return np.frombuffer(content, dtype)


class _Array:
    """What a pickle says of an array, which is put together when all of it is known."""

    def build(self, state: tuple) -> None:
        _, self.shape, self.type, self.column_order, self.content = state


def _steps(data: bytes) -> Iterator[tuple[str, Any]]:
    try:
        for step, argument, _ in pickletools.genops(data):
            yield step.name, argument
    except Exception as error:  # pickletools raises whatever it stumbles over: the file is at fault
        raise _Damaged(error) from error


def _carried_out(data: bytes) -> Any:
    """What the steps of a pickle put together, of values of this file alone."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def taken(count: int | None = None) -> list[Any]:
        """The last so many values, or those since the last mark."""
        start = marks.pop() if count is None else len(stack) - count
        values = stack[start:]
        del stack[start:]
        return values

    for name, argument in _steps(data):
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("EMPTY_LIST", "LIST"):
            stack.append(taken(0 if name == "EMPTY_LIST" else None))
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(taken(int(name[5:]) if name[5:] else None)))
        elif name in ("APPEND", "APPENDS"):
            values = taken(1 if name == "APPEND" else None)
            list.extend(stack[-1], values)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            named = tuple(argument.split(" ", 1) if name == "GLOBAL" else taken(2))
            if named not in _NAMED:
                raise _Refused(f"it asks for {'.'.join(map(str, named))}")
            stack.append(named)
        elif name == "REDUCE":
            function, arguments = taken(2)
            stack.append(_called(function, *arguments))
        elif name == "BUILD":
            (state,) = taken(1)
            if not isinstance(stack[-1], _Array | _Type):
                raise _Refused("it changes what it calls")
            stack[-1].build(state)
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "POP_MARK":
            taken()
        elif name == "STOP":
            return stack[-1]
        elif name not in ("PROTO", "FRAME"):
            raise _Refused(f"it has the step {name}")
    raise _Damaged("it has no end")


def _called(function: Any, *arguments: Any) -> Any:
    module, name = function if function in _NAMED else ("", "")
    if name == "_reconstruct":
        return _Array()
    if name == "scalar":
        description, content = arguments
        return int(description.numbers(content)[0])
    if name == "dtype":
        return _Type(*arguments)
    if module == "_codecs" and arguments[1] == "latin1":
        return str.encode(arguments[0], "latin1")
    raise _Refused(f"it calls {name or 'a value'} in another way than NumPy does")


class _Plain:
    """Turns what was put together into arrays, lists, text and integers, no more of them than the file has bytes.

    A list may be named many times over, or hold itself, so that a small file could stand for more than any memory.
    """

    def __init__(self, most: int) -> None:
        self._left = 2 * most

    def of_array(self, array: _Array, depth: int = _DEPTH) -> np.ndarray | list[Any]:
        """An integer array, or an object array as one entry a row."""
        shape, content = array.shape, array.content
        if (
            not isinstance(array.type, _Type)
            or len(shape) not in (1, 2)
            or any(type(side) is not int for side in shape)
        ):
            raise _Refused("it describes an array wrongly")
        if array.type.name not in ("O8", "O", "O4"):
            numbers = array.type.numbers(content)
            if numbers.size != math.prod(shape):
                raise _Refused("its array doesn't have the size it claims")
            self._count(numbers.size)
            return numbers.reshape(shape, order="F" if array.column_order else "C")
        if not isinstance(content, list) or len(content) != math.prod(shape) or 0 in shape[1:]:
            raise _Refused("its object array doesn't have the shape it claims")
        values = self._of(content, depth)
        if len(shape) == 1:
            return values
        rows, columns = shape
        if array.column_order:
            return [values[row::rows] for row in range(rows)]
        return [values[row * columns : (row + 1) * columns] for row in range(rows)]

    def _of(self, value: Any, depth: int) -> Any:
        if isinstance(value, _Array) and depth:
            return self.of_array(value, depth - 1)
        if isinstance(value, list | tuple) and depth:
            self._count(len(value))
            return [self._of(each, depth - 1) for each in value]
        if isinstance(value, str) or (isinstance(value, int) and abs(value) < 2**63):
            return value
        kind = "a number beyond 64 bits" if isinstance(value, int) else type(value).__name__.strip("_").lower()
        raise _Refused(f"it holds {kind}{'' if depth else f' {_DEPTH} lists deep'}")

    def _count(self, entries: int) -> None:
        self._left -= entries
        if self._left < 0:
            raise _Refused("it names the same entries over and over")
