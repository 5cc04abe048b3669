import pickle

import numpy as np
import pandas as pd
import pytest
from broken_photos import photo

from d2vpr_hf import load_protocol, make_town
from d2vpr_hf.photos.images import UnreadableImage, open_image
from d2vpr_hf.protocols.places import TrainingPlaces, join_training_places, read_training_places


def gsv_city(root, city, places):
    """Tables and photos of a city: `places` holds each photo's place number."""
    rows = [(place, 2010 + row, 3, 359 + row, city, 48.5, -2.25, f"pano{row}") for row, place in enumerate(places)]
    columns = ["place_id", "year", "month", "northdeg", "city_id", "lat", "lon", "panoid"]
    (root / "Dataframes").mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=columns).to_csv(root / "Dataframes" / f"{city}.csv", index=False)
    (root / "Images" / city).mkdir(parents=True)
    for place, year, month, turn, *_, pano in rows:
        name = f"{city}_{place:07d}_{year}_{month:02d}_{turn:03d}_48.5_-2.25_{pano}.jpg"
        photo(place * 100 + year).save(root / "Images" / city / name)


@pytest.fixture
def gsv(tmp_path):
    gsv_city(tmp_path / "gsv", "Osaka", [4, 4, 9])
    gsv_city(tmp_path / "gsv", "Bangkok", [4, 4, 4, 17])
    return tmp_path / "gsv"


def test_gsv_cities_numbers_places_by_city(gsv):
    training = read_training_places(gsv)
    assert training.name == "GSV-Cities"
    assert training.places.dtype == np.int64
    assert training.places.tolist() == [4, 4, 4, 17, 100_004, 100_004, 100_009]
    assert training.names[4] == f"{gsv}/Images/Osaka/Osaka_0000004_2010_03_359_48.5_-2.25_pano0.jpg"
    assert np.array_equal(training.open(4), open_image(training.names[4]))
    assert not np.array_equal(training.open(4), training.open(5))
    # The same numbers whether a city is read alone or among the others.
    alone = read_training_places(gsv, cities=["Osaka"])
    assert alone.places.tolist() == [100_004, 100_004, 100_009]
    assert alone.names == training.names[4:]


def test_the_benchmark_as_a_dataset_gives_the_same_places(gsv, tmp_path):
    dataset = load_protocol("gsv-cities", gsv, cache_dir=tmp_path / "cache")["train"]
    folder, table = read_training_places(gsv), read_training_places(dataset)
    assert dataset["place"][:] == folder.places.tolist() == table.places.tolist()
    assert [name.removeprefix(f"{gsv}/") for name in folder.names] == table.names
    assert all(np.array_equal(folder.open(row), table.open(row)) for row in range(len(folder)))
    osaka = read_training_places(dataset, cities=["Osaka"])
    assert osaka.places.tolist() == [100_004, 100_004, 100_009]
    assert np.array_equal(osaka.open(2), folder.open(6))


def test_a_made_town_is_a_city(tmp_path):
    make_town(tmp_path, places=2, views=3, layout="gsv", height=24, width=32)
    training = read_training_places(tmp_path)
    assert sorted(training.places.tolist()) == [0, 0, 0, 1, 1, 1]
    assert training.open(0).size == (32, 24)


def test_gsv_cities_names_what_is_wrong(gsv):
    with pytest.raises(ValueError, match=r"no city 'Bangcock'. Did you mean Bangkok\? Known are Bangkok, Osaka"):
        read_training_places(gsv, cities=["Bangcock"])
    with pytest.raises(ValueError, match=r"cities is 'Osaka'; expected a list"):
        read_training_places(gsv, cities="Osaka")
    next((gsv / "Images" / "Bangkok").glob("*pano3.jpg")).unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of the 7 photos .*Bangkok_0000017_2013.*name the cities"):
        read_training_places(gsv)
    assert len(read_training_places(gsv, cities=["Osaka"])) == 3
    table = gsv / "Dataframes" / "Osaka.csv"
    table.write_text(table.read_text().replace("\n9,", "\n100000,"))
    with pytest.raises(ValueError, match=r"Osaka.csv has place numbers from 4 to 100000, but a city's are 0 to 99999"):
        read_training_places(gsv, cities=["Osaka"])


def write_places(root, places):
    """Photos in one folder; gives their names."""
    root.mkdir()
    for row in range(len(places)):
        photo(row).save(root / f"{row}.png")
    return [f"{row}.png" for row in range(len(places))]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_folder_with_metadata(tmp_path, kind):
    places = ["mill", "bridge", "mill", "bridge", "arch"]
    table = pd.DataFrame({"file_name": write_places(tmp_path / "own", places), "place": places})
    if kind == "csv":
        table.to_csv(tmp_path / "own/metadata.csv", index=False)
    else:
        table.to_parquet(tmp_path / "own/metadata.parquet")
    training = read_training_places(tmp_path / "own")
    assert training.places.tolist() == [2, 1, 2, 1, 0]  # numbered in sorted order
    assert training.names[1] == f"{tmp_path}/own/1.png"
    assert np.array_equal(training.open(1), photo(1))
    with pytest.raises(ValueError, match=r"metadata\.\w+ has no column 'site'; its columns are file_name, place\."):
        read_training_places(tmp_path / "own", place_column="site")
    with pytest.raises(ValueError, match=r"cities is \['Osaka'\], but .*own isn't laid out by city"):
        read_training_places(tmp_path / "own", cities=["Osaka"])


