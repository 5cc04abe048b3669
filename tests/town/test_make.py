import csv
import hashlib
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from pyproj import Transformer

import d2vpr_hf
from d2vpr_hf.town.make import CITY, ORIGIN_EAST_M, ORIGIN_NORTH_M, make_town
from d2vpr_hf.town.plan import PAVEMENT_M, lay_out_street
from d2vpr_hf.town.rays import Cameras
from d2vpr_hf.town.scene import render
from d2vpr_hf.town.weather import CONDITIONS, draw_weather

SMALL = {"height": 48, "width": 64}


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return make_town(tmp_path_factory.mktemp("town"), places=20, seed=3, height=96, width=128)


def utm_of(path: Path) -> tuple[float, float]:
    fields = path.name.split("@")
    return float(fields[1]), float(fields[2])


def gps_of(path: Path) -> tuple[float, float, float]:
    with Image.open(path) as image:
        gps = image.getexif().get_ifd(ExifTags.IFD.GPSInfo)

    def degrees(parts):
        return float(parts[0]) + float(parts[1]) / 60 + float(parts[2]) / 3600

    assert gps[ExifTags.GPS.GPSLatitudeRef] == "N"
    assert gps[ExifTags.GPS.GPSLongitudeRef] == "E"
    return (
        degrees(gps[ExifTags.GPS.GPSLatitude]),
        degrees(gps[ExifTags.GPS.GPSLongitude]),
        float(gps[ExifTags.GPS.GPSImgDirection]),
    )


def thumbnails(paths: list[Path]) -> np.ndarray:
    small = np.stack(
        [np.asarray(Image.open(p).convert("L").resize((16, 16), Image.Resampling.BOX), float) for p in paths]
    )
    flat = small.reshape(len(paths), -1)
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def test_two_processes_draw_the_same_bytes_on_any_number_of_threads(tmp_path):
    code = (
        "import sys, torch; torch.set_num_threads(int(sys.argv[2]))\n"
        "from d2vpr_hf.town.make import make_town\n"
        "make_town(sys.argv[1], 2, 2, seed=5, layout='plain', queries=4, height=48, width=64)\n"
        "assert torch.get_num_threads() == int(sys.argv[2])"
    )
    source = str(Path(d2vpr_hf.__file__).parents[1])
    folders = [tmp_path / "one", tmp_path / "other"]
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(folder), threads], env={**os.environ, "PYTHONPATH": source})
        for folder, threads in zip(folders, "12", strict=True)
    ]
    assert [run.wait() for run in runs] == [0, 0]
    digests = [
        [hashlib.sha256(photo.read_bytes()).hexdigest() for photo in sorted(folder.rglob("*.jpg"))]
        for folder in folders
    ]
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == len(digests[0]) == 2 * 2 + 4 + 2  # and no two photos are the same


def test_another_seed_is_another_town():
    one, other = lay_out_street(4, 0), lay_out_street(4, 1)
    assert not torch.equal(one.houses[:, :50], other.houses[:, :50])
    assert torch.equal(one.walls, lay_out_street(4, 0).walls)


def test_utm_names_agree_with_exif(town):
    to_utm = Transformer.from_crs(4326, 32631, always_xy=True)
    for folder, count in ((town.database, 80), (town.queries, 100), (town.queries_easy, 20)):
        assert folder.parent == town.root / "images" / "test"
        photos = sorted(folder.iterdir())
        assert len(photos) == count
        for photo in photos[::7]:
            fields = photo.name.split("@")
            assert len(fields) == 16
            assert fields[3:5] == ["31", "N"]
            assert fields[14] == town.conditions[photo.name]
            assert fields[15] == ".jpg"
            latitude, longitude, heading = gps_of(photo)
            assert to_utm.transform(longitude, latitude) == pytest.approx(utm_of(photo), abs=0.05)
            assert float(fields[5]) == pytest.approx(latitude, abs=1e-5)
            assert float(fields[6]) == pytest.approx(longitude, abs=1e-5)
            assert abs((float(fields[9]) - heading + 180) % 360 - 180) <= 0.51
            with Image.open(photo) as image:
                assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (128, 96))


