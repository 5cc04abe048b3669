"""Views of a sector overlap by half; views of two sectors share no heading, or the sectors conflict."""

import csv
import itertools
import json
import math

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from d2vpr_hf.panoramas import places_folder
from d2vpr_hf.panoramas import training_views as panorama_places
from d2vpr_hf.panoramas.training_views import cut_training_views, panorama_conflicts
from d2vpr_hf.protocols.places import read_training_places
from d2vpr_hf.training.data.sampler import PlaceSampler

SIZE = {"height": 24, "width": 32}


@pytest.fixture
def panoramas(tmp_path):
    """Three panoramas of noise, one in a subfolder, a copy of one, a photo and a broken file."""
    folder = tmp_path / "in"
    (folder / "more").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "more/a.png"):
        Image.fromarray(random.integers(0, 256, (64, 128, 3), np.uint8)).save(folder / name)
    (folder / "copy.jpg").write_bytes((folder / "b.jpg").read_bytes())
    Image.new("RGB", (64, 64)).save(folder / "photo.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def read_table(out):
    with (out / "metadata.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def camera(row):
    return tuple(float(row[f"{name}_deg"]) for name in ("heading", "pitch", "roll", "field"))


def share_seen(one, other, shape, points=25):
    """Share of a view, by its (heading, pitch, roll, field), that lies within another; height = shape x width."""

    def turn(view):
        return Rotation.from_euler("ZXY", [-view[0], view[1], view[2]], degrees=True)

    half = [math.tan(math.radians(view[3]) / 2) for view in (one, other)]
    steps = (np.arange(points) + 0.5) / points * 2 - 1
    x, y = np.meshgrid(steps * half[0], steps * half[0] * shape)
    rays = turn(one).apply(np.stack([x, np.ones_like(x), y], -1).reshape(-1, 3))
    right, ahead, up = turn(other).inv().apply(rays).T
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = (abs(right / ahead) <= half[1]) & (abs(up / ahead) <= half[1] * shape)
    return (inside & (ahead > 0)).mean()


def test_the_widest_draws_still_overlap_by_half():
    for field in (*panorama_places.FIELDS_DEG, 75.0):
        for shape in (*panorama_places.SHAPES, 1.0):
            high = 2 * math.degrees(math.atan(math.tan(math.radians(field / 2)) * shape))
            pitch = panorama_places.PITCH_SHARE * min(field, high)
            extremes = [
                (h * panorama_places.HEADING_SHARE * field, p * pitch, r * panorama_places.ROLL_DEG, field * (1 + f))
                for h, p, r in itertools.product((-1, 1), repeat=3)
                for f in (-panorama_places.FIELD_SHARE, panorama_places.FIELD_SHARE)
            ]
            worst = min(share_seen(one, other, shape) for one, other in itertools.product(extremes, repeat=2))
            assert 0.5 <= worst < 0.7, (field, shape)


def test_views_of_a_place_overlap_and_views_of_others_do_not_or_conflict(panoramas, tmp_path):
    out = cut_training_views(panoramas, tmp_path / "out", sectors=9, views_per_sector=3, **SIZE, progress=False)
    rows, conflicts = read_table(out), panorama_conflicts(out)
    assert len(rows) == 3 * 9 * 3
    kinds = {"positive": 0, "conflict": 0, "negative": 0}
    for one, other in itertools.combinations(rows, 2):
        place, another = int(one["place"]), int(other["place"])
        seen = [share_seen(camera(one), camera(other), 0.75), share_seen(camera(other), camera(one), 0.75)]
        if place == another:
            kinds["positive"] += 1
            assert min(seen) >= 0.5
        elif one["panorama"] == other["panorama"] and another in conflicts.get(place, ()):
            kinds["conflict"] += 1
            assert place in conflicts[another]
        elif one["panorama"] == other["panorama"]:
            kinds["negative"] += 1
            assert max(seen) == 0
        else:
            assert another not in conflicts.get(place, ())
    assert min(kinds.values()) > 50
    # Sectors 40 degrees apart overlap; those opposite don't.
    assert all({place - 1, place + 1} <= conflicts[place] for place in (1, 4, 7, 10))
    assert all(place + 4 not in conflicts[place] for place in (0, 9, 18))


def test_the_table_states_what_was_cut(panoramas, tmp_path, caplog):
    out = cut_training_views(panoramas, tmp_path / "out", sectors=2, views_per_sector=2, **SIZE, progress=False)
    rows = read_table(out)
    assert [int(row["place"]) for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert [row["panorama"] for row in rows[::4]] == ["a.png", "b.jpg", "more/a.png"]
    assert len({row["file_name"] for row in rows}) == len(rows)
    for row in rows:
        with Image.open(out / row["file_name"]) as view:
            assert view.size == (32, 24)
        assert 0 <= float(row["heading_deg"]) < 360
        assert float(row["first_heading_deg"]) < float(row["heading_deg"]) < float(row["last_heading_deg"])
    assert len({camera(row) for row in rows}) == len(rows)
    record = json.loads((out / "panoramas.json").read_text())
    assert list(record["panoramas"]) == ["a.png", "b.jpg", "more/a.png"]
    skipped = dict(record["skipped"])
    assert skipped.keys() == {"copy.jpg", "photo.png", "broken.jpg"}
    assert skipped["copy.jpg"] == "the same bytes as b.jpg"
    assert "photo.png: 64 x 64 pixels" in caplog.text
    assert {path.name for path in out.parent.iterdir()} == {"in", "out"}


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_broken_off_it_goes_on_and_ends_as_if_unbroken(panoramas, tmp_path, monkeypatch):
    settings = {"sectors": 3, "views_per_sector": 2, **SIZE, "progress": False}
    whole = files(cut_training_views(panoramas, tmp_path / "whole", **settings))
    cut, opened = panorama_places.cut_views, []

    def breaks_off(*arguments, **sizes):
        opened.append(arguments)
        if len(opened) == 5:  # in the second panorama
            raise KeyboardInterrupt
        return cut(*arguments, **sizes)

    monkeypatch.setattr(panorama_places, "cut_views", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        cut_training_views(panoramas, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
    assert files(cut_training_views(panoramas, tmp_path / "out", **settings)) == whole
    assert len(opened) == 5 + 2 * 3  # the first panorama wasn't cut again
    # Finished, the same call leaves it as it is.
    assert cut_training_views(panoramas, tmp_path / "out", **settings) == tmp_path / "out"
    assert len(opened) == 5 + 2 * 3
    with pytest.raises(FileExistsError, match="other settings"):
        cut_training_views(panoramas, tmp_path / "out", **settings, seed=1)
    (panoramas / "b.jpg").unlink()
    (panoramas / "copy.jpg").unlink()
    with pytest.raises(FileExistsError, match="other panoramas"):
        cut_training_views(panoramas, tmp_path / "out", **settings)


def test_a_draft_of_other_settings_is_thrown_away(panoramas, tmp_path, monkeypatch):
    settings = {"views_per_sector": 2, **SIZE, "progress": False}
    monkeypatch.setattr(places_folder, "_finish", lambda *arguments: None)
    cut_training_views(panoramas, tmp_path / "out", sectors=3, **settings)
    monkeypatch.undo()
    out = cut_training_views(panoramas, tmp_path / "out", sectors=2, **settings)
    assert files(out) == files(cut_training_views(panoramas, tmp_path / "other", sectors=2, **settings))
    assert len(files(out)) == 2 + 3 * 2 * 2


def test_the_draws_depend_on_seed_and_panorama_alone(panoramas, tmp_path):
    def cut(name, **changed):
        settings = {"sectors": 2, "views_per_sector": 2, **SIZE, "progress": False} | changed
        return read_table(cut_training_views(panoramas, tmp_path / name, **settings))

    everything, other_seed = cut("everything"), cut("seed", seed=1)
    alone = cut("alone", exclude=["a.png", "photo.png"])
    assert [row["panorama"] for row in alone] == ["b.jpg"] * 4  # the file name excludes both panoramas of that name
    assert [camera(row) for row in alone] == [camera(row) for row in everything if row["panorama"] == "b.jpg"]
    assert {camera(row) for row in everything}.isdisjoint(camera(row) for row in other_seed)
    assert {row["panorama"] for row in cut("one", exclude=["more/a.png"])} == {"a.png", "b.jpg"}


def test_views_may_roll_zoom_look_up_and_lose_their_edges(panoramas, tmp_path):
    settings = {"sectors": 4, "views_per_sector": 6, **SIZE, "progress": False}
    asked = {"pitch_deg": 10, "roll_deg": 20, "field_share": 0.5, "crop": 0.4}
    rows = read_table(cut_training_views(panoramas, tmp_path / "wide", **settings, **asked))
    drawn = {name: [float(row[name]) for row in rows] for name in ("pitch_deg", "roll_deg", "field_deg")}
    assert 5 < min(drawn["pitch_deg"]) < max(drawn["pitch_deg"]) < 15
    assert min(drawn["roll_deg"]) < -10 < 10 < max(drawn["roll_deg"])
    assert min(drawn["field_deg"]) < 75 * 0.6 < 75 * 1.4 < max(drawn["field_deg"])
    kept = [float(row["right"]) - float(row["left"]) for row in rows]
    assert 0.59 <= min(kept) < 0.7 < 0.9 < max(kept) <= 1
    # What a view of the whole shows in its middle part, the cropped one shows larger.
    whole = cut_training_views(panoramas, tmp_path / "whole", **settings, **asked | {"crop": 0})
    row = min(rows, key=lambda row: float(row["right"]) - float(row["left"]))
    box = [float(row[name]) * side for name, side in zip(("left", "top", "right", "bottom"), (32, 24) * 2, strict=True)]
    with Image.open(whole / row["file_name"]) as view, Image.open(tmp_path / "wide" / row["file_name"]) as cropped:
        expected = np.asarray(view.resize(view.size, Image.Resampling.BICUBIC, box), float)
        difference = np.abs(np.asarray(cropped, float) - expected).mean()
        assert difference < 0.3 * np.abs(np.asarray(view, float) - expected).mean()


def test_conflicts_follow_from_spans_around_the_circle():
    columns = {
        "place": [0, 0, 1, 2, 3, 4],
        "panorama": ["p", "p", "p", "p", "p", "q"],
        # 3 looks over a pole and sees all headings; 0 and 2 meet across the seam, 0 and 1 only touch.
        "first_heading_deg": [10, -20, 50, 330, -100, 10],
        "last_heading_deg": [50, 20, 100, 345, 260, 50],
    }
    everyone = {0: {2, 3}, 1: {3}, 2: {0, 3}, 3: {0, 1, 2}}
    assert panorama_conflicts(columns) == {place: frozenset(others) for place, others in everyone.items()}
    columns.pop("panorama")
    with pytest.raises(ValueError, match="lacks panorama; its columns are place"):
        panorama_conflicts(columns)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sectors": 0}, "sectors is 0"),
        ({"views_per_sector": 1}, "views_per_sector is 1"),
        ({"field_deg": 120}, r"field_deg is 120, but must be from 30\.0 to 100\.0"),
        ({"height": 100, "width": 50}, r"height by width is 2\.0"),
        ({"crop": 0.9}, "crop is 0.9"),
        ({"field_share": 0.7}, "field_share is 0.7"),
        ({"exclude": ["b.jpeg"]}, "'b.jpeg', but .* Did you mean b.jpg"),
    ],
)
def test_what_cannot_be_cut_is_refused(settings, words, panoramas, tmp_path):
    with pytest.raises(ValueError, match=words):
        cut_training_views(panoramas, tmp_path / "out", **settings, progress=False)


def test_a_folder_without_panoramas_is_refused(panoramas, tmp_path):
    with pytest.raises(ValueError, match="holds no panorama that can be used; 2 files were skipped"):
        cut_training_views(panoramas, tmp_path / "out", exclude=["a.png", "b.jpg", "copy.jpg"], **SIZE, progress=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="something else"):
        cut_training_views(panoramas, tmp_path / "full", **SIZE, progress=False)


def test_no_batch_holds_sectors_in_conflict(panoramas, tmp_path):
    out = cut_training_views(panoramas, tmp_path / "out", sectors=9, views_per_sector=3, **SIZE, progress=False)
    places, table = read_training_places(out), read_table(out)
    assert places.conflicts == panorama_conflicts(out)
    assert places.places.tolist() == [int(row["place"]) for row in table]
    assert places.open(5).size == (32, 24)

    def steps(conflicts):
        sampler = PlaceSampler(places.places, places_per_batch=4, images_per_place=2, conflicts=conflicts)
        for epoch in range(20):
            sampler.set_epoch(epoch)
            yield from sampler

    def shared(step):
        """Pairs of views of different places of a panorama of which one sees a part of the other."""
        return sum(
            table[one]["panorama"] == table[other]["panorama"]
            and table[one]["place"] != table[other]["place"]
            and share_seen(camera(table[one]), camera(table[other]), 0.75, points=9) > 0
            for (one, _), (other, _) in itertools.combinations(step, 2)
        )

    drawn = list(steps(places.conflicts))
    assert len(drawn) > 20 * 4
    assert not any(map(shared, drawn))
    assert any(map(shared, steps({})))  # without them some batch does
    # With 4 places of 3 panoramas a step always has hard negatives too.
    assert all(len({table[row]["place"] for row, _ in step}) == 4 for step in drawn)
