"""Every protocol on a small tree in exactly its layout: which photos, in which order, and what counts as right."""

import logging
import shutil
from pathlib import Path

import numpy as np
import protocol_trees as trees
import pytest

from d2vpr_hf.photos.positions import positives_within
from d2vpr_hf.protocols.open import open_protocol, write_predictions
from d2vpr_hf.protocols.records import PROTOCOLS, find_record
from d2vpr_hf.town.make import make_town

METADATA = Path(__file__).parents[3] / "shared" / "data" / "metadata"

CASES = [
    pytest.param(name, build, id=f"{name}-{number}")
    for name, builders in trees.TREES.items()
    for number, build in enumerate(builders)
]


def as_lists(positives: list[np.ndarray] | None) -> list[list[int]] | None:
    return None if positives is None else [rows.tolist() for rows in positives]


def test_every_protocol_has_a_tree():
    assert {record.id for record in PROTOCOLS} == {*trees.TREES, "gsv-cities"}
    assert len({record.id for record in PROTOCOLS}) == len(PROTOCOLS)


@pytest.mark.parametrize(("name", "build"), CASES)
def test_positives_are_those_worked_out_by_hand(name, build, tmp_path):
    expected = build(tmp_path)
    opened = open_protocol(name, tmp_path)
    assert as_lists(opened.positives) == expected
    assert all(path.is_file() for split in opened.splits.values() for path in split.photos.paths)
    assert all(rows.dtype == np.int64 for rows in opened.positives or [])


def test_msls_leaves_out_what_the_official_rule_leaves_out(tmp_path):
    trees.msls_val(tmp_path)
    opened = open_protocol("msls-val-740", tmp_path)
    assert opened.database.photos.names[:3] == [f"cph/database/images/cd{number}.jpg" for number in (0, 3, 4)]
    assert opened.queries.photos.names == [
        f"{city}/query/images/{city[0]}q{number}.jpg" for city in ("cph", "sf") for number in (0, 3)
    ]
    assert opened.left_out == ["cph/query/images/cq1.jpg", "sf/query/images/sq1.jpg"]
    assert opened.queries.details["sequence"] == ["seq0", "seq1"] * 2
    assert opened.queries.details["heading_deg"] == [87.5] * 4
    assert opened.queries.details["time"] == ["2014-09-10"] * 4


def test_msls_takes_the_published_lists_where_they_lie_beside_the_cities(tmp_path):
    trees.msls_val(tmp_path)
    database = [f"train_val/{city}/database/images/{city[0]}d{row}.jpg" for city in ("cph", "sf") for row in range(5)]
    queries = [f"train_val/{city}/query/images/{city[0]}q{row}.jpg" for city in ("cph", "sf") for row in range(4)]
    np.save(tmp_path / "msls_val_dbImages.npy", database)
    np.save(tmp_path / "msls_val_qImages.npy", queries)
    np.save(tmp_path / "msls_val_qIdx.npy", np.array([0, 5]))
    ragged = np.empty(2, object)
    ragged[:] = [np.array([0, 1]), np.array([9])]
    np.save(tmp_path / "msls_val_pIdx.npy", ragged, allow_pickle=True)
    opened = open_protocol("msls-val-740", tmp_path)
    assert as_lists(opened.positives) == [[0, 1], [9]]
    assert opened.queries.photos.names == ["cph/query/images/cq0.jpg", "sf/query/images/sq1.jpg"]
    assert opened.queries.photos.paths[1] == tmp_path / "train_val/sf/query/images/sq1.jpg"
    assert opened.queries.photos.positions.known.all()
    assert opened.queries.details["frame_number"] == [0, 1]
    # The lists may name panoramas and frames of no task: the tables know them too.
    assert len(opened.database) == 10
    assert opened.database.photos.positions.known.all()
    (tmp_path / "train_val/sf/database/seq_info.csv").unlink()
    without = open_protocol("msls-val-740", tmp_path)
    assert as_lists(without.positives) == [[0, 1], [9]]
    assert not without.database.photos.positions.known.any()


