"""Published `.npy` lists are read, and a pickle that does anything else is refused before it runs."""

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from d2vpr_hf.protocols.object_arrays import read_names, read_positive_rows, read_row_numbers

METADATA = Path(__file__).parents[3] / "shared" / "data"


def as_lists(rows: list[np.ndarray]) -> list[list[int]]:
    return [each.tolist() for each in rows]


def save_object(path: Path, entries: list) -> Path:
    array = np.empty(len(entries), object)
    array[:] = entries
    np.save(path, array, allow_pickle=True)
    return path


def save_raw(path: Path, payload: bytes, rows: int = 1) -> Path:
    """An `.npy` file of one object array whose pickle is given byte for byte."""
    head = f"{{'descr': '|O', 'fortran_order': False, 'shape': ({rows},), }}".ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + payload)
    return path


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ([np.array([0, 1]), np.array([2]), np.array([], np.int64)], [[0, 1], [2], []]),
        ([[2, 0], [1, 1], []], [[0, 2], [1], []]),
        ([np.array([1], ">i4"), np.array([2], np.uint8), [0]], [[1], [2], [0]]),
        ([0, np.int64(2), 1], [[0], [2], [1]]),
    ],
)
def test_ragged_lists(tmp_path, saved, expected):
    path = save_object(tmp_path / "gt.npy", saved)
    rows = read_positive_rows(path, queries=3, database=3)
    assert as_lists(rows) == expected
    assert {each.dtype for each in rows} == {np.dtype(np.int64)}


def test_plain_arrays_need_no_pickle(tmp_path):
    np.save(tmp_path / "column.npy", np.array([[0], [1], [2]]))
    np.save(tmp_path / "flat.npy", np.array([2, 1, 0], np.int32))
    np.save(tmp_path / "wide.npy", np.asfortranarray([[0, 1], [1, 2], [2, 0]]))
    assert as_lists(read_positive_rows(tmp_path / "column.npy", queries=3, database=3)) == [[0], [1], [2]]
    assert as_lists(read_positive_rows(tmp_path / "flat.npy", queries=3, database=3)) == [[2], [1], [0]]
    assert as_lists(read_positive_rows(tmp_path / "wide.npy", queries=3, database=3)) == [[0, 1], [1, 2], [0, 2]]
    assert read_row_numbers(tmp_path / "flat.npy").tolist() == [2, 1, 0]


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pairs_of_query_number_and_list(tmp_path, protocol):
    table = np.empty((3, 2), object)
    for query, rows in enumerate([[0, 1], [1], [2, 0]]):
        table[query] = [query, rows]
    head = "{'descr': '|O', 'fortran_order': False, 'shape': (3, 2), }".ljust(117) + "\n"
    path = tmp_path / "ground_truth_new.npy"
    payload = pickle.dumps(table, protocol=protocol)
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + payload)
    assert as_lists(read_positive_rows(path, queries=3, database=3)) == [[0, 1], [1], [0, 2]]


def test_names(tmp_path):
    np.save(tmp_path / "names.npy", np.array(["ref/1.jpg", "ref/2.jpg"]))
    assert read_names(tmp_path / "names.npy") == ["ref/1.jpg", "ref/2.jpg"]
    assert read_names(save_object(tmp_path / "objects.npy", ["a.jpg", "b.jpg"])) == ["a.jpg", "b.jpg"]
    with pytest.raises(ValueError, match=r"row 1 is 7, but should be the name"):
        read_names(save_object(tmp_path / "mixed.npy", ["a.jpg", 7]))


class Hostile:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_hostile_file_runs_nothing(tmp_path, protocol):
    witness = tmp_path / "witness"
    bomb = Hostile(os.system, f"touch {witness}")
    path = save_raw(tmp_path / "gt.npy", pickle.dumps(bomb, protocol=protocol))
    with pytest.raises(
        ValueError, match=r"more than list photos: it asks for (posix|nt)\.system.*Nothing of it was run"
    ):
        read_positive_rows(path, queries=1, database=9)
    assert not witness.exists()
    # The file is a working bomb: pickle itself would have run it.
    pickle.loads(pickle.dumps(bomb, protocol=protocol))
    assert witness.exists()


