"""Coordinates from every source, UTM against pyproj's own, and neighbours across every kind of border."""

import logging
import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational
from pyproj import Geod, Transformer

from d2vpr_hf.photos.positions import Positions, distances_m, positives_within
from tests.broken_photos import BROKEN_KINDS, encoded, photo, write_broken

GEOD = Geod(ellps="WGS84")


def gps_photo(path, latitude, longitude, latitude_ref="N", longitude_ref="E"):
    exif = Image.Exif()
    gps = {1: latitude_ref, 2: latitude, 3: longitude_ref, 4: longitude}
    exif[0x8825] = {tag: value for tag, value in gps.items() if value is not None}
    photo(0).save(path, exif=exif)
    return path


def moved(latitude, longitude, heading_deg, metres):
    """The point so many metres from another, along the ellipsoid."""
    to_longitude, to_latitude, _ = GEOD.fwd(longitude, latitude, heading_deg, metres)
    return to_latitude, to_longitude


@pytest.mark.parametrize(
    ("latitude", "longitude", "zone", "south"),
    [
        (48.2, 16.37, 33, False),
        (-33.86, 151.2, 56, True),
        (37.77, -122.42, 10, False),
        (0.0, 0.0, 31, False),
        (-0.0001, 36.8, 37, True),
        (60.39, 5.32, 32, False),  # Bergen, by the exception for Norway
        (78.22, 15.65, 33, False),  # Longyearbyen, by the exception for Svalbard
        (-17.0, 179.9999, 60, True),
        (-17.0, -180.0, 1, True),
        (10.0, 180.0, 1, False),
        (10.0, 237.58, 10, False),
    ],
)
def test_utm_equals_proj(latitude, longitude, zone, south):
    positions = Positions.from_degrees([latitude], [longitude])
    assert (positions.zone[0], positions.south[0]) == (zone, south)
    to_utm = Transformer.from_crs("EPSG:4326", f"EPSG:{(32700 if south else 32600) + zone}", always_xy=True)
    np.testing.assert_allclose(
        [positions.easting[0], positions.northing[0]], to_utm.transform(longitude, latitude), atol=1e-6
    )
    assert -180 <= positions.longitude[0] < 180


def test_zones_are_those_of_the_standard():
    # Every 6 degrees from -180; 32V is widened to 3 E, and 32X, 34X and 36X don't exist.
    longitude = np.arange(-179.5, 180)
    everywhere = Positions.from_degrees(np.full(360, 40.0), longitude).zone
    np.testing.assert_array_equal(everywhere, np.repeat(np.arange(1, 61), 6))
    norway = Positions.from_degrees(np.full(6, 60.0), [2.9, 3.0, 5.9, 6.1, 11.9, 12.0]).zone
    assert norway.tolist() == [31, 32, 32, 32, 32, 33]
    svalbard = Positions.from_degrees(np.full(9, 78.0), [-0.1, 0.0, 8.9, 9.0, 20.9, 21.0, 33.0, 41.9, 42.0]).zone
    assert svalbard.tolist() == [30, 31, 31, 33, 33, 35, 37, 37, 38]


def test_degrees_out_of_range_are_refused_and_nan_is_unknown():
    with pytest.raises(ValueError, match=r"row 1 has latitude 151\.2"):
        Positions.from_degrees([1.0, 151.2], [2.0, -33.9])
    positions = Positions.from_degrees([np.nan, 48.0], [10.0, 16.0])
    assert positions.known.tolist() == [False, True]
    assert np.isnan([positions.latitude[0], positions.longitude[0], positions.easting[0]]).all()
    assert positions.zone[0] == 0