def test_msls_test_has_no_positives_and_writes_the_challenge_file(tmp_path):
    trees.msls_test(tmp_path)
    opened = open_protocol("msls-test", tmp_path)
    assert opened.positives is None
    assert len(opened.database) == len(opened.queries) == 6
    ranking = np.array([[row, (row + 1) % 6, -1] for row in range(6)])
    path = write_predictions(
        tmp_path / "predictions.txt",
        ranking,
        query_names=opened.queries.photos.names,
        database_names=opened.database.photos.names,
    )
    assert path.read_text().splitlines()[:2] == ["miamiq miami0 athens0", "athensq athens0 buenosaires0"]
    with pytest.raises(ValueError, match="rows from -1 to 5, but the database has 3"):
        write_predictions(path, ranking, query_names=["q"] * 6, database_names=["a", "b", "c"])


def test_a_listed_ground_truth_wins_over_the_rule_of_the_frames(tmp_path):
    trees.numbered(31, 4)(tmp_path)
    trees.save_pairs(tmp_path / "ground_truth_new.npy", [[0], [9, 11], [20], [30]])
    opened = open_protocol("nordland-vprbench-1frame", tmp_path)
    assert as_lists(opened.positives) == [[0], [9, 11], [20], [30]]
    assert "ground_truth_new.npy" in opened.rule


def test_pairs_in_utm_names_are_pairs_too(tmp_path):
    for side in ("database", "queries"):
        for number in (0, 1, 12):
            trees.write_photo(tmp_path / "images/test" / side / f"@0@{number * 1000}@@@@@{number:07d}@@@@@@@@.jpg")
    for name in ("sped", "amstertime"):
        assert as_lists(open_protocol(name, tmp_path).positives) == [[0], [1], [2]]


def test_a_made_town_in_utm_names(tmp_path):
    make_town(tmp_path, places=3, views=2, queries=5, easy_queries=0, height=24, width=32)
    opened = open_protocol("pitts30k-test", tmp_path)
    sides = []
    for split in (opened.database, opened.queries):
        fields = [name.split("@") for name in split.photos.names]
        sides.append(np.array([[float(each[1]), float(each[2])] for each in fields]))
        assert split.details["heading_deg"] == [float(each[9]) for each in fields]
        assert all(time[:2] == "20" and time[10] == "T" for time in split.details["time"])
    metres = np.linalg.norm(sides[1][:, None] - sides[0][None], axis=-1)
    assert as_lists(opened.positives) == [np.flatnonzero(row <= 25).tolist() for row in metres]
    # Two views of the one place that a query shows.
    assert [len(rows) for rows in opened.positives] == [2] * 5


def test_gsv_cities_is_a_training_set_of_places(tmp_path):
    make_town(tmp_path, places=3, views=4, layout="gsv", height=24, width=32)
    opened = open_protocol("gsv-cities", tmp_path)
    assert list(opened.splits) == ["train"]
    assert opened.positives is None
    assert sorted(opened.database.details["place"]) == [place for place in range(3) for _ in range(4)]
    names = opened.database.photos.names
    assert opened.database.details["heading_deg"] == [float(name.split("_")[-4]) for name in names]
    assert opened.database.photos.positions.known.all()


def test_own_folders_with_a_list_with_coordinates_and_without_either(tmp_path):
    for side, names in (("database", "abc"), ("queries", "xy")):
        for name in names:
            trees.write_photo(tmp_path / side / f"{name}.jpg")
    assert open_protocol("folders", tmp_path).positives is None
    (tmp_path / "positives.json").write_text('{"x.jpg": ["a.jpg", "c.jpg"]}')
    assert as_lists(open_protocol("folders", tmp_path).positives) == [[0, 2], []]


# Broken variants.


