"""Which protocol a folder is, and what is said of one that is broken."""

import json
import os
from pathlib import Path

import numpy as np
import protocol_trees as trees
import pytest
from pyproj import Proj

from d2vpr_hf.protocols.verify import Verification, verify_folder
from d2vpr_hf.town.make import make_town

METADATA = Path(__file__).parents[3] / "shared" / "data" / "metadata"


def link_frames(folder: Path, count: int, suffix: str = ".jpg") -> None:
    """Many photos at the cost of one."""
    folder.mkdir(parents=True)
    first = trees.write_photo(folder / f"{0:07d}{suffix}")
    for number in range(1, count):
        os.link(first, folder / f"{number:07d}{suffix}")


@pytest.fixture
def essex(tmp_path) -> Path:
    root = tmp_path / "essex3in1"
    link_frames(root / "ref", 210)
    link_frames(root / "query", 210)
    np.save(root / "ESSEX_gt.npy", np.arange(210)[:, None])
    return root


def texts(result: Verification) -> tuple[list[str], list[str]]:
    return [f"{each.check}: {each.text}" for each in result.errors], [
        f"{each.check}: {each.text}" for each in result.remarks
    ]


def replace_photo(path: Path, data: bytes) -> None:
    # Unlinked first: the others are the same file.
    path.unlink()
    path.write_bytes(data)


def test_a_whole_set_is_recognised_and_exact(essex):
    result = verify_folder(essex, sample=20)
    assert result.exact
    assert (result.protocol, result.folder) == ("essex3in1", essex)
    assert texts(result) == ([], [])
    assert result.counts == {"database": 210, "queries": 210}
    assert result.opened == {"database": 20, "queries": 20}
    assert result.sizes == {(12, 8): 40}
    assert result.positives == (1, 1.0, 1)
    assert result.text().splitlines()[0] == f"{essex} is exactly essex3in1 (ESSEX3IN1)."
    assert json.loads(json.dumps(result.to_json()))["exact"] is True


def test_a_missing_photo_is_a_wrong_count(essex):
    (essex / "query" / "0000209.jpg").unlink()
    result = verify_folder(essex)
    # The list of positives is one too long for these queries, so nothing can be read.
    assert (result.exact, result.protocol) == (False, None)
    assert any("has positives for 210 queries, but there are 209" in error for error in texts(result)[0])
    (essex / "ESSEX_gt.npy").unlink()
    result = verify_folder(essex)
    assert (result.exact, result.protocol) == (False, "essex3in1")
    errors, _ = texts(result)
    assert errors == [
        "counts: 209 queries, but essex3in1 has 210 (counted in GSV-Cities' lists and VPR-Bench's). "
        "Some are missing: unpack all of the set."
    ]
    assert "not exactly essex3in1" in result.text()
    (essex / "query" / "0000100.jpg").unlink()
    result = verify_folder(essex, "essex3in1")
    assert "1 are missing, first 100" in texts(result)[0][0]


def test_a_photo_that_cannot_be_opened_is_named(essex):
    replace_photo(essex / "ref/0000042.jpg", b"no photo")
    result = verify_folder(essex, sample=None)
    assert not result.exact
    errors, _ = texts(result)
    assert len(errors) == 1
    assert errors[0].startswith("photos: 1 database photos can't be used: 0000042.jpg (not an image")
    assert verify_folder(essex, sample=0).exact


def test_a_list_of_another_protocol_is_an_error(essex):
    np.save(essex / "ESSEX_gt.npy", np.arange(210)[::-1, None])
    errors, _ = texts(verify_folder(essex, sample=0))
    assert len(errors) == 1
    assert "positives: " in errors[0]
    assert "The list is another protocol's" in errors[0]


def test_a_cited_count_is_a_remark_and_a_counted_one_an_error(tmp_path):
    for side in ("database", "queries"):
        for number in range(3):
            trees.write_photo(tmp_path / "images/test" / side / trees.mock_name(number * 420, 25 / 10.5))
    # 1,000 m apart, so pairs: amstertime's counts are only cited, those of sped were counted.
    amstertime = verify_folder(tmp_path, "amstertime")
    assert amstertime.exact
    assert [remark[:49] for remark in texts(amstertime)[1]] == [
        "counts: 3 database photos, but amstertime has 1,2",
        "counts: 3 queries, but amstertime has 1,231 (comm",
    ]
    sped = verify_folder(tmp_path, "sped")
    assert not sped.exact
    assert [error[:7] for error in texts(sped)[0]] == ["counts:"] * 2