def test_names_of_the_benchmarks():
    names = [
        # easting, northing, zone, letter, latitude, longitude of the same point; a folder with @ above it
        "some@where@1@2/@0548971.19@4180123.61@10@S@037.76842@-122.44393@pano@@@@@@@@.jpg",
        "@0334786.00@6252080.00@56@H@-33.85997@0151.21385@@@@@@@@@.jpg",
        "@0000000.0@0000023.8@@@@@@@@@@@@@.jpg",  # mock metres along a track
        "@@@@@48.2@16.37@@@@@@@@@.jpg",  # degrees alone
        "@x@y@10@S@1@2@@@@@@@@@.jpg",
        "@inf@nan@10@S@@@@@@@@@@@.jpg",
        "IMG_0001.jpg",
        "me@home.jpg",
    ]
    positions = Positions.from_names(names)
    assert positions.known.tolist() == [True, True, True, True, False, False, False, False]
    assert positions.zone.tolist() == [10, 56, 0, 33, 0, 0, 0, 0]
    assert positions.south.tolist() == [False, True] + [False] * 6
    # Metres stay as written; degrees agree with the written ones to their fifth digit, about a metre.
    np.testing.assert_array_equal(positions.easting[:3], [548971.19, 334786.0, 0.0])
    np.testing.assert_array_equal(positions.northing[:3], [4180123.61, 6252080.0, 23.8])
    np.testing.assert_allclose(positions.latitude[:2], [37.76842, -33.85997], atol=2e-3)
    np.testing.assert_allclose(positions.longitude[:2], [-122.44393, 151.21385], atol=2e-3)
    assert np.isnan(positions.latitude[2])
    assert positions.latitude[3] == 48.2
    assert len(Positions.from_names([])) == 0


def test_names_written_from_degrees_come_back():
    random = np.random.default_rng(1)
    truth = Positions.from_degrees(random.uniform(-79, 83, 60), random.uniform(-180, 180, 60))
    names = [
        f"@{truth.easting[row]:010.2f}@{truth.northing[row]:010.2f}@{truth.zone[row]:02d}"
        f"@{'C' if truth.south[row] else 'X'}@@@@@@@@@@@.jpg"
        for row in range(60)
    ]
    again = Positions.from_names(names)
    off = distances_m(truth.latitude, truth.longitude, again.latitude, again.longitude)
    assert off.max() < 0.02
    np.testing.assert_array_equal(again.zone, truth.zone)
    np.testing.assert_array_equal(again.south, truth.south)


def test_exif_in_all_hemispheres_and_forms(tmp_path):
    degrees_minutes_seconds = (IFDRational(33), IFDRational(51), IFDRational(3599, 100))
    paths = [
        gps_photo(tmp_path / "1.jpg", degrees_minutes_seconds, (151.0, 12.0, 30.0), "S", "E"),
        gps_photo(tmp_path / "2.jpg", (37.0, 46.2, 0.0), (122.0, 25.2, 0.0), "N", "W"),
        gps_photo(tmp_path / "3.jpg", (48.2, 0.0, 0.0), (16.37, 0.0, 0.0)),
    ]
    positions = Positions.from_photos(paths)
    np.testing.assert_allclose(positions.latitude, [-(33 + 51 / 60 + 35.99 / 3600), 37.77, 48.2], atol=1e-6)
    np.testing.assert_allclose(positions.longitude, [151 + 12.5 / 60, -122.42, 16.37], atol=1e-6)
    assert positions.south.tolist() == [True, False, False]