def test_a_missing_listed_photo_is_named(tmp_path):
    trees.dbstruct("pitts30k_test.mat", "queries_real")(tmp_path)
    (tmp_path / "000/000001_pitch1_yaw1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of the 3 photos .* 000/000001_pitch1_yaw1.jpg"):
        open_protocol("pitts30k-test", tmp_path)


def test_a_missing_frame_is_named(tmp_path):
    trees.nordland_vprbench(tmp_path)
    (tmp_path / "ref/0000017.jpg").unlink()
    with pytest.raises(ValueError, match="numbers up to 30, but 1 are missing, first 17"):
        open_protocol("nordland-vprbench-1frame", tmp_path)


def test_a_missing_frame_of_utm_names_moves_no_other(tmp_path):
    trees.nordland_vg(tmp_path)
    (tmp_path / "images/test/database" / trees.mock_name(5, 25 / 10.5)).unlink()
    positives = open_protocol("nordland-vg-10frames", tmp_path).positives
    # Frame 11 sees frames 1 to 21 without 5: rows 1 to 4 and, one lower than their numbers, 5 to 20.
    assert positives[11].tolist() == [row for row in range(22) if 1 <= row <= 20]
    assert len(positives[0]) == 10


def test_another_count_is_a_warning(tmp_path, caplog):
    trees.utm(zone=17)(tmp_path)
    with caplog.at_level(logging.WARNING):
        open_protocol("pitts30k-test", tmp_path)
    assert "3 photos in database, but pitts30k-test has 10,000 (counted in Patch-NetVLAD's lists)" in caplog.text


def test_at_signs_in_parent_folders_and_upper_case_suffixes_are_read(tmp_path):
    root = tmp_path / "me@home" / "pitts30k"
    expected = trees.utm(zone=17)(root)
    for path in list(root.rglob("*.jpg")):
        path.rename(path.with_suffix(".JPG"))
    assert as_lists(open_protocol("pitts30k-test", root).positives) == expected


def test_queries_without_positives_stay_with_an_empty_list(tmp_path):
    trees.utm(zone=17)(tmp_path)
    trees.write_photo(tmp_path / "images/test/queries" / trees.utm_name(900.0, zone=17))
    opened = open_protocol("pitts30k-test", tmp_path)
    assert as_lists(opened.positives) == [*trees.NEAR, []]
    assert opened.record.denominator == "all"


def test_two_zones_are_measured_across_their_border(tmp_path):
    # 500 km east of zone 10's middle and west of zone 11's middle at this latitude meet at -120 degrees.
    from d2vpr_hf.photos.positions import Positions

    west, east = (
        Positions.from_degrees([36.0, 36.0], [-120.0001, -119.9999])[[0]],
        Positions.from_degrees([36.0], [-119.9999]),
    )
    for side, position in (("database", west), ("queries", east)):
        name = f"@{position.easting[0]:.2f}@{position.northing[0]:.2f}@{position.zone[0]}@S@@@@@@@@@@@.jpg"
        trees.write_photo(tmp_path / "images/test" / side / name)
    assert (west.zone[0], east.zone[0]) == (10, 11)
    assert as_lists(open_protocol("st-lucia", tmp_path).positives) == [[0]]  # 18 m apart


def test_a_wrong_folder_shows_the_layouts(tmp_path):
    trees.write_photo(tmp_path / "photo.jpg")
    with pytest.raises(ValueError, match=r"holds photo.jpg, which is not a layout of sped(.|\n)*ref/0000000.jpg"):
        open_protocol("sped", tmp_path)
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        open_protocol("sped", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="Did you mean pitts30k-test"):
        open_protocol("pitts30k_test", tmp_path)


def test_a_split_is_not_taken_for_another(tmp_path):
    trees.utm("images/val/database", "images/val/queries")(tmp_path)
    with pytest.raises(ValueError, match="not a layout of pitts30k-test"):
        open_protocol("pitts30k-test", tmp_path / "images/val")
    assert len(open_protocol("pitts30k-val", tmp_path / "images/val").database) == 3


