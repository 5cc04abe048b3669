import json

import numpy as np
import pytest

from d2vpr_hf.protocols.positives import read_positives

DATABASE = ["a/0.jpg", "a/1.jpg", "b/1.jpg", "b/2.jpg", "3.jpg"]
QUERIES = ["day/0.jpg", "night/0.jpg", "night/1.jpg"]


def read(positives):
    return read_positives(positives, database_names=DATABASE, query_names=QUERIES)


def test_names_become_sorted_rows():
    rows = read({"day/0.jpg": ["b/2.jpg", "0.jpg", "a/0.jpg"], "1.jpg": ["b/1.jpg", "3.jpg"]})
    assert [row.tolist() for row in rows] == [[0, 3], [], [2, 4]]
    assert all(row.dtype == np.int64 for row in rows)


def test_a_file_is_read_as_a_dict_is(tmp_path):
    path = tmp_path / "positives.json"
    path.write_text(json.dumps({"night/0.jpg": ["3.jpg"]}))
    assert [row.tolist() for row in read(path)] == [[], [4], []]


def test_pairs_of_numbers_become_positives():
    # A ground truth of numbered frames is written down as {query number: [database numbers]}; with the frames' names
    # it is a positives file.
    ground_truth = {"0": [0, 1], "1": [2]}
    named = {f"{int(query):07d}.jpg": [f"{row:07d}.jpg" for row in rows] for query, rows in ground_truth.items()}
    names = [f"{number:07d}.jpg" for number in range(3)]
    rows = read_positives(named, database_names=names, query_names=names)
    assert [row.tolist() for row in rows] == [[0, 1], [2], []]


def test_an_end_of_a_path_fits_whole_folder_names_only():
    with pytest.raises(ValueError, match=r"ay/0\.jpg fit no query photo"):
        read({"ay/0.jpg": ["3.jpg"]})


def test_names_that_fit_nothing_or_several_are_all_listed():
    problems = (
        r"night/7\.jpg fit no query photo; 0\.jpg fit more than one query photo; "
        r"x\.jpg, y\.jpg fit no database photo; 1\.jpg fit more than one database photo"
    )
    with pytest.raises(ValueError, match=problems):
        read({"0.jpg": ["1.jpg"], "night/7.jpg": ["x.jpg", "y.jpg"]})
    with pytest.raises(ValueError, match=r"9\.jpg and 20 more fit no database photo"):
        read({"day/0.jpg": [f"none{number}.jpg" for number in range(30)]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "isn't JSON"),
        ("[]", "holds a list"),
        ('{"green.png": ["red.png"], "green.png": []}', "lists green.png more than once"),
        ('{"green.png": null}', "must give a list"),
    ],
)
def test_wrong_positives_files_are_refused(tmp_path, content, message):
    path = tmp_path / "positives.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read(path)
