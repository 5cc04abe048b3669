import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from d2vpr_hf.files import hash_file, holding
from d2vpr_hf.photos.folder import read_photo_folder
from d2vpr_hf.photos.positions import Positions
from d2vpr_hf.retrieval import update as module
from d2vpr_hf.retrieval.embedder import Embedder
from d2vpr_hf.retrieval.index import PlaceIndex
from d2vpr_hf.retrieval.index_folder import PLACES_SCHEMA
from d2vpr_hf.retrieval.update import PARTIAL_FOLDER, index_photos


class MeanColours(torch.nn.Module):
    """Describes a photo by its pixels, and counts the photos it has seen."""

    def __init__(self, tint: float = 0.0) -> None:
        super().__init__()
        self.tint = torch.nn.Parameter(torch.tensor(tint))
        self.config = SimpleNamespace(descriptor_dim=192, name_or_path="mean-colours")
        self.name_or_path = "mean-colours"
        self.seen = 0

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        self.seen += len(pixel_values)
        return SimpleNamespace(pooler_output=torch.nn.functional.normalize(pixel_values.flatten(1) + self.tint))


def processor(image: Image.Image | list, return_tensors: str | None = None) -> dict:
    images = image if isinstance(image, list) else [image]
    pixels = [np.asarray(each.resize((8, 8)), np.float32).transpose(2, 0, 1) / 255 for each in images]
    return {"pixel_values": torch.from_numpy(np.stack(pixels))}


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        write_photo(folder / f"{number}.png", number)
    return folder


