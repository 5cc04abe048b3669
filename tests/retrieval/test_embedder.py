"""Photos to descriptors: rows and names correspond, whatever comes in, and what can't be used is told."""

import json
import threading
import time
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from d2vpr_hf.models.checkpoint import open_checkpoint, save_checkpoint
from d2vpr_hf.photos.images import UnreadableImage, open_image
from d2vpr_hf.retrieval import embedder as embedder_module
from d2vpr_hf.retrieval.descriptors import file_states
from d2vpr_hf.retrieval.embedder import Embedder, embed_images, weight_hash
from tests.broken_photos import BROKEN_KINDS, encoded, photo, write_broken, write_good


class MeanColours(torch.nn.Module):
    """A stand-in whose descriptor is the image's mean colour in each quarter: 12 numbers that tell photos apart."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.batches = []

    def forward(self, pixel_values):
        self.batches.append(len(pixel_values))
        quarters = torch.nn.functional.adaptive_avg_pool2d(pixel_values * self.weight, 2).flatten(1)
        return SimpleNamespace(pooler_output=quarters)


class Failing(torch.nn.Module):
    """Raises after some batches."""

    def __init__(self, error, after=0):
        super().__init__()
        self.error, self.left = error, after

    def forward(self, pixel_values):
        if not self.left:
            raise self.error
        self.left -= 1
        return SimpleNamespace(pooler_output=pixel_values.mean((2, 3)))


@pytest.fixture
def model():
    return MeanColours()


@pytest.fixture
def run(model, tiny_processor):
    """embed_images with the stand-in, quietly."""

    def embed(images, **options):
        return embed_images(images, **{"model": model, "processor": tiny_processor, "progress": False, **options})

    return embed


def expected(paths, processor):
    """Each photo's descriptor by itself, with nothing of the library's pipeline but decoding."""
    pixels = torch.cat([processor(open_image(path), return_tensors="pt")["pixel_values"] for path in paths])
    return MeanColours()(pixels).pooler_output.detach().numpy()


def test_200_good_photos_and_50_broken_ones(tmp_path, tiny_model, tiny_processor):
    """50 files of ten kinds are skipped and named; the 200 others have one row each, all different."""
    good = [str(write_good(tmp_path, number)) for number in range(200)]
    broken = [str(write_broken(tmp_path, number, BROKEN_KINDS[number % 10])) for number in range(50)]
    descriptors = embed_images(tmp_path, model=tiny_model, processor=tiny_processor, batch_size=16, progress=False)
    assert descriptors.vectors.shape == (200, tiny_model.config.descriptor_dim)
    assert descriptors.vectors.dtype == np.float32
    assert descriptors.paths == sorted(good)
    assert [path for path, _ in descriptors.skipped] == sorted(broken)
    assert all(len(reason) > 5 for _, reason in descriptors.skipped)
    # Rows correspond: a photo by itself gives the row that bears its name.
    for row in (0, 57, 199):
        alone = embed_images(descriptors.paths[row], model=tiny_model, processor=tiny_processor, progress=False)
        np.testing.assert_allclose(alone.vectors[0], descriptors.vectors[row], atol=1e-6)
    assert torch.pdist(torch.from_numpy(descriptors.vectors)).min() > 1e-4


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (4, 3), (64, 2)])
def test_rows_belong_to_their_paths_at_any_batch_size(tmp_path, run, tiny_processor, batch_size, workers):
    good = [write_good(tmp_path, number) for number in range(14)]
    mixed = [write_broken(tmp_path, 0, "text"), *good[:6], write_broken(tmp_path, 1, "empty"), *good[6:]]
    descriptors = run(mixed, batch_size=batch_size, workers=workers)
    assert descriptors.paths == [str(path) for path in good]
    assert [path for path, _ in descriptors.skipped] == [str(mixed[0]), str(mixed[7])]
    np.testing.assert_allclose(descriptors.vectors, expected(good, tiny_processor), atol=1e-6)
    assert len(np.unique(descriptors.vectors.round(4), axis=0)) == 14


def test_every_kind_of_input_gives_the_same_rows(tmp_path, run, tiny_processor):
    photos = [photo(number) for number in range(5)]
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path, image in zip(paths, photos, strict=True):
        image.save(path)
    files = [str(path) for path in paths]
    rows = expected(paths, tiny_processor)
    dataset = datasets.Dataset.from_dict({"image": files, "place": list("vwxyz")})
    numbers = list("01234")
    inputs = {
        "folder": (tmp_path, files),
        "folder as text": (str(tmp_path), files),
        "paths": (paths, files),
        "paths as text": (files, files),
        "PIL": (photos, numbers),
        "arrays": ([np.asarray(image) for image in photos], numbers),
        "one array": (np.stack([np.asarray(image) for image in photos]), numbers),
        "mixed": ([paths[0], photos[1], np.asarray(photos[2]), *files[3:]], [files[0], "1", "2", *files[3:]]),
        "dataset": (dataset.cast_column("image", datasets.Image()), numbers),
    }
    for kind, (images, names) in inputs.items():
        descriptors = run(images, batch_size=2)
        np.testing.assert_allclose(descriptors.vectors, rows, atol=1e-6, err_msg=kind)
        assert descriptors.vectors.dtype == np.float32
        assert descriptors.paths == names, kind
    for single in (paths[0], files[0], photos[0], np.asarray(photos[0])):
        assert run(single).vectors.shape == (1, 12)
    assert rows.std(axis=0).min() > 1e-3


def test_a_dataset_row_that_is_broken_is_skipped_alone(run, tmp_path):
    path = tmp_path / "photo.jpg"
    photo(3).save(path)
    images = [
        {"bytes": encoded(photo(0)), "path": None},
        {"bytes": b"no photo", "path": "x.jpg"},
        None,
        {"bytes": None, "path": str(path)},
        {"bytes": None, "path": str(tmp_path / "gone.jpg")},
    ]
    dataset = datasets.Dataset.from_dict({"picture": images}, datasets.Features({"picture": datasets.Image()}))
    descriptors = run(dataset)
    assert descriptors.paths == ["0", "3"]
    assert [row for row, _ in descriptors.skipped] == ["1", "2", "4"]
    assert "not an image" in descriptors.skipped[0][1]
    features = datasets.Features({"left": datasets.Image(), "right": datasets.Image()})
    two = datasets.Dataset.from_dict({"left": images[:1], "right": images[:1]}, features)
    with pytest.raises(ValueError, match="of which 2 hold images"):
        run(two)


def test_what_is_no_image_is_skipped_or_refused(run, tmp_path):
    wrong = [photo(0), np.zeros((5, 5), np.uint8), 7, np.zeros((5, 5, 3), np.float32), photo(1)]
    descriptors = run(wrong)
    assert descriptors.paths == ["0", "4"]
    assert [row for row, _ in descriptors.skipped] == ["1", "2", "3"]
    path = tmp_path / "cut.png"
    path.write_bytes(encoded(photo(0), "PNG")[:3000])
    assert "damaged" in run([Image.open(path), photo(0)]).skipped[0][1]
    with pytest.raises(TypeError, match="Make a list of an iterator"):
        run(iter([photo(0)]))
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        run([photo(0)], dtype="int8")
    with pytest.raises(ValueError, match="batch_size is 0"):
        run([photo(0)], batch_size=0)
    with pytest.raises(ValueError, match="images that aren't files"):
        run([photo(0)], folder=tmp_path / "out")


def test_nothing_usable_gives_no_rows_and_all_reasons(tmp_path, run, tiny_model):
    write_broken(tmp_path, 0, "text")
    assert run(tmp_path).vectors.shape == (0, 0)
    assert len(run(tmp_path).skipped) == 1
    assert run(tmp_path, model=tiny_model).vectors.shape == (0, tiny_model.config.descriptor_dim)
    assert len(run([])) == 0


def test_strict_names_the_file(tmp_path, run):
    write_good(tmp_path, 0)
    broken = write_broken(tmp_path, 0, "truncated-jpeg")
    with pytest.raises(UnreadableImage, match="cut short") as caught:
        run(tmp_path, strict=True)
    assert caught.value.path == str(broken)


def test_descriptors_that_are_no_numbers_are_skipped(run):
    class Poisoned(MeanColours):
        def forward(self, pixel_values):
            output = super().forward(pixel_values)
            output.pooler_output[pixel_values.mean(dim=(1, 2, 3)) > 2] = torch.nan
            return output

    white = Image.new("RGB", (20, 20), "white")
    images = [photo(0), white, photo(1), photo(2), white]
    descriptors = run(images, model=Poisoned(), batch_size=2)
    assert descriptors.paths == ["0", "2", "3"]
    assert [row for row, _ in descriptors.skipped] == ["1", "4"]
    np.testing.assert_array_equal(descriptors.vectors, run([photo(0), photo(1), photo(2)]).vectors)
    with pytest.raises(UnreadableImage, match=r"^1: .*isn't finite"):
        run(images, model=Poisoned(), strict=True)


def test_images_of_several_shapes_are_batched_by_shape(model, run, tiny_processor):
    tiny_processor.do_resize = False
    sizes = [(28, 28), (28, 28), (42, 28), (28, 28), (28, 28), (28, 28)]
    images = [photo(number, *size) for number, size in enumerate(sizes)]
    together = run(images, batch_size=2)
    assert model.batches == [2, 1, 2, 1]
    alone = np.concatenate([run(image).vectors for image in images])
    np.testing.assert_allclose(together.vectors, alone, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast_keeps_weights_and_gives_float32(tiny_model, tiny_processor, dtype):
    images = [photo(number) for number in range(4)]
    options = {"model": tiny_model, "processor": tiny_processor, "progress": False}
    exact = embed_images(images, **options)
    rounded = embed_images(images, dtype=dtype, **options)
    assert rounded.vectors.dtype == np.float32
    assert {parameter.dtype for parameter in tiny_model.parameters()} == {torch.float32}
    assert 0 < np.abs(rounded.vectors - exact.vectors).max() < 0.05
    assert rounded.weight_hash == exact.weight_hash


def test_the_model_is_left_as_it_was(model, run):
    model.train()
    model.frozen = torch.nn.Dropout().eval()
    run([photo(0)])
    assert model.training
    assert not model.frozen.training
    failing = Failing(RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        run([photo(0)], model=failing)
    assert failing.training


def test_an_interruption_stops_the_decoders(run):
    with pytest.raises(KeyboardInterrupt):
        run([photo(number) for number in range(30)], model=Failing(KeyboardInterrupt(), after=2), batch_size=2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_a_processor_that_fails_names_the_image(run, tmp_path):
    def failing(image, return_tensors):
        raise TypeError("wrong settings")

    path = write_good(tmp_path, 0)
    with pytest.raises(TypeError, match="wrong settings") as caught:
        run([path], processor=failing)
    assert str(path) in caught.value.__notes__[0]


def test_images_wait_in_bounded_numbers(run):
    """Images are prepared no farther ahead than a few batches, however slow the model is."""
    prepared, most = [], []

    class Watching(MeanColours):
        def forward(self, pixel_values):
            most.append(len(prepared) - sum(self.batches))
            return super().forward(pixel_values)

    def processor(image, return_tensors):
        prepared.append(1)
        return {"pixel_values": torch.zeros(1, 3, 4, 4)}

    assert len(run([photo(0)] * 200, model=Watching(), processor=processor, batch_size=4)) == 200
    assert len(prepared) == 200
    assert 4 <= max(most) <= 5 * 4


def test_the_bar_goes_to_stderr(run, capsys):
    run([photo(0)], progress=True)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "1/1" in printed.err
    run([photo(0)])
    assert capsys.readouterr().err == ""


def test_weight_hash_sees_names_types_shapes_and_values(tiny_model):
    first = weight_hash(tiny_model)
    assert first == weight_hash(tiny_model)
    assert len(first) == 64
    seen = {first}
    for state in (
        {"a": torch.zeros(2, 3)},
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.int32)},
        {"a": torch.ones(2, 3)},
        {"a": torch.ones(2, 3, dtype=torch.bfloat16)},
        {"a": torch.tensor(1.0)},
    ):
        seen.add(weight_hash(SimpleNamespace(state_dict=lambda state=state: state)))
    assert len(seen) == 8
    with torch.no_grad():
        next(tiny_model.parameters()).view(-1)[0] += 1e-4
    assert weight_hash(tiny_model) not in seen


def test_odd_names_come_through(tmp_path, run):
    names = [b"caf\xe9.jpg", b"new\nline.jpg", b"@1@2.jpg", "場.jpg".encode()]
    folder = tmp_path / "with @ and space"
    folder.mkdir()
    for number, name in enumerate(names):
        with open(bytes(folder) + b"/" + name, "wb") as file:  # noqa: PTH123 - a name in bytes
            file.write(encoded(photo(number)))
    descriptors = run(folder)
    shown = ["@1@2.jpg", "caf\\xe9.jpg", "new\nline.jpg", "場.jpg"]
    assert [path.rpartition("/")[2] for path in descriptors.paths] == shown
    written = run(folder, folder=tmp_path / "out")
    assert written.paths == descriptors.paths
    np.testing.assert_array_equal(written.vectors, descriptors.vectors)


def test_descriptors_know_their_model(run, model):
    descriptors = run([photo(0)])
    assert descriptors.model_name == "MeanColours"
    assert descriptors.weight_hash == weight_hash(model)


def test_the_hash_tells_the_lengths_of_a_nested_head_apart(tmp_path, tiny_model):
    tiny_model.add_head(8, nested_dims=(8, 5, 3))
    tiny_model.save_pretrained(tmp_path)
    hashes = [weight_hash(type(tiny_model).from_pretrained(tmp_path, descriptor_dim=dim)) for dim in (8, 5, 3)]
    assert len({*hashes}) == 3
    # At full length it is that of the weights alone, as of a head that isn't nested.
    tiny_model.config.nested_dims = None
    assert weight_hash(tiny_model) == hashes[0]


def test_an_embedder_opens_a_checkpoint_and_embeds_as_the_function_does(tmp_path, tiny_model, tiny_processor):
    folder = save_checkpoint(tmp_path / "tiny", tiny_model, tiny_processor)
    embedder = Embedder.from_pretrained(folder, batch_size=2)
    images = [photo(number) for number in range(3)]
    descriptors = embedder.embed(images, progress=False)
    expected = embed_images(images, model=tiny_model, processor=tiny_processor, batch_size=2, progress=False)
    np.testing.assert_array_equal(descriptors.vectors, expected.vectors)
    assert descriptors.vectors.std() > 1e-3
    assert (descriptors.model_name, embedder.name) == (str(folder), str(folder))
    assert descriptors.weight_hash == embedder.weight_hash == weight_hash(tiny_model)
    assert embedder.descriptor_dim == tiny_model.config.descriptor_dim
    settings = json.loads(json.dumps(tiny_processor.to_dict()))
    del settings["auto_map"]  # saving names the code that travels, which changes nothing in an image
    assert embedder.processor_settings == settings
    with pytest.raises(ValueError, match=r"without config\.json"):
        Embedder.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="there is no model 'd2vpr-big' here"):
        Embedder.from_pretrained("d2vpr-big")


def test_an_embedder_opens_a_nested_head_at_a_length(tmp_path, tiny_model, tiny_processor):
    tiny_model.add_head(8, nested_dims=(8, 5))
    folder = save_checkpoint(tmp_path / "nested", tiny_model, tiny_processor)
    assert Embedder.from_pretrained(folder).descriptor_dim == 8
    assert Embedder.from_pretrained(folder, dim=5).descriptor_dim == 5
    assert Embedder.from_pretrained(folder, usual_dim=5).descriptor_dim == 5
    assert Embedder.from_pretrained(folder, usual_dim=6).descriptor_dim == 8
    with pytest.raises(ValueError, match="may have 8 or 5 numbers"):
        open_checkpoint(folder, 6)


def test_the_kept_hash_follows_the_weights(tiny_model, tiny_processor, monkeypatch):
    embedder, calls = Embedder(tiny_model, tiny_processor), []
    monkeypatch.setattr(embedder_module, "weight_hash", lambda model: calls.append(1) or weight_hash(model))
    first = embedder.weight_hash
    assert embedder.weight_hash == first == weight_hash(tiny_model)
    assert len(calls) == 1
    weight = next(tiny_model.parameters())
    with torch.no_grad():
        weight.add_(1)
    assert embedder.weight_hash == weight_hash(tiny_model) != first
    # A change that PyTorch doesn't count, as of adapters that are merged, is seen by the next run.
    weight.data.sub_(2)
    assert embedder.embed([photo(0)], progress=False).weight_hash == weight_hash(tiny_model) == embedder.weight_hash


def test_threads_that_share_a_model_leave_it_as_it_was(tmp_path, tiny_processor):
    class Normalising(MeanColours):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(3)
            self.modes = set()

        def forward(self, pixel_values):
            self.modes.add(self.norm.training)
            time.sleep(0.01)
            return super().forward(self.norm(pixel_values))

    model = Normalising().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    embedder = Embedder(model, tiny_processor, batch_size=1, workers=1)
    images = [photo(number) for number in range(6)]
    threads = [
        threading.Thread(target=embedder.embed, args=(images[:count],), kwargs={"progress": False})
        for count in range(1, 7)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert model.modes == {False}
    assert model.training
    assert model.norm.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_hash_sees_the_adapter_that_counts_and_nothing_of_wrapping(tiny_model):
    class Adapted(torch.nn.Linear):  # as the layers of peft
        active_adapters, disable_adapters, scaling = ["a"], False, {"a": 1.0, "b": 1.0}

    plain = weight_hash(tiny_model)
    assert weight_hash(torch.nn.DataParallel(tiny_model)) == plain
    assert weight_hash(torch.compile(tiny_model)) == plain
    tiny_model.backbone = torch.compile(tiny_model.backbone)
    assert weight_hash(tiny_model) == plain
    model = torch.nn.Sequential(Adapted(2, 2))
    seen = [weight_hash(model)]
    for change in ({"active_adapters": ["b"]}, {"scaling": {"a": 1.0, "b": 2.0}}, {"disable_adapters": True}):
        for name, value in change.items():
            setattr(model[0], name, value)
        seen.append(weight_hash(model))
    assert len({*seen}) == 4


def test_a_photo_that_changes_is_known_as_it_was_read(tmp_path, run, tiny_processor):
    paths = [write_good(tmp_path, number) for number in range(3)]

    class Disturbing(MeanColours):
        def forward(self, pixel_values):
            photo(9).save(paths[0])  # after it was read
            return super().forward(pixel_values)

    before = file_states(paths)
    descriptors = run(paths, model=Disturbing())
    np.testing.assert_array_equal(descriptors.states, before)
    assert (file_states(paths)[0] != before[0]).any()

    opened = []

    def disturbing(image, return_tensors):
        if not opened:
            photo(8).save(paths[2])  # after it was listed, and before it is read
        opened.append(image)
        return tiny_processor(image, return_tensors=return_tensors)

    again = run(paths, processor=disturbing, batch_size=1, workers=1)
    np.testing.assert_array_equal(again.states, file_states(paths))
    np.testing.assert_array_equal(again.vectors[2], run(paths[2]).vectors[0])


def test_a_photo_that_changes_while_it_is_read_is_skipped(tmp_path, run, monkeypatch):
    paths = [write_good(tmp_path, number) for number in range(2)]

    def disturbed(path):
        image = open_image(path)
        if path == paths[0]:
            photo(9).save(path)
        return image

    monkeypatch.setattr(embedder_module, "open_image", disturbed)
    descriptors = run(paths)
    assert descriptors.paths == [str(paths[1])]
    assert "changed while it was read" in descriptors.skipped[0][1]