def test_within_25_m_means_the_same_place(town):
    database = sorted(town.database.iterdir())
    positions = np.array([utm_of(photo) for photo in database])
    # The lattice of places is 60 m wide, and no camera stands 15 m from its place.
    place = np.round((positions - [ORIGIN_EAST_M, ORIGIN_NORTH_M]) / 60)
    assert len(np.unique(place, axis=0)) == 20
    for folder in (town.queries, town.queries_easy):
        for query in folder.iterdir():
            here = np.array(utm_of(query))
            near = np.linalg.norm(positions - here, axis=1) <= 25
            same = (place == np.round((here - [ORIGIN_EAST_M, ORIGIN_NORTH_M]) / 60)).all(1)
            assert near.sum() == 4
            np.testing.assert_array_equal(near, same)


def test_easy_queries_are_close_and_by_day(town):
    database = [(*utm_of(photo), gps_of(photo)[2]) for photo in town.database.iterdir()]
    for query in town.queries_easy.iterdir():
        east, north, heading = *utm_of(query), gps_of(query)[2]
        assert town.conditions[query.name] == "day"
        assert any(
            math.hypot(east - e, north - n) < 1 and abs((heading - h + 180) % 360 - 180) < 5 for e, n, h in database
        )


def test_half_of_the_queries_are_hard(town):
    conditions = [town.conditions[query.name] for query in town.queries.iterdir()]
    assert set(conditions) == set(CONDITIONS)
    assert sum(name in ("night", "fog", "rain", "snow") for name in conditions) >= len(conditions) / 2
    assert {town.conditions[photo.name] for photo in town.database.iterdir()} == {"day"}


def test_thumbnails_find_easy_queries_and_few_others(town):
    database = sorted(town.database.iterdir())
    positions = np.array([utm_of(photo) for photo in database])
    known = thumbnails(database)

    def recall_at_1(folder):
        queries = sorted(folder.iterdir())
        best = (thumbnails(queries) @ known.T).argmax(1)
        away = np.linalg.norm(positions[best] - np.array([utm_of(query) for query in queries]), axis=1)
        return (away <= 25).mean()

    chance = 1 / 20
    assert 3 * chance <= recall_at_1(town.queries) < 0.4
    assert recall_at_1(town.queries_easy) > 0.9


def test_gsv_layout_parses_back(tmp_path):
    town = make_town(tmp_path / "gsv", places=3, views=4, seed=1, layout="gsv", **SMALL)
    assert (town.database, town.queries, town.queries_easy) == (None, None, None)
    with (town.root / "Dataframes" / f"{CITY}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["place_id", "year", "month", "northdeg", "city_id", "lat", "lon", "panoid"]
    expected = {
        f"{r['city_id']}_{int(r['place_id']):07d}_{int(r['year']):04d}_{int(r['month']):02d}_{int(r['northdeg']):03d}_"
        f"{float(r['lat'])}_{float(r['lon'])}_{r['panoid']}.jpg"
        for r in rows
    }
    found = {photo.name for photo in (town.root / "Images" / CITY).iterdir()}
    assert found == expected == set(town.conditions)
    assert len(found) == 12
    for place in range(3):
        headings = [math.radians(int(r["northdeg"])) for r in rows if int(r["place_id"]) == place]
        assert len(headings) == 4
        # All in one direction, give or take 14 degrees.
        middle = math.atan2(sum(map(math.sin, headings)), sum(map(math.cos, headings)))
        assert all(math.cos(heading - middle) > math.cos(math.radians(29)) for heading in headings)


def test_plain_layout_has_positions_in_exif_alone(tmp_path):
    town = make_town(tmp_path / "plain", places=2, views=2, layout="plain", queries=3, easy_queries=0, **SMALL)
    assert town.queries_easy is None
    assert town.database == town.root / "database"
    photos = sorted(town.root.rglob("*.jpg"))
    assert len(photos) == 2 * 2 + 3
    assert not any("@" in photo.name for photo in photos)
    assert len({gps_of(photo)[:2] for photo in photos}) == len(photos)


def test_replaces_its_own_town_and_refuses_other_folders(tmp_path):
    town = make_town(tmp_path / "town", places=2, views=2, queries=2, **SMALL)
    first = set(town.conditions)
    make_town(tmp_path / "town", places=1, views=1, seed=1, queries=1, **SMALL)
    photos = list((tmp_path / "town").rglob("*.jpg"))
    assert len(photos) == 3
    assert not first & {photo.name for photo in photos}
    assert not list((tmp_path / "town").rglob("*.part"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"holiday\.jpg"):
        make_town(tmp_path / "mine", places=1)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"places": 0}, "places is 0"),
        ({"views": 2.5}, "views is 2.5"),
        ({"queries": -1}, "queries is -1"),
        ({"layout": "utn"}, "layout is 'utn'"),
        ({"layout": "gsv", "queries": 3}, "queries=3"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, arguments, named):
    with pytest.raises(ValueError, match=named):
        make_town(tmp_path / "town", **arguments)
    assert not (tmp_path / "town").exists()