def test_exif_that_says_nothing_is_unknown(tmp_path):
    good = (48.0, 12.0, 0.0)
    paths = [
        gps_photo(tmp_path / "zero denominator.jpg", (48.0, IFDRational(1, 0), 0.0), good),
        gps_photo(tmp_path / "no hemisphere.jpg", good, good, None, "E"),
        gps_photo(tmp_path / "no longitude.jpg", good, None),
        gps_photo(tmp_path / "null island.jpg", (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        gps_photo(tmp_path / "beyond the pole.jpg", (95.0, 0.0, 0.0), good),
        gps_photo(tmp_path / "wrong letter.jpg", good, good, "Q", "E"),
        *(write_broken(tmp_path, number, kind) for number, kind in enumerate(BROKEN_KINDS)),
    ]
    (tmp_path / "no exif.jpg").write_bytes(encoded(photo(1)))
    positions = Positions.from_photos([*paths, tmp_path / "no exif.jpg"])
    assert not positions.known.any()
    assert np.isnan(positions.latitude).all()
    assert len(positions) == len(paths) + 1


def test_a_name_goes_before_exif(tmp_path):
    path = tmp_path / "@0548971.19@4180123.61@10@S@@@@@@@@@@@.jpg"
    assert Positions.from_photos([gps_photo(path, (48.0, 0.0, 0.0), (16.0, 0.0, 0.0))]).zone[0] == 10


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_table_is_matched_by_path_or_base_name(tmp_path, caplog, suffix):
    frame = pd.DataFrame(
        {
            "path": ["a/1.jpg", "2.jpg", "elsewhere/3.jpg", "gone.jpg", "b/1.jpg"],
            "lat": [48.0, -33.0, 10.0, 1.0, 49.0],
            "lon": [16.0, 151.0, None, 1.0, 17.0],
            "note": list("vwxyz"),
        }
    )
    table = tmp_path / f"positions.{suffix}"
    frame.to_csv(table, index=False) if suffix == "csv" else frame.to_parquet(table)
    with caplog.at_level(logging.WARNING):
        positions = Positions.from_table(table, ["a/1.jpg", "b/1.jpg", "deep/down/2.jpg", "3.jpg", "other.jpg"])
    np.testing.assert_array_equal(positions.latitude, [48.0, 49.0, -33.0, np.nan, np.nan])
    assert positions.known.tolist() == [True, True, True, False, False]
    assert "1 rows match no photo, such as 'gone.jpg'" in caplog.text
    assert "1 photos have no row and so no position, such as 'other.jpg'" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,lat,lon\n1.jpg,1,2\n", r"lacks path; its columns are file, lat, lon"),
        ("path,lat,lon\n1.jpg,1,2\n2.jpg,91,2\n", r"line 3 has a lat outside .*2\.jpg"),
        ("path,lat,lon\n1.jpg,1,400\n", "line 2 has a lat outside"),
        ("path,lat,lon\n1.jpg,north,2\n", "line 2 has a lat or lon that is not a number"),
        ("path,lat,lon\n,1,2\n", "line 2 has no path"),
        ("path,lat,lon\n1.jpg,1,2\n1.jpg,1,3\n", "more than once, such as '1.jpg'"),
        ("path,lat,lon\na/1.jpg,1,2\nb/1.jpg,1,3\n", "2 rows named '1.jpg'"),
    ],
)
def test_wrong_tables_are_refused(tmp_path, text, message):
    table = tmp_path / "positions.csv"
    table.write_text(text)
    with pytest.raises(ValueError, match=message):
        Positions.from_table(table, ["1.jpg", "2.jpg"])


def test_positives_equal_brute_force_in_one_zone():
    random = np.random.default_rng(0)
    easting, northing = random.uniform(500_000, 500_400, (2, 300)), random.uniform(4e6, 4e6 + 400, (2, 300))
    database, queries = (
        Positions.from_names([f"@{e:.2f}@{n:.2f}@33@U@@@@@@@@@@@.jpg" for e, n in zip(*both, strict=True)])
        for both in zip(easting, northing, strict=True)
    )
    distance = np.hypot(queries.easting[:, None] - database.easting, queries.northing[:, None] - database.northing)
    for radius_m in (5.0, 25.0, 100.0):
        found = positives_within(database, queries, radius_m)
        assert sum(map(len, found)) > 0
        for row, positives in enumerate(found):
            assert positives.dtype == np.int64
            np.testing.assert_array_equal(positives, np.flatnonzero(distance[row] <= radius_m))


def test_the_radius_is_inclusive_and_mock_tracks_keep_their_frames():
    # Nordland: frames 25 / 10.5 = 2.381 m apart, so that 25 m is 10 frames to either side.
    track = Positions.from_names([f"@0@{frame * 25 / 10.5:.1f}@@@@@@@@@@@@@.jpg" for frame in range(40)])
    assert positives_within(track, track, 25.0)[20].tolist() == list(range(10, 31))
    exact = Positions.from_names(["@0@0@@@@@@@@@@@@@.jpg", "@0@25@@@@@@@@@@@@@.jpg", "@0@25.01@@@@@@@@@@@@@.jpg"])
    assert positives_within(exact, exact[[0]], 25.0)[0].tolist() == [0, 1]
    with pytest.raises(ValueError, match="radius_m is -1"):
        positives_within(exact, exact, -1)