def write_photo(path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


def update(photos: Path, places: Path, model: MeanColours, positions: Path | None = None) -> module.IndexUpdate:
    folder = read_photo_folder(photos, positions=positions)
    return index_photos(folder, places, Embedder(model, processor), progress=False)


def names(index: PlaceIndex) -> list[str]:
    return sorted(Path(path).name for path in index.places["path"])


def assert_finds_each_photo(photos: Path, places: Path, model: MeanColours) -> None:
    index = PlaceIndex.load(places)
    for path in photos.glob("*.png"):
        with torch.no_grad():
            vector = model(**processor(Image.open(path).convert("RGB"))).pooler_output.numpy()
        matches = index.search(vector, 1)
        assert matches.paths[0, 0] == str(path)
        assert matches.scores[0, 0] == pytest.approx(1, abs=1e-5)


def test_a_second_run_embeds_nothing_and_takes_up_what_changed(photos, tmp_path):
    model, places = MeanColours(), tmp_path / "places"
    first = update(photos, places, model)
    assert (first.added, first.kept, first.removed, model.seen) == (5, 0, 0, 5)
    assert not (places / PARTIAL_FOLDER).exists()

    again = update(photos, places, model)
    assert (again.added, again.kept, again.removed, model.seen) == (0, 5, 0, 5)

    write_photo(photos / "new.png", 7)
    write_photo(photos / "1.png", 8)
    os.utime(photos / "1.png", ns=(1, 1))  # the new photo may have the size of the old one
    (photos / "2.png").unlink()
    changed = update(photos, places, model)
    assert (changed.added, changed.kept, changed.removed, model.seen) == (2, 3, 2, 7)
    assert names(changed.index) == ["0.png", "1.png", "3.png", "4.png", "new.png"]
    assert_finds_each_photo(photos, places, model)


def test_an_interrupted_run_goes_on_without_embedding_twice(photos, tmp_path, monkeypatch):
    model, places = MeanColours(), tmp_path / "places"

    def killed(self: PlaceIndex, folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(PlaceIndex, "save_held", killed)
        with pytest.raises(KeyboardInterrupt):
            update(photos, places, model)
    assert model.seen == 5
    write_photo(photos / "late.png", 9)
    result = update(photos, places, model)
    assert model.seen == 6
    assert result.added == 6
    assert_finds_each_photo(photos, places, model)


def test_positions_learnt_later_are_taken_up_without_embedding(photos, tmp_path):
    model, places = MeanColours(), tmp_path / "places"
    assert not update(photos, places, model).index.positions.known.any()
    table = tmp_path / "positions.csv"
    table.write_text("path,lat,lon\n0.png,47.37,8.54\n3.png,-33.9,18.4\n")
    index = update(photos, places, model, table).index
    assert model.seen == 5
    where = index.places.set_index(index.places["path"].map(lambda path: Path(path).name))
    assert where.loc["0.png", "latitude"] == pytest.approx(47.37)
    assert where.loc["3.png", "longitude"] == pytest.approx(18.4)
    assert index.positions.known.sum() == 2
    assert_finds_each_photo(photos, places, model)
    ids = index.places["id"].tolist()
    assert update(photos, places, model, table).index.places["id"].tolist() == ids


def test_photos_that_cannot_be_used_are_listed_every_time(photos, tmp_path):
    model, places = MeanColours(), tmp_path / "places"
    (photos / "broken.png").write_bytes(b"no image")
    for _ in range(2):
        result = update(photos, places, model)
        assert [Path(path).name for path, _ in result.skipped] == ["broken.png"]
        assert len(result.index) == 5


def test_nothing_usable_leaves_no_index(tmp_path):
    photos, places = tmp_path / "photos", tmp_path / "places"
    photos.mkdir()
    (photos / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"None of the 1 photos .*broken\.png: not an image"):
        update(photos, places, MeanColours())
    assert not (places / "index.json").exists()


def test_other_weights_and_folders_of_something_else_are_refused(photos, tmp_path):
    places = tmp_path / "places"
    update(photos, places, MeanColours())
    with pytest.raises(ValueError, match="the two can't be compared"):
        update(photos, places, MeanColours(tint=0.5))
    assert len(PlaceIndex.load(places)) == 5
    shutil.rmtree(places)
    places.mkdir()
    (places / "diary.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"diary\.txt and no index"):
        update(photos, places, MeanColours())


def test_all_photos_gone_but_one(photos, tmp_path):
    model, places = MeanColours(), tmp_path / "places"
    update(photos, places, model)
    for number in range(4):
        (photos / f"{number}.png").unlink()
    result = update(photos, places, model)
    assert names(result.index) == ["4.png"]
    assert result.removed == 4
    assert isinstance(result.index.positions, Positions)


def test_a_photo_that_changes_while_it_is_indexed_is_embedded_again(photos, tmp_path):
    class Disturbed(MeanColours):
        def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
            write_photo(photos / "3.png", 33)  # it was read before
            return super().forward(pixel_values)

    places = tmp_path / "places"
    update(photos, places, Disturbed())
    model = MeanColours()
    assert (update(photos, places, model).added, model.seen) == (1, 1)
    assert_finds_each_photo(photos, places, model)


def test_names_that_are_no_utf_8_are_known_again(photos, tmp_path):
    model, places = MeanColours(), tmp_path / "places"
    odd = Path(os.fsdecode(bytes(photos) + b"/caf\xe9.png"))
    try:
        (photos / "0.png").rename(odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    assert update(photos, places, model).added == 5
    assert update(photos, places, model).kept == 5
    shutil.copy(photos / "1.png", photos / "caf\\xe9.png")  # named like an escape of the other
    result = update(photos, places, model)
    assert (result.added, result.kept, len({*result.index.places["path"]})) == (1, 5, 6)
    assert (update(photos, places, model).kept, model.seen) == (6, 6)


def test_photos_that_swapped_names_are_embedded_again(photos, tmp_path):
    model, places = MeanColours(), tmp_path / "places"
    for number in (0, 1):  # of one size
        colours = np.full((8, 8, 3), [40, 90, 40 + 40 * number], np.uint8)
        Image.fromarray(colours).save(photos / f"{number}.png", compress_level=0)
        os.utime(photos / f"{number}.png", ns=(5, 5))
    update(photos, places, model)
    (photos / "0.png").rename(photos / "swap")
    (photos / "1.png").rename(photos / "0.png")
    (photos / "swap").rename(photos / "1.png")
    assert update(photos, places, model).added == 2


def test_a_second_writer_is_refused_and_harms_nothing(photos, tmp_path):
    model, places = MeanColours(), tmp_path / "places"
    index = update(photos, places, model).index
    (photos / "0.png").unlink()
    with holding(places):
        for write in (lambda: update(photos, places, model), lambda: index.save(places)):
            with pytest.raises(RuntimeError, match="being written by another run"):
                write()
    assert len(PlaceIndex.load(places)) == 5
    assert len(update(photos, places, model).index) == 4


def test_another_processor_is_refused_before_anything_is_embedded(photos, tmp_path, tiny_processor):
    model, places = MeanColours(), tmp_path / "places"
    update(photos, places, model)
    with pytest.raises(ValueError, match=r"other settings .*Use those of the index, or build a new index"):
        index_photos(read_photo_folder(photos), places, Embedder(model, tiny_processor), progress=False)
    with pytest.raises(ValueError, match="dtype float32, now bfloat16"):
        index_photos(read_photo_folder(photos), places, Embedder(model, processor, dtype="bfloat16"), progress=False)
    assert model.seen == 5


def test_an_index_of_version_1_is_read_and_brought_up_to_date(photos, tmp_path):
    model, places = MeanColours(), tmp_path / "places"
    update(photos, places, model)
    settings = json.loads((places / "index.json").read_text())
    path = places / settings["places"]["file"]
    pq.write_table(pq.read_table(path).select(PLACES_SCHEMA.names[:-2]), path)
    settings["places"] |= {"size_bytes": path.stat().st_size, "sha256": hash_file(path)}
    del settings["processor"], settings["dtype"]
    (places / "index.json").write_text(json.dumps(settings | {"version": 1}))
    old = PlaceIndex.load(places)
    assert (old.processor, old.dtype, old.places["inode"].tolist()) == (None, None, [-1] * 5)
    result = update(photos, places, model)
    assert (result.kept, model.seen) == (5, 5)
    assert json.loads((places / "index.json").read_text())["version"] == 2
    assert (PlaceIndex.load(places).places["inode"] > 0).all()