def test_vprbench_without_its_ground_truth_says_so(tmp_path):
    trees.vprbench(tmp_path)
    (tmp_path / "ground_truth_new.npy").unlink()
    with pytest.raises(ValueError, match="takes its positives from a file of the set"):
        open_protocol("vprbench", tmp_path)


# The published lists, where they are there; the same rules are tested on small trees above.

needs_lists = pytest.mark.skipif(not METADATA.is_dir(), reason="the published lists aren't there")


def read_lists(name: str, folder: str = "patch_netvlad"):
    record = find_record(name)
    layout = next(each for each in record.layouts if each.find(METADATA / folder))
    return record, layout.read(METADATA / folder)


@needs_lists
def test_pitts30k_test_has_the_published_positives():
    record, reading = read_lists("pitts30k-test")
    positives, _ = record.rule.positives(reading)
    counts = np.array([len(rows) for rows in positives])
    assert (len(counts), counts.min(), counts.max(), round(counts.mean())) == (6816, 24, 360, 142)


@needs_lists
def test_tokyo_agrees_with_its_own_radius():
    record, reading = read_lists("tokyo247")
    positives, _ = record.rule.positives(reading)
    with np.load(METADATA / "patch_netvlad/tokyo247.npz") as arrays:
        for query in range(0, 315, 7):
            metres = np.linalg.norm(arrays["utmDb"] - arrays["utmQ"][query], axis=1)
            assert positives[query].tolist() == np.flatnonzero(metres <= arrays["posDistThr"]).tolist()
    assert (len(positives), min(map(len, positives)), max(map(len, positives))) == (315, 48, 240)


@needs_lists
def test_nordland_agrees_with_its_own_radius_and_with_the_frames():
    record, reading = read_lists("nordland-vg-10frames")
    with np.load(METADATA / "patch_netvlad/nordland.npz") as arrays:
        radius, metres = float(arrays["posDistThr"]), arrays["utmDb"]
    database, queries = reading.database.photos.positions, reading.queries.photos.positions
    near = positives_within(database, queries, radius)
    for query in (0, 5, 13_000, 27_591):
        expected = np.flatnonzero(np.linalg.norm(metres - metres[query], axis=1) <= radius)
        assert near[query].tolist() == expected.tolist()
        # Its two columns hold the same number, so the radius of 10 reaches 7 frames (7 * 1.414 = 9.9).
        assert expected.tolist() == list(range(max(0, query - 7), min(27_591, query + 7) + 1))
    frames, _ = record.rule.positives(reading)
    assert frames[13_000].tolist() == list(range(12_990, 13_011))


@needs_lists
def test_msls_val_lists_740_queries(tmp_path):
    for city in ("cph", "sf"):
        for side in ("database", "query"):
            (tmp_path / city / side / "images").mkdir(parents=True)
    for name in ("qImages", "qIdx", "pIdx"):
        shutil.copy(METADATA / "gsv_cities/msls_val" / f"msls_val_{name}.npy", tmp_path)
    database = [
        "/".join(Path(line).parts[-5:])
        for city in ("cph", "sf")
        for line in (METADATA / f"patch_netvlad/mapillary{city}_imageNames_index.txt").read_text().split()
    ]
    np.save(tmp_path / "msls_val_dbImages.npy", database)
    record = find_record("msls-val-740")
    reading = record.layouts[0].read(tmp_path)
    assert (len(reading.database), len(reading.queries)) == (18_871, 740)
    assert record.queries.fits(len(reading.queries))
    assert record.database.fits(len(reading.database))
    assert min(map(len, reading.listed)) >= 1
    # The 740 are also what Patch-NetVLAD lists, in the same order.
    lines = [
        line
        for city in ("cph", "sf")
        for line in (METADATA / f"patch_netvlad/mapillary{city}_imageNames_query.txt").read_text().split()
    ]
    assert [Path(line).name for line in lines] == [Path(name).name for name in reading.queries.photos.names]