@pytest.mark.parametrize(
    ("latitude", "longitude", "across"),
    [
        (48.0, 12.0, 90),  # border of zones 32 and 33
        (0.0, 37.0, 0),  # equator
        (0.0, 36.0, 45),  # equator and border at once
        (-17.0, 180.0, 90),  # antimeridian
        (64.0, 5.9, 0),  # upper end of the Norwegian exception
        (70.0, -120.0, 90),
    ],
)
def test_borders_do_not_matter(latitude, longitude, across):
    here = moved(latitude, longitude, across + 180, 10)
    near, far = moved(latitude, longitude, across, 14.5), moved(latitude, longitude, across, 15.6)
    others = Positions.from_degrees(*zip(near, far, here, strict=True))
    query = Positions.from_degrees([here[0]], [here[1]])
    assert (others.zone[0], others.south[0]) != (query.zone[0], query.south[0])
    # 24.5 m and 25.6 m away; a zone's scale is off by 0.1 % at most.
    assert positives_within(others, query, 25.0)[0].tolist() == [0, 2]
    assert positives_within(query, others, 25.0)[0].tolist() == [0]


def test_equal_metres_in_other_zones_are_not_near():
    """Easting and northing repeat in each zone; benchmarks, which ignore the zone, never mix two."""
    names = ["@0500000.00@4000000.00@10@S@@@@@@@@@@@.jpg", "@0500000.00@4000000.00@40@S@@@@@@@@@@@.jpg"]
    names.append("@0500000.00@4000000.00@@@@@@@@@@@@@.jpg")
    positions = Positions.from_names(names)
    assert [found.tolist() for found in positives_within(positions, positions, 25.0)] == [[0], [1], [2]]


def test_unknown_positions_are_near_nobody():
    positions = Positions.concatenate([Positions.unknown(2), Positions.from_degrees([48.0], [16.0])])
    assert [found.tolist() for found in positives_within(positions, positions)] == [[], [], [2]]
    assert [len(found) for found in positives_within(Positions.unknown(0), positions)] == [0, 0, 0]
    assert positives_within(positions, Positions.unknown(0)) == []


def test_distances_equal_the_ellipsoid_and_broadcast():
    there = moved(48.0, 16.0, 30, 25.0)
    np.testing.assert_allclose(distances_m(48.0, 16.0, *there), 25.0, atol=1e-6)
    assert distances_m(10.0, 179.9999, 10.0, -179.9999) < 25
    table = distances_m(np.array([[48.0], [np.nan]]), 16.0, np.array([48.0, 49.0, 50.0]), 16.0)
    assert table.shape == (2, 3)
    assert np.isnan(table[1]).all()
    np.testing.assert_allclose(table[0, 1], 111_200, rtol=1e-3)


def test_rows_and_concatenation_correspond():
    positions = Positions.from_degrees([1.0, -2.0, 3.0], [4.0, 50.0, 6.0])
    assert positions[np.array([2, 0])].latitude.tolist() == [3.0, 1.0]
    assert positions[positions.south].latitude.tolist() == [-2.0]
    both = Positions.concatenate([positions[1:], positions[:1]])
    assert both.latitude.tolist() == [-2.0, 3.0, 1.0]
    assert both.zone.dtype == np.int16
    with pytest.raises(ValueError, match="six arrays of one length"):
        Positions(*(np.zeros(2) for _ in range(5)), np.zeros(3))


def test_a_pipe_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert not Positions.from_photos([tmp_path / "pipe.jpg"]).known.any()  # opening it would hang


def table_of(tmp_path, text):
    (tmp_path / "positions.csv").write_text("path,lat,lon\n" + text)
    return tmp_path / "positions.csv"


def test_a_row_is_given_to_one_photo_alone(tmp_path, caplog):
    photos = ["sydney/IMG_0001.jpg", "vienna/IMG_0001.jpg"]
    only_vienna = Positions.from_table(table_of(tmp_path, "vienna/IMG_0001.jpg,48,16\n"), photos)
    assert only_vienna.known.tolist() == [False, True]
    assert Positions.from_table(table_of(tmp_path, "vienna/IMG_0001.jpg,48,16\n"), photos[:1]).known.tolist() == [False]
    bare = Positions.from_table(table_of(tmp_path, "IMG_0001.jpg,48,16\n"), photos)
    assert not bare.known.any()
    assert "1 rows fit several photos and are given to none, such as 'IMG_0001.jpg'" in caplog.text
    # The end of a path is enough where it fits one photo, whichever of the two is longer.
    for row in ("vienna/IMG_0001.jpg", "photos/vienna/IMG_0001.jpg"):
        near = Positions.from_table(table_of(tmp_path, f"{row},48,16\n"), [f"europe/{photos[1]}", *photos][1:])
        assert near.known.tolist() == [False, True]
    assert not Positions.from_table(table_of(tmp_path, "na/IMG_0001.jpg,48,16\n"), ["vienna/IMG_0001.jpg"]).known.any()