HOSTILE = {
    "hidden among lists": pickle.dumps([[0], [Hostile(eval, "1")]], 2),
    "an object of a class": pickle.dumps(Path("x"), 2),
    "a persistent id": b"\x80\x02Pid\n.",
    "numpy's loader": pickle.dumps(Hostile(np.load, "x"), 2),
    "numpy's buffers": pickle.dumps(Hostile(np.frombuffer, b"12345678"), 4),
    "a huge memo": b"\x80\x02K\x01r\xff\xff\xff\x7f.",
    "a change to what may be called": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nN}\x86b.",
    "a call of the array's class": b"\x80\x02cnumpy\nndarray\nK\x05\x85R.",
    "text in another encoding": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.",
}


@pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE)
def test_refused_steps(tmp_path, payload):
    with pytest.raises(ValueError, match=r"more than list photos|can't be read as arrays and lists"):
        read_positive_rows(save_raw(tmp_path / "gt.npy", payload), queries=1, database=9)


def array_pickle(shape: str, dtype: str, content: bytes) -> bytes:
    """The steps by which NumPy pickles one array, with a shape, type and content of one's own."""
    return (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01"
        + shape.encode("latin1")
        + f"cnumpy\ndtype\n(U\x02{dtype}K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb".encode(
            "latin1"
        )
        + b"\x89"
        + content
        + b"tb."
    )


def test_forged_arrays_are_refused(tmp_path):
    # Addresses in place of objects: NumPy would follow them.
    forged = array_pickle("K\x01\x85", "O8", b"U\x08AAAAAAAA")
    with pytest.raises(ValueError, match="object array doesn't have the shape it claims"):
        read_positive_rows(save_raw(tmp_path / "gt.npy", forged), queries=1, database=9)
    outer = array_pickle(
        "K\x01\x85", "O8", b"]" + array_pickle("J\xff\xff\xff\x7f\x85", "i8", b"U\x08AAAAAAAA")[2:-1] + b"a"
    )
    with pytest.raises(ValueError, match="array doesn't have the size it claims"):
        read_positive_rows(save_raw(tmp_path / "gt.npy", outer), queries=1, database=9)
    real = array_pickle("K\x01\x85", "O8", b"]" + array_pickle("K\x01\x85", "i8", b"U\x08\x03" + bytes(7))[2:-1] + b"a")
    assert as_lists(read_positive_rows(save_raw(tmp_path / "gt.npy", real), queries=1, database=9)) == [[3]]


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ([[0], [9]], "query 1 names database row 9, but rows go from 0 to 3"),
        ([[0], [-1]], "query 1 names database row -1"),
        ([[0], ["1"]], "query 1 holds .* but should be a list of row numbers"),
        ([[0], [True]], "query 1 holds"),
        ([[0], [1.5]], "can't be read|step BINFLOAT"),
        ([[0], [[1]]], "query 1 holds"),
        ([[0], [2**70]], "beyond 64 bits"),
        ([[0]], "has positives for 1 queries, but there are 2"),
    ],
)
def test_wrong_entries_name_the_query(tmp_path, entries, complaint):
    with pytest.raises(ValueError, match=complaint):
        read_positive_rows(save_object(tmp_path / "gt.npy", entries), queries=2, database=4)


def test_damaged_files(tmp_path):
    path = save_object(tmp_path / "gt.npy", [[0], [1]])
    data = path.read_bytes()
    path.write_bytes(data[:-9])
    with pytest.raises(ValueError, match="cut short or damaged"):
        read_positive_rows(path, queries=2, database=4)
    path.write_bytes(b"not numpy")
    with pytest.raises(ValueError, match=r"is not an \.npy file"):
        read_positive_rows(path, queries=2, database=4)
    np.save(path, np.array([0.5]))
    with pytest.raises(ValueError, match="float64"):
        read_positive_rows(path, queries=1, database=4)


