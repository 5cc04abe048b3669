"""What a town may have beside its default: stands that move, seasons, houses alike, towers and photographed fronts."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from d2vpr_hf.town.facades import HEIGHT, LIGHTER, WIDTH, count_facades, facade_at, read_facades
from d2vpr_hf.town.make import make_town
from d2vpr_hf.town.plan import COLOUR_ROWS, HOUSE_ROWS, Board, Wall, lay_out_street
from d2vpr_hf.town.rays import Cameras
from d2vpr_hf.town.scene import render
from d2vpr_hf.town.shots import plan_database, plan_queries, plan_training_shots
from d2vpr_hf.town.weather import draw_weather


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def zooms(cameras: Cameras) -> torch.Tensor:
    """How much larger than in the middle one of the default fields, 73 degrees."""
    return math.tan(math.radians(73 / 2)) / torch.tan(torch.deg2rad(cameras.field_deg) / 2)


@pytest.fixture
def facades(tmp_path):
    """A folder of two photos: magenta, with a white upper half, and an upright one in green."""
    (tmp_path / "facades").mkdir()
    pixels = np.full((90, 160, 3), (255, 0, 255), np.uint8)
    pixels[:40] = 255
    Image.fromarray(pixels).save(tmp_path / "facades" / "a.png")
    Image.new("RGB", (90, 160), (0, 255, 0)).save(tmp_path / "facades" / "b.png")
    return tmp_path / "facades"


def test_moved_photos_of_a_place_look_at_one_front_from_far_apart():
    street = lay_out_street(30, 4)
    shots = plan_training_shots(street, 8, generator(), moved=True)
    widest = []
    for place, (east, north, _) in enumerate(street.places.tolist()):
        rows = torch.tensor(shots.place) == place
        stands = torch.stack([shots.cameras.east[rows], shots.cameras.north[rows]], dim=1)
        assert (stands - torch.tensor([east, north])).norm(dim=1).max() < 26
        widest.append(torch.cdist(stands, stands).max())
        # The point nearest to all middle rays lies within the turn of each: what all of them look at.
        course = torch.deg2rad(shots.cameras.heading_deg[rows])
        normal = torch.stack([course.cos(), -course.sin()], dim=1)
        seen = torch.linalg.lstsq(normal, (normal * stands).sum(dim=1, keepdim=True)).solution[:, 0]
        bearing = torch.rad2deg(torch.atan2(*(seen - stands).T))
        off = (bearing - shots.cameras.heading_deg[rows] + 180) % 360 - 180
        assert off.abs().median() < 15
    assert torch.stack(widest).median() > 25
    zoom = zooms(shots.cameras)
    assert 0.5 < zoom.min() < 0.7 < 1.4 < zoom.max() < 1.8
    still = plan_training_shots(street, 8, generator())
    assert zooms(still.cameras).max() < 1.12


def test_moved_queries_stay_within_25_m_of_their_place_alone():
    places = lay_out_street(25, 6).places
    database = plan_database(places, 4, generator(1))
    queries = plan_queries(places, database, 120, generator(2), moved=True)
    known = torch.stack([database.cameras.east, database.cameras.north], dim=1)
    stands = torch.stack([queries.cameras.east, queries.cameras.north], dim=1)
    away = torch.cdist(stands, known)
    own = torch.tensor(queries.place)[:, None] == torch.tensor(database.place)
    assert away[own].max() <= 25 < away[~own].min()
    assert (away.where(own, torch.inf).amin(dim=1) > 6).float().mean() > 0.4
    assert zooms(queries.cameras).min() < 0.7
    assert zooms(queries.cameras).max() > 1.4


def test_seasons_bring_snow_that_lies_bare_trees_and_wet_roads():
    weather = draw_weather(["day"] * 200, generator(), seasons=True)
    for seen in (
        weather.snow > 0.5,
        weather.leaves == 0,
        weather.autumn > 0.5,
        (weather.wet > 0.3) & (weather.snow == 0),
    ):
        assert 10 < seen.sum() < 150
    assert not (weather.fall > 0).any()
    assert (weather.leaves[weather.snow > 0] == 0).all()
    summer = draw_weather(["day"] * 200, generator())
    assert (summer.leaves == 1).all()
    torch.testing.assert_close(summer.sun, weather.sun)
    assert (draw_weather(["snow"] * 50, generator(), seasons=True).leaves == 0).all()


def test_a_bare_tree_lets_the_sky_through_and_a_brown_one_is_not_green():
    street = lay_out_street(1, 0)
    tree = torch.tensor([[float(Board.TREE), 60.0, 8.0, 8.0, 2.5, 2.2, 0.5, 3.0]])
    scene = replace(street, boards=tree, walls=street.walls + 1e5, bays=street.bays + 1e5)
    camera = Cameras(*(torch.tensor([value]) for value in (60.0, 0.0, 1.7, 0.0, 20.0, 0.0, 60.0)))
    day = replace(draw_weather(["day"], generator()), grain=torch.zeros(1), clouds=torch.zeros(1))

    def draw(**changes):
        return render(scene, camera, replace(day, **changes), height=96, width=128)[0].float()

    empty = render(replace(scene, boards=tree + 1e5), camera, day, height=96, width=128)[0].float()
    leafy, bare, brown = draw(), draw(leaves=torch.zeros(1)), draw(autumn=torch.ones(1))
    covered = [((photo - empty).abs().sum(dim=2) > 40).float().mean().item() for photo in (leafy, bare, brown)]
    assert covered[0] == pytest.approx(covered[2], abs=0.01)
    assert covered[0] > 2 * covered[1] > 0.05
    crown = (leafy - empty).abs().sum(dim=2) > 40
    green = [(photo[..., 1] - photo[..., 0])[crown].mean() for photo in (leafy, brown)]
    assert green[0] > 10 > -10 > green[1]


def test_snow_that_lies_whitens_the_ground_and_does_not_fall():
    street = lay_out_street(1, 0)
    street = replace(street, walls=street.walls + 1e5, boards=street.boards + 1e5, bays=street.bays + 1e5)
    camera = Cameras(*(torch.tensor([value]) for value in (60.0, 0.0, 1.7, 0.0, 0.0, 0.0, 60.0)))
    day = replace(draw_weather(["day"], generator()), grain=torch.zeros(1))
    covered = replace(day, snow=torch.ones(1))
    photos = [render(street, camera, each, height=96, width=128)[0].float() for each in (day, covered)]
    assert photos[1][70:].mean() > photos[0][70:].mean() + 40
    assert torch.equal(photos[0][:30], photos[1][:30])
    falling = render(street, camera, replace(covered, fall=torch.ones(1)), height=96, width=128)[0].float()
    assert not torch.equal(photos[1][:30], falling[:30])


def test_houses_alike_differ_in_details():
    plain, rows = lay_out_street(4, 0), lay_out_street(4, 0, alike=0.5)
    names = ("storeys", "roof", "window_width", "material", "columns")
    shape = [HOUSE_ROWS.index(name) for name in names]
    follows = [(street.houses[shape, 1:] == street.houses[shape, :-1]).all(dim=0) for street in (plain, rows)]
    assert follows[0].float().mean() < 0.01
    assert 0.45 < follows[1].float().mean() < 0.55
    details = [HOUSE_ROWS.index(name) for name in ("accent", "banner", "awning", "wall_red")]
    assert (rows.houses[details, 1:] != rows.houses[details, :-1]).any(dim=0)[follows[1]].all()
    door, columns = (rows.houses[HOUSE_ROWS.index(name)] for name in ("door_column", "ground_columns"))
    assert (door < columns).all()
    assert torch.equal(rows.walls, plain.walls)


def test_towers_rise_above_the_houses_and_leave_the_others_as_they_are():
    plain, towers = lay_out_street(4, 0), lay_out_street(4, 0, landmarks=True)
    changed = (plain.houses != towers.houses).any(dim=0)
    assert changed.sum() == plain.houses.shape[1] // 12 > 15
    for name in ("walls", "boards", "places", "noise"):
        assert torch.equal(getattr(towers, name), getattr(plain, name))
    eaves = {}
    for street in (plain, towers):
        of = street.houses_at(torch.arange(street.houses.shape[1]))
        eaves[street is towers] = of["ground_m"] + of["storeys"] * of["storey_m"]
    assert eaves[True][changed].min() > eaves[False].median() + 5
    assert eaves[True][changed].max() > eaves[False].max() + 10
    colours = towers.houses[COLOUR_ROWS]
    saturation = (colours.amax(dim=0) - colours.amin(dim=0)) / colours.amax(dim=0)
    assert saturation[changed].mean() > saturation[~changed].mean() + 0.2


def test_a_pyramid_gives_photos_back_at_any_size(facades):
    pyramid = read_facades(facades)
    assert count_facades(pyramid) == 2
    assert torch.equal(read_facades(facades, ["a.png"])[:, 0], torch.tensor([0, 255, 0], dtype=torch.uint8))
    for texel in (1.0, 3.0, 16.0):
        across, size = torch.full((3,), 0.5), torch.full((3,), texel)
        found = facade_at(pyramid, torch.tensor([0, 0, 1]), across, torch.tensor([0.2, 0.95, 0.5]), size)
        torch.testing.assert_close(found.T, torch.tensor([[1.0, 0, 1], [1, 1, 1], [0, 1, 0]]), atol=0.02, rtol=0)
    rising = torch.linspace(0, 255, WIDTH).expand(3, HEIGHT, WIDTH).round().to(torch.uint8)
    only = torch.cat([rising.flatten(1), pyramid[:, 2 * HEIGHT * WIDTH :][:, ::2]], dim=1)
    share = torch.tensor([0.1, 0.5, 0.8])
    found = (facade_at(only, torch.zeros(3), share, share, torch.ones(3)) / LIGHTER) ** (1 / 2.2)
    torch.testing.assert_close(found, share.expand(3, 3), atol=0.01, rtol=0)


def test_fronts_show_the_photos_and_sides_do_not(facades):
    street = lay_out_street(1, 0, facades=read_facades(facades))
    hung = street.houses[HOUSE_ROWS.index("photo")] >= 0
    assert 0.7 < hung.float().mean() < 0.95
    houses = street.houses.clone()
    houses[HOUSE_ROWS.index("photo"), 0] = 0
    houses[COLOUR_ROWS, 0] = 0.3
    camera = Cameras(*(torch.tensor([value]) for value in (60.0, 0.0, 1.7, 0.0, 0.0, 0.0, 60.0)))
    day = replace(draw_weather(["day"], generator()), grain=torch.zeros(1))
    wall = torch.tensor([[54.0, 10.0, 66.0, 10.0]])

    def magenta(kind):
        scene = replace(
            street, houses=houses, walls=wall, wall_house=torch.zeros(1, dtype=torch.long),
            wall_kind=torch.tensor([int(kind)]), boards=street.boards + 1e5, bays=street.bays + 1e5,
        )  # fmt: skip
        photo = render(scene, camera, day, height=90, width=120)[0].float()
        return (photo[..., 0] - photo[..., 1] > 60) & (photo[..., 2] - photo[..., 1] > 60)

    seen = magenta(Wall.FRONT)
    assert not magenta(Wall.SIDE).any()
    # The wall is 12 m wide and 10 m away, 104 pixels a metre and metre ahead: its photo, without its foot, 6.6 m high.
    # Magenta reaches from the ground, 1.7 m down, to below the white upper half, some 2.7 m up.
    rows = seen[:, 60].nonzero()[:, 0]
    focal = 60 / math.tan(math.radians(30))
    assert rows.max().item() == pytest.approx(45 + 0.17 * focal, abs=2)
    assert 45 - 0.25 * focal < rows.min().item() < 45


def test_a_town_with_everything_is_drawn_and_recorded(facades, tmp_path):
    asked = {"moved": True, "seasons": True, "alike": 0.4, "landmarks": True, "facades": facades}
    size = {"layout": "gsv", "height": 48, "width": 64}
    towns = [make_town(tmp_path / name, 2, 4, 3, **size, **asked).root for name in ("one", "other")]
    plain = make_town(tmp_path / "plain", 2, 4, 3, **size).root
    photos = [[path.read_bytes() for path in sorted(town.rglob("*.jpg"))] for town in (*towns, plain)]
    assert photos[0] == photos[1]
    assert len({*photos[0], *photos[2]}) == 16
    record = json.loads((towns[0] / "made_town.json").read_text())
    assert {name: record[name] for name in asked} == {**asked, "facades": str(facades)}
    assert not asked.keys() & json.loads((plain / "made_town.json").read_text()).keys()


def test_wrong_varieties_are_refused(tmp_path):
    with pytest.raises(ValueError, match="alike is 2"):
        make_town(tmp_path / "town", 1, alike=2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no photo"):
        make_town(tmp_path / "town", 1, facades=tmp_path / "empty")
    assert not (tmp_path / "town").exists()