def test_names_of_another_nordland_are_an_error(tmp_path):
    trees.nordland_vg(tmp_path)
    errors, _ = texts(verify_folder(tmp_path, "nordland-vg-10frames"))
    assert [error.split(":")[0] for error in errors] == ["counts", "counts"]
    # The same photos are no ±2 frames, and their names say so.
    errors, _ = texts(verify_folder(tmp_path, "nordland-3450-2frames"))
    assert len(errors) == 1
    assert "put 11 database photos within 25 m" in errors[0]
    assert "nordland-3450-2frames has 3" in errors[0]


def utm_tree(root: Path, zone: int = 17) -> Path:
    trees.utm(zone=zone)(root)
    return root


def other_findings(root: Path, protocol: str = "pitts30k-train") -> tuple[list[str], list[str]]:
    """What is said besides the counts, which a small tree doesn't have."""
    errors, remarks = texts(verify_folder(root, protocol))
    return tuple([text for text in each if not text.startswith("counts")] for each in (errors, remarks))


@pytest.fixture
def train(tmp_path) -> Path:
    trees.utm("images/train/database", "images/train/queries", zone=17)(tmp_path / "pitts30k")
    return tmp_path / "pitts30k"


def test_a_small_tree_has_nothing_but_its_counts_against_it(train):
    assert other_findings(train) == ([], [])
    assert verify_folder(train, "pitts30k-train").exact  # its counts are only cited


def test_at_signs_above_the_photos_are_a_remark(train, tmp_path):
    moved = tmp_path / "me@home"
    train.rename(moved)
    errors, remarks = other_findings(moved)
    assert errors == []
    assert len(remarks) == 1
    assert "has an '@' in its name" in remarks[0]


def test_upper_case_suffixes_are_an_error(train):
    path = next((train / "images/train/queries").iterdir())
    path.rename(path.with_suffix(".JPG"))
    errors, _ = other_findings(train)
    assert len(errors) == 1
    assert errors[0].startswith("names: 1 queries end otherwise than in .jpg: @")


def test_queries_without_positives_are_a_remark_and_none_with_an_error(train):
    lonely = trees.write_photo(train / "images/train/queries" / trees.utm_name(900.0, zone=17))
    errors, remarks = other_findings(train)
    assert errors == []
    assert remarks == [f"positives: 1 queries have no positive, such as {lonely.name}; they count as misses."]
    for path in (train / "images/train/queries").iterdir():
        if path != lonely:
            path.unlink()
    errors, _ = other_findings(train)
    assert errors == [
        "positives: no query has a positive (database photos within 25 m of the query in UTM, the 25 m included). "
        "Check that database and queries show the same area."
    ]


def test_two_zones_are_a_remark_and_an_error_where_the_set_has_one(train, tmp_path):
    trees.write_photo(train / "images/train/database" / trees.utm_name(0.0, zone=18))
    errors, remarks = other_findings(train)
    assert len(errors) == 1
    assert "1 database photos aren't in UTM zone 17" in errors[0]
    assert "the photos lie in the UTM zones [17, 18]" in remarks[0]
    root = tmp_path / "lucia"
    utm_tree(root, 55)
    trees.write_photo(root / "images/test/database" / trees.utm_name(0.0, zone=56))
    errors, remarks = other_findings(root, "st-lucia")
    assert errors == []
    assert "the photos lie in the UTM zones [55, 56]" in remarks[0]


def test_names_with_two_different_positions_or_none_are_errors(train):
    name = trees.utm_name(0.0, zone=17)
    fields = name.split("@")
    wrong = "@".join([*fields[:5], "41.00000", *fields[6:]])
    folder = train / "images/train/database"
    (folder / name).rename(folder / wrong)
    trees.write_photo(folder / "@nothing@.jpg")
    errors, _ = other_findings(train)
    assert any("1 database photos have no position: @nothing@.jpg" in error for error in errors)
    assert any(error.startswith("coordinates: 1 database photos have degrees and metres") for error in errors)
    assert len(errors) == 2


def test_missing_listed_photos_are_named(tmp_path):
    trees.dbstruct("pitts30k_test.mat", "queries_real")(tmp_path)
    (tmp_path / "000/000001_pitch1_yaw1.jpg").unlink()
    errors, _ = other_findings(tmp_path, "pitts30k-test")
    assert errors == [
        "photos: 1 listed database photos aren't there: 000/000001_pitch1_yaw1.jpg. Unpack all of the set."
    ]


def test_msls_queries_that_are_left_out(tmp_path):
    trees.msls_val(tmp_path)
    result = verify_folder(tmp_path, "msls-val-740")
    assert result.counts == {"database": 6, "queries": 4}
    assert any(
        "2 queries have no positive and are left out, but msls-val-740 leaves out 7" in text
        for text in texts(result)[1]
    )