@pytest.mark.skipif(not METADATA.is_dir(), reason="the published lists aren't there")
def test_published_files_equal_numpys_own_reading():
    """NumPy may unpickle here, because these copies are known."""
    for file, queries, database in (
        ("metadata/gsv_cities/Nordland/Nordland_gt.npy", 2_760, 27_592),
        ("metadata/gsv_cities/msls_val/msls_val_pIdx.npy", 740, 18_871),
        ("metadata/gsv_cities/CrossSeason/CrossSeason_gt.npy", 191, 191),
        ("metadata/gsv_cities/InriaHolidays/Inria_gt.npy", 300, 512),
        ("corridor/datasets/corridor/ground_truth_new.npy", 111, 111),
    ):
        with np.errstate(all="ignore"):
            published = np.load(METADATA / file, allow_pickle=True)
        expected = published[:, 1] if published.ndim == 2 else published
        ours = read_positive_rows(METADATA / file, queries=queries, database=database)
        assert as_lists(ours) == [sorted(int(row) for row in rows) for rows in expected]


def save_head(path: Path, head: str) -> Path:
    text = head.ljust(117).encode("latin1") + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)
    return path


@pytest.mark.parametrize(
    "head",
    [
        "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000, 0), }",
        "{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000,), }",
        "{'descr': '<i8', 'fortran_order': False, 'shape': (1, 1, 1), }",
        "{'descr': '<i8', 'fortran_order': False, 'shape': (3L,), '''}",
        "{'descr': '<i8', 'fortran_order': False, 'shape': (3,), }" + "(" * 30,
        "{'descr': '" + "\x00" * 20 + "', 'shape': (3,), }",
        "[" * 9000,
    ],
)
def test_a_broken_head_is_an_error_that_names_the_file(tmp_path, head):
    path = save_head(tmp_path / "gt.npy", head)
    for read in (read_names, read_row_numbers, lambda path: read_positive_rows(path, queries=3, database=3)):
        with pytest.raises(ValueError, match=r"gt\.npy is not an \.npy file of a list"):
            read(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")
def test_mutated_files_are_read_or_refused_by_name(tmp_path):
    random = np.random.default_rng(0)
    good = save_object(tmp_path / "gt.npy", [[0, 1], np.array([2]), 1]).read_bytes()
    path, complaints = tmp_path / "bad.npy", []
    for _ in range(600):
        data = bytearray(good)
        for place in random.integers(0, len(data), random.integers(1, 4)):
            data[place] = random.integers(256)
        path.write_bytes(data)
        try:
            read_positive_rows(path, queries=3, database=3)
        except ValueError as error:
            complaints.append(str(error))
    assert len(complaints) > 300
    assert all("bad.npy" in complaint for complaint in complaints)


def object_array(content: bytes, shape: str = "K\x01\x85") -> bytes:
    return array_pickle(shape, "O8", content)


ROW = b"](" + b"](K\x01K\x02eq\x00" + b"h\x00" * 3000 + b"eq\x01"  # a short list, 3,001 times
ENDLESS = {
    "a list that holds itself": object_array(b"]q\x00h\x00a"),
    "an entry that holds itself": object_array(b"]]q\x00h\x00aa"),
    "one list over and over": object_array(b"](" + ROW + b"h\x01" * 3000 + b"e", "J\xb9\x0b\x00\x00\x85"),
    "a thousand million rows of nothing": object_array(b"]", "J\x00\xca\x9a\x3bK\x00\x86"),
    "an array of a thousand million rows of nothing": object_array(
        b"]" + array_pickle("J\x00\xca\x9a\x3bK\x00\x86", "i8", b"U\x00")[2:-1] + b"a"
    ),
}


@pytest.mark.parametrize("payload", ENDLESS.values(), ids=ENDLESS)
def test_a_small_file_that_stands_for_endless_lists_is_refused(tmp_path, payload):
    path = save_raw(tmp_path / "gt.npy", payload)
    with pytest.raises(ValueError, match=r"gt\.npy"):
        read_positive_rows(path, queries=1, database=9)
    with pytest.raises(ValueError, match=r"gt\.npy"):
        read_names(path)