def test_the_null_island_of_a_table_is_unknown_too(tmp_path, caplog):
    positions = Positions.from_table(
        table_of(tmp_path, "1.jpg,0,0\n2.jpg,0,1\n3.jpg,0.0,-0.0\n"), ["1.jpg", "2.jpg", "3.jpg"]
    )
    assert positions.known.tolist() == [False, True, False]
    assert "2 rows are at 0, 0, which counts as unknown, such as '1.jpg'" in caplog.text


def test_a_hemispheres_letter_in_place_of_a_bands_is_understood(caplog):
    sydney, vienna = Positions.from_degrees([-33.85997], [151.21385]), Positions.from_degrees([48.2], [16.37])
    names = [
        f"@{each.easting[0]:.2f}@{each.northing[0]:.2f}@{each.zone[0]}@{letter}@{each.latitude[0]:.5f}"
        f"@{each.longitude[0]:.5f}@@@@@@@@@.jpg"
        for each, letter in ((sydney, "S"), (vienna, "N"), (sydney, "H"), (vienna, "C"))
    ]
    positions = Positions.from_names(names)
    np.testing.assert_allclose(positions.latitude, [-33.85997, 48.2, -33.85997, 48.2], atol=1e-4)
    assert positions.south.tolist() == [True, False, True, False]
    assert not caplog.text


def test_a_name_with_two_places_is_not_believed_and_it_is_said(caplog):
    near, far = (f"@0334786.00@6252080.00@56@H@{latitude}@0151.21385@@@@@@@@@.jpg" for latitude in (-33.87, -35.5))
    positions = Positions.from_names([near, far, far])
    assert positions.known.tolist() == [True, False, False]
    assert np.isnan(positions.latitude[1:]).all()
    assert f"2 names have metres and degrees more than 5 km apart, such as '{far}'" in caplog.text


@pytest.mark.parametrize(
    "start",
    [
        "@1e300@1e300@33@T@", "@334786@99999999@56@H@", "@500000@1e9@33@T@", "@-5000000@6252080@56@H@",
        "@5e5@5000000@33@T@", "@500_000@5000000@33@T@", "@５00000@5000000@33@T@", "@500000@5000000@33@Ｔ@",
        "@1e300@1e300@@@",
    ],
)  # fmt: skip
def test_metres_that_no_zone_has_are_not_believed_and_it_is_said(start, caplog):
    bare, with_degrees = f"{start}@@@@@@@@@@.jpg", f"{start}45.1@15.2@@@@@@@@@.jpg"
    positions = Positions.from_names([bare, with_degrees])
    assert positions.known.tolist() == [False, True]
    assert positions.latitude[1] == 45.1
    assert f"2 names have metres or a band letter that can't be right, such as '{bare}'" in caplog.text


def test_zero_degrees_in_a_name_are_unknown():
    names = ["@@@@@0.0@-0.0@@@@@@@@@.jpg", "@500000@5000000@33@T@0@0@@@@@@@@@.jpg"]
    assert Positions.from_names(names).known.tolist() == [False, True]


def test_positives_over_the_poles_and_the_antimeridian():
    metre = 1 / 111_694  # of latitude, at a pole
    for latitude, longitude, metres in (
        ((90 - 8 * metre, 90 - 8 * metre), (0.0, 180.0), 16),  # across the pole
        ((-90 + 8 * metre, -90 + 8 * metre), (10.0, -170.0), 16),
        ((85.0, 85.0 + 20 * metre), (5.9999, 5.9999), 20),
        ((16.0, 16.0), (179.9999, -179.9999), 21.4),  # 0.0002 degrees of longitude
        ((0.00009, -0.00009), (30.0, 30.0), 19.9),  # the equator
    ):
        database, query = (Positions.from_degrees([lat], [lon]) for lat, lon in zip(latitude, longitude, strict=True))
        assert distances_m(*(getattr(each, axis) for each in (database, query) for axis in ("latitude", "longitude")))[
            0
        ] == pytest.approx(metres, rel=0.01)
        for one, other in ((database, query), (query, database)):
            assert positives_within(one, other, metres * 1.02)[0].tolist() == [0]
            assert positives_within(one, other, metres * 0.98)[0].tolist() == []