def level_camera(east, north, heading, field=90.0):
    values = (east, north, 1.7, heading, 0.0, 0.0, field)
    return Cameras(*(torch.tensor([value]) for value in values))


def clear_day(**changes):
    weather = draw_weather(["day"], torch.Generator().manual_seed(0), traffic=(0.0, 0.0))
    return replace(weather, grain=torch.zeros(1), clouds=torch.zeros(1), **changes)


def test_a_facade_edge_lands_where_geometry_puts_it():
    street = lay_out_street(1, 0)
    # One wall 6 m wide, 10 m ahead of a camera that looks north from (60, 0), and nothing else.
    wall = torch.tensor([[58.0, 10.0, 64.0, 10.0]])
    scene = replace(
        street, walls=wall, wall_house=torch.zeros(1, dtype=torch.long), wall_kind=torch.zeros(1, dtype=torch.long)
    )
    empty = replace(scene, boards=street.boards[:1] + 1e5, bays=street.bays[:1] + 1e5)
    gone = replace(empty, walls=wall + 1e5)
    for roll, pitch in ((0.0, 0.0), (0.0, 8.0)):
        camera = replace(level_camera(60.0, 0.0, 0.0), roll_deg=torch.tensor([roll]), pitch_deg=torch.tensor([pitch]))
        photo, without = (render(place, camera, clear_day(), height=120, width=160)[0].int() for place in (empty, gone))
        differs = (photo - without).abs().sum(-1) > 24
        # The middle row looks along the pitch: a point `right` metres aside and 10 m ahead projects to
        # 80 + 80 * right / (10 / cos(pitch)), as the field of 90 degrees makes the focal length 80 pixels.
        columns = differs[60].nonzero()[:, 0]
        for edge, right in ((columns.min(), -2.0), (columns.max() + 1, 4.0)):
            assert abs(edge.item() - (80 + 8 * right * math.cos(math.radians(pitch)))) <= 1
    # The foot of the wall, 1.7 m under the camera, lies 80 * 1.7 / 10 pixels under the middle of a level photo.
    assert street.half_width_x.min() > PAVEMENT_M
    photo, without = (
        render(place, level_camera(60.0, 0.0, 0.0), clear_day(), height=120, width=160)[0].int()
        for place in (empty, gone)
    )
    rows = ((photo - without).abs().sum(-1) > 24)[:, 80].nonzero()[:, 0]
    assert abs(rows.max().item() + 1 - (60 + 80 * 0.17)) <= 1


def test_photos_alone_and_in_company_agree():
    street = lay_out_street(3, 0)
    weather = draw_weather(["day", "night", "snow"], torch.Generator().manual_seed(1))
    cameras = Cameras(
        *(torch.rand(3, generator=torch.Generator().manual_seed(2)) * 3 + low for low in (0, 60, 2, 30, 4, 0, 70))
    )
    together = render(street, cameras, weather, **SMALL)
    alone = torch.cat([render(street, cameras[i : i + 1], weather[i : i + 1], **SMALL) for i in range(3)])
    assert (together.int() - alone.int()).abs().max() <= 2
    assert together.float().std(dim=(1, 2)).min() > 5


def test_cars_and_weather_change_between_visits_but_houses_stay():
    street = lay_out_street(3, 0)
    camera = level_camera(*street.places[0, :2].tolist(), 40.0)
    one, other = clear_day(visit=torch.tensor([1])), clear_day(visit=torch.tensor([2]))
    torch.testing.assert_close(render(street, camera, one, **SMALL), render(street, camera, other, **SMALL))
    crowded = replace(other, traffic=torch.ones(1))
    assert (render(street, camera, one, **SMALL) != render(street, camera, crowded, **SMALL)).any()
    with pytest.raises(ValueError, match="fogg"):
        draw_weather(["fogg"], torch.Generator())