def test_metadata_that_can_not_be_used(tmp_path):
    names = write_places(tmp_path / "own", range(3))
    for places, message in (
        (["a", None, "a"], "has no place in row 1"),
        ([0.5, 0.5, 1], "of type float64; expected integers or text"),
        ([1, 2, 3], "3 images of 3 places, none with two images"),
    ):
        pd.DataFrame({"file_name": names, "place": places}).to_csv(tmp_path / "own/metadata.csv", index=False)
        with pytest.raises(ValueError, match=message):
            read_training_places(tmp_path / "own")
    pd.DataFrame({"file_name": ["../0.png"], "place": [0]}).to_csv(tmp_path / "own/metadata.csv", index=False)
    with pytest.raises(ValueError, match="outside of the set's folder"):
        read_training_places(tmp_path / "own")


def test_a_folder_with_a_subfolder_a_place(tmp_path):
    for number, place in enumerate(("7", "007", "7", "007")):
        (tmp_path / place / "deeper").mkdir(parents=True, exist_ok=True)
        photo(number).save(tmp_path / place / "deeper" / f"{number}.png")
    training = read_training_places(tmp_path)
    assert training.places.tolist() == [0, 0, 1, 1]
    assert [np.array_equal(training.open(row), photo(seed)) for row, seed in enumerate((1, 3, 0, 2))] == [True] * 4
    photo(9).save(tmp_path / "stray.png")
    with pytest.raises(ValueError, match=r"photos beside its subfolders, such as stray.png; expected one subfolder"):
        read_training_places(tmp_path)
    with pytest.raises(NotADirectoryError, match="nowhere is not a folder"):
        read_training_places(tmp_path / "nowhere")


def images_dataset(count, **columns):
    from datasets import Dataset, Image

    return Dataset.from_dict({"picture": [photo(row) for row in range(count)], **columns}).cast_column(
        "picture", Image()
    )


def test_a_dataset_with_images_inside(tmp_path):
    dataset = images_dataset(4, site=["b", "a", "b", "a"], number=[5, 3, 5, 3])
    training = read_training_places(dataset, place_column="site")
    assert training.places.tolist() == [1, 0, 1, 0]
    assert read_training_places(dataset, place_column="number").places.tolist() == [5, 3, 5, 3]
    assert np.array_equal(training.open(2), photo(2))
    shuffled = read_training_places(dataset.select([3, 0, 1, 2]), place_column="number")
    assert shuffled.places.tolist() == [3, 5, 3, 5]
    assert np.array_equal(shuffled.open(0), photo(3))
    copy = pickle.loads(pickle.dumps(training))
    assert np.array_equal(copy.open(1), photo(1))


def test_a_dataset_that_can_not_be_used(tmp_path):
    from datasets import DatasetDict

    dataset = images_dataset(2, place=[1, 1])
    with pytest.raises(ValueError, match=r"no column 'site'; its columns are picture, place"):
        read_training_places(dataset, place_column="site")
    with pytest.raises(ValueError, match=r"no column 'city'"):
        read_training_places(dataset, cities=["Osaka"])
    with pytest.raises(ValueError, match="of which 0 hold images"):
        read_training_places(dataset.remove_columns("picture"))
    with pytest.raises(TypeError, match=r"DatasetDict of train\. Give one of them: source\['train'\]"):
        read_training_places(DatasetDict(train=dataset))
    with pytest.raises(TypeError, match="of type int; expected a folder"):
        read_training_places(3)
    broken = images_dataset(2, place=[1, 1]).to_dict()
    broken["picture"][1]["bytes"] = b"no photo"
    from datasets import Dataset, Image

    training = read_training_places(Dataset.from_dict(broken).cast_column("picture", Image()))
    assert training.open(0).mode == "RGB"
    with pytest.raises(UnreadableImage, match=r"row 1 of .*not an image"):
        training.open(1)


def test_joined_sets_keep_their_places_apart(gsv):
    own = TrainingPlaces("own", np.array([-3, -3, 8]), ["x", "y", "z"], photo, {-3: frozenset({8}), 8: frozenset({-3})})
    joined = join_training_places([own, read_training_places(gsv), own])
    # GSV-Cities' places begin at 9, after 8, and end at 100,014; -3 then becomes 100,015 and 8 becomes 100,026.
    assert joined.places.tolist() == [-3, -3, 8, 9, 9, 9, 22, 100_009, 100_009, 100_014, 100_015, 100_015, 100_026]
    assert joined.conflicts == {
        -3: frozenset({8}), 8: frozenset({-3}), 100_015: frozenset({100_026}), 100_026: frozenset({100_015}),
    }  # fmt: skip
    assert joined.names[10:] == ["x", "y", "z"]
    assert np.array_equal(joined.open(12), photo(2))
    assert np.array_equal(joined.open(3), read_training_places(gsv).open(0))
    assert joined.name == "own + GSV-Cities + own"
    both = read_training_places([gsv, gsv], cities=["Osaka"])
    assert both.places.tolist() == [100_004, 100_004, 100_009, 100_010, 100_010, 100_015]
    with pytest.raises(ValueError, match="no sources"):
        read_training_places([])