@needs_lists
def test_published_ground_truths_follow_the_rules_of_the_records():
    from d2vpr_hf.protocols.object_arrays import read_positive_rows
    from d2vpr_hf.protocols.rules import positives_by_frame

    folder = METADATA / "gsv_cities"
    for file, database, step, queries, reach in (
        ("Nordland/Nordland_gt.npy", 27_592, 10, 2_760, 1),
        ("SPED/SPED_gt.npy", 607, 1, 607, 0),
        ("ESSEX/ESSEX_gt.npy", 210, 1, 210, 0),
    ):
        listed = read_positive_rows(folder / file, queries=queries, database=database)
        by_rule = positives_by_frame(np.arange(database), np.arange(queries) * step, reach)
        assert as_lists(listed) == as_lists(by_rule)


def test_lists_that_lead_out_of_the_folder_are_refused(tmp_path):
    trees.image_lists("pitts30k", "pitts30k_test.npz")(tmp_path)
    listed = tmp_path / "pitts30k_imageNames_query.txt"
    listed.write_text("./b/0.jpg\n./../../secret.jpg\n")
    with pytest.raises(ValueError, match=r"names '../../secret.jpg', outside of the set's folder"):
        open_protocol("pitts30k-test", tmp_path)
    listed.write_text("./b/0.jpg\n")
    with pytest.raises(ValueError, match="positions of 2 photos, but 1 names are listed"):
        open_protocol("pitts30k-test", tmp_path)


def test_tables_that_do_not_fit_are_named(tmp_path):
    trees.msls_val(tmp_path)
    table = tmp_path / "train_val/sf/query/raw.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:-1]))
    with pytest.raises(ValueError, match=r"train_val/sf/query have .*'raw': 3.* rows, but need one a photo each"):
        open_protocol("msls-val-740", tmp_path)
    table.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"query/raw.csv lacks the columns \['lat', 'lon', 'ca'"):
        open_protocol("msls-val-740", tmp_path)
    table.write_text("")
    with pytest.raises(ValueError, match=r"query/raw.csv is not a table"):
        open_protocol("msls-val-740", tmp_path)
    table.unlink()
    with pytest.raises(ValueError, match=r"raw.csv is missing, but it says which photos belong to msls_val"):
        open_protocol("msls-val-740", tmp_path)


@pytest.mark.parametrize("content", [b"", b"junk" * 100, b"PK junk"])
def test_damaged_files_of_positions_are_named(tmp_path, content):
    trees.dbstruct("pitts30k_test.mat", "queries_real")(tmp_path / "mat")
    (tmp_path / "mat/datasets/pitts30k_test.mat").write_bytes(content)
    with pytest.raises(ValueError, match=r"pitts30k_test.mat can't be read .* but should hold dbStruct"):
        open_protocol("pitts30k-test", tmp_path / "mat")
    trees.image_lists("pitts30k", "pitts30k_test.npz")(tmp_path / "lists")
    (tmp_path / "lists/pitts30k_test.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"pitts30k_test.npz can't be read .* but should hold utmDb and utmQ"):
        open_protocol("pitts30k-test", tmp_path / "lists")


def test_empty_folders_and_doubled_numbers_are_named(tmp_path):
    for side in ("database", "queries"):
        (tmp_path / "images/test" / side).mkdir(parents=True)
    with pytest.raises(ValueError, match="test/database holds no database photos of eynsham"):
        open_protocol("eynsham", tmp_path)
    trees.pairs(tmp_path)
    trees.write_photo(tmp_path / "ref/0000001.png")
    with pytest.raises(ValueError, match="ref has the number 1 more than once"):
        open_protocol("sped", tmp_path)
    (tmp_path / "ref/0000001.png").rename(tmp_path / "ref/abc.png")
    with pytest.raises(ValueError, match=r"holds 'abc.png', but photos of this layout are named by a number"):
        open_protocol("sped", tmp_path)