def test_unknown_folders_say_what_would_fit(tmp_path, train):
    trees.write_photo(tmp_path / "elsewhere" / "photo.jpg")
    result = verify_folder(tmp_path / "elsewhere")
    assert (result.exact, result.protocol) == (False, None)
    assert "holds photo.jpg, which is not a known layout" in texts(result)[0][0]
    result = verify_folder(train)
    assert (result.exact, result.protocol) == (False, None)
    assert "found 3 database, 2 queries, but no protocol" in texts(result)[0][0]
    assert result.nearest == ["pitts30k-train: 10,000 database, 7,416 queries"]
    assert result.nearest[0] in result.text()
    result = verify_folder(train, "sped")
    assert (result.exact, result.protocol) == (False, "sped")
    assert "is not a layout of sped" in texts(result)[0][0]


def test_own_folders_must_be_meant(tmp_path):
    for side in ("database", "queries"):
        trees.write_photo(tmp_path / side / "photo.jpg")
    assert not verify_folder(tmp_path).exact
    result = verify_folder(tmp_path, "folders")
    assert result.exact
    assert "can be ranked, but not scored" in texts(result)[1][0]


def test_wrong_arguments(tmp_path):
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        verify_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="sample is -1"):
        verify_folder(tmp_path, sample=-1)
    with pytest.raises(ValueError, match="is not a protocol"):
        verify_folder(tmp_path, "pitts")


def test_one_archive_of_several_protocols_names_them_all(tmp_path):
    test = tmp_path / "svox/images/test"
    link_frames(test / "gallery", 17_166)
    # Names are read only after the counts; two conditions share the database.
    for name, count in (("night", 823), ("rain", 937)):
        folder = test / f"queries_{name}"
        folder.mkdir()
        first = trees.write_photo(folder / trees.utm_name(0))
        for number in range(1, count):
            os.link(first, folder / trees.utm_name(number))
    (test / "gallery" / trees.utm_name(5)).write_bytes((test / "gallery/0000000.jpg").read_bytes())
    result = verify_folder(tmp_path / "svox", sample=1)
    assert result.protocol == "svox-night"
    assert any("is svox-rain too" in text for text in texts(result)[1])


def test_a_training_set_is_verified_too(tmp_path):
    make_town(tmp_path / "gsv", places=2, views=3, layout="gsv", height=24, width=32)
    result = verify_folder(tmp_path / "gsv", "gsv-cities")
    assert result.exact
    assert result.counts == {"database": 6}
    assert result.sizes == {(32, 24): 6}
    next((tmp_path / "gsv/Images").rglob("*.jpg")).unlink()
    result = verify_folder(tmp_path / "gsv", "gsv-cities")
    assert [error[:51] for error in texts(result)[0]] == ["photos: 1 listed database photos aren't there: Imag"]


@pytest.mark.skipif(not METADATA.is_dir(), reason="the published lists aren't there")
def test_pitts30k_test_in_full_is_recognised(tmp_path):
    """As many photos as the set has, at its published positions, in UTM names; all are one small file."""
    with np.load(METADATA / "patch_netvlad/pitts30k_test.npz") as arrays:
        metres = {"database": arrays["utmDb"], "queries": arrays["utmQ"]}
    for side, rows in metres.items():
        folder = tmp_path / "images/test" / side
        longitudes, latitudes = Proj(proj="utm", zone=17, ellps="WGS84")(*rows.T, inverse=True)
        first = trees.write_photo(folder / "first.jpg")
        for number, ((east, north), latitude, longitude) in enumerate(zip(rows, latitudes, longitudes, strict=True)):
            place = f"@{east:010.2f}@{north:010.2f}@17@T@{latitude:09.5f}@{longitude:010.5f}"
            os.link(first, folder / f"{place}@{number:06d}@00@@@@@@@.jpg")
        first.unlink()
    result = verify_folder(tmp_path, sample=5)
    assert texts(result) == ([], [])
    assert (result.exact, result.protocol) == (True, "pitts30k-test")
    assert (result.positives[0], round(result.positives[1]), result.positives[2]) == (24, 142, 360)
    next((tmp_path / "images/test/database").iterdir()).unlink()
    result = verify_folder(tmp_path, sample=0)
    assert (result.exact, result.protocol) == (False, "pitts30k-test")
    assert [error[:60] for error in texts(result)[0]] == [
        "counts: 9,999 database photos, but pitts30k-test has 10,000 "
    ]
