"""The command line from the outside: arguments in, text, files and exit codes out."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2vpr_hf.cli import main as cli
from d2vpr_hf.cli.main import main
from d2vpr_hf.cli.options import DEFAULT_MODEL
from d2vpr_hf.models.checkpoint import DEFAULT_PRETRAINED, save_checkpoint
from d2vpr_hf.photos.positions import Positions
from d2vpr_hf.retrieval.embedder import Descriptors

COMMANDS = [
    *("demo", "index", "locate", "embed", "pairs", "evaluate", "verify"),
    *("reduce", "convert", "cut", "export", "train", "benchmark"),
]
# Two streets 200 m apart with three photos each, 8 m from one another; a degree of latitude is 111 km.
STREETS = {"north": 47.3720, "south": 47.3702}
STEP = 8 / 111_000


@pytest.fixture
def model(tmp_path, tiny_model, tiny_processor) -> str:
    """A checkpoint folder of the tiny model."""
    return str(save_checkpoint(tmp_path / "tiny", tiny_model, tiny_processor))


@pytest.fixture
def photos(tmp_path) -> Path:
    """Six photos of two streets, named as the benchmarks name theirs; those of a street look alike."""
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for street, latitude in STREETS.items():
        scene = random.integers(0, 256, (6, 8, 3))
        for number in range(3):
            write_photo(folder / at(latitude + number * STEP, f"{street}{number}"), scene, random)
    return folder


@pytest.fixture
def query(tmp_path) -> Path:
    """A photo of the northern street that says nothing about where it was taken."""
    scene = np.random.default_rng(0).integers(0, 256, (6, 8, 3))
    return write_photo(tmp_path / "query.jpg", scene, np.random.default_rng(1))


def at(latitude: float, note: str) -> str:
    place = Positions.from_degrees([latitude], [8.54])
    metres = f"@{place.easting[0]:.2f}@{place.northing[0]:.2f}@{place.zone[0]}@T"
    return f"{metres}@{latitude:.6f}@8.540000@{note}@@@@@@@@.jpg"


def write_photo(path: Path, scene: np.ndarray, random: np.random.Generator) -> Path:
    pixels = np.clip(scene + random.integers(-20, 21, scene.shape), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).resize((80, 60), Image.Resampling.NEAREST).save(path, quality=95)
    return path


@pytest.fixture
def places(tmp_path, photos, model, capsys) -> Path:
    folder = tmp_path / "places"
    assert main(["index", str(photos), str(folder), "--model", model]) == 0
    capsys.readouterr()
    return folder


def run_json(capsys, *arguments: str) -> dict:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def fails(capsys, *arguments: str) -> str:
    """What a command that must end with exit code 2 says: one paragraph, no traceback."""
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert len(err.strip().splitlines()[-1]) > 20
    return err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_begins_with_an_example_and_explains_every_option(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"\n  d2vpr {command}" in text.split("\n\n")[1]  # right below what it does
    parser = next(action.choices[command] for action in cli.build_parser()._actions if isinstance(action.choices, dict))
    for action in parser._actions:
        assert action.help, action.dest
        assert len(action.help) > 10
    assert text.index("--model" if "--model" in text else "--json") < text.index("--help")


def test_help_and_version(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n    {command} " in text for command in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("d2vpr 0.")
    assert main([]) == 2
    assert "d2vpr COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["lokate", "x.jpg"], "Did you mean locate?"),
        (["locate", "x.jpg", "--index", "p", "--thresold", "0.5"], "Did you mean --threshold?"),
        (["embed", "a", "b", "--dtype", "float61"], "Did you mean float16?"),
        (["locate", "x.jpg"], "--index"),
        (["locate", "x.jpg", "--index", "p", "--k", "0"], "0 must be an integer of at least 1"),
        (["locate", "x.jpg", "--index", "p", "--near", "47", "8"], "--radius-m R go together"),
        (
            ["evaluate", "--database", "a", "--queries", "b"],
            "--radius-m 25, --positives positives.json, or --no-labels",
        ),
        (["evaluate", "--database", "a", "--queries", "b", "--radius-m", "-5"], "-5 must be a number above 0"),
    ],
)
def test_wrong_usage_says_what_is_meant(arguments, suggestion, capsys):
    assert suggestion in fails(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("locate", "", "--index", "places"), "PHOTO"),
        (("index", "photos", ""), "PLACES"),
        (("index", "photos", "places", "--model", ""), "--model"),
    ],
)
def test_an_empty_text_is_no_path(arguments, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert f"argument {named}: an empty text" in fails(capsys, *arguments)
    assert not any(tmp_path.iterdir())


def test_a_missing_model_names_the_demo_and_the_option(tmp_path, photos, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    message = fails(capsys, "index", str(photos), "places", "--model", "d2vpr")
    assert "'d2vpr'" in message
    assert "d2vpr demo" in message
    assert "--model" in message
    assert "d2vpr-small" in message
    assert not Path("places").exists()


def test_the_model_is_the_packages_own_unless_told_otherwise(tmp_path, photos, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert DEFAULT_MODEL == DEFAULT_PRETRAINED
    assert run_json(capsys, "index", str(photos), "places")["places"] == len(list(photos.iterdir()))
    assert json.loads(Path("places/index.json").read_text())["model_name"] == DEFAULT_PRETRAINED


def test_a_checkpoint_of_the_package_goes_by_its_name(tmp_path, photos, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["index", str(photos), "places", "--model", "d2vpr-small"]) == 0
    # Another command, and another directory, know it again.
    assert main(["locate", str(next(photos.iterdir())), "--index", "places"]) == 0
    capsys.readouterr()
    # A folder of that name is meant before the package's.
    Path("d2vpr-small").mkdir()
    assert "without config.json" in fails(capsys, "index", str(photos), "other", "--model", "d2vpr-small")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder.mkdir(), "without config.json"),
        (lambda folder: folder.write_bytes(b"x"), "is a file, but a checkpoint is a folder"),
        (lambda folder: (folder.mkdir(), (folder / "config.json").write_text("{")), "isn't JSON"),
        (
            lambda folder: (folder.mkdir(), (folder / "config.json").write_text('{"model_type": "dinov2"}')),
            "a model of type dinov2",
        ),
        (
            lambda folder: (folder.mkdir(), (folder / "config.json").write_text('{"model_type": "d2vpr"}')),
            "can't be opened",
        ),
        (
            lambda folder: (
                folder.mkdir(),
                (folder / "config.json").write_text('{"model_type": "d2vpr", "recovery_layers": [99]}'),
            ),
            "recovery_layers names blocks",
        ),
    ],
)
def test_what_is_no_checkpoint_is_said_to_be_none(make, words, tmp_path, photos, capsys):
    make(tmp_path / "model")
    message = fails(capsys, "index", str(photos), str(tmp_path / "places"), "--model", str(tmp_path / "model"))
    assert words in message


def test_missing_photos_and_indexes_are_named(tmp_path, photos, model, places, capsys):
    missing = str(tmp_path / "missing")
    assert "missing" in fails(capsys, "index", missing, str(tmp_path / "p"), "--model", model)
    assert "missing" in fails(capsys, "locate", missing, "--index", str(places))
    assert "missing" in fails(capsys, "locate", str(next(photos.iterdir())), "--index", missing)
    assert "missing" in fails(capsys, "convert", missing, str(tmp_path / "out"))


def test_debug_shows_the_traceback(tmp_path, model, monkeypatch):
    arguments = ["index", str(tmp_path / "missing"), str(tmp_path / "places"), "--model", model]
    with pytest.raises(OSError, match="missing"):
        main([*arguments, "--debug"])
    monkeypatch.setenv("D2VPR_DEBUG", "1")
    with pytest.raises(OSError, match="missing"):
        main(arguments)


def test_index_then_locate_finds_the_street(places, query, tmp_path, capsys):
    out = tmp_path / "results"
    assert main(["locate", str(query), "--index", str(places), "--k", "3", "--out", str(out), "--regions"]) == 0
    text = capsys.readouterr().out
    assert "query.jpg: 47.372" in text
    assert "confidence  1.00" in text
    assert "confidence: share of the 3 best matches" in text
    assert "'not in this map' is never said: 6 database photos" in text
    for kind in ("matches", "regions"):
        path = out / f"query-{kind}.jpg"
        assert str(path) in text
        with Image.open(path) as picture:
            assert min(picture.size) > 200


def test_locate_as_json_holds_what_the_text_says(places, query, tmp_path, capsys):
    result = run_json(
        capsys, "locate", str(query), "--index", str(places), "--k", "4", "--out", str(tmp_path / "results")
    )
    (answer,) = result["answers"]
    assert STREETS["north"] - 1e-5 < answer["latitude"] < STREETS["north"] + 3 * STEP
    assert answer["confidence"] == pytest.approx((1 + 1 / 2 + 1 / 3) / (1 + 1 / 2 + 1 / 3 + 1 / 4))
    assert [each["distance_m"] < 25 for each in answer["candidates"]] == [True, True, True, False]
    assert Path(answer["picture"]).is_file()
    assert answer["threshold"] is None
    assert result["threshold_rule"].startswith("none")


def test_a_threshold_says_not_in_this_map(places, query, tmp_path, capsys):
    arguments = ["locate", str(query), "--index", str(places), "--out", str(tmp_path)]
    assert main([*arguments, "--threshold", "1"]) == 0
    text = capsys.readouterr().out
    assert "query.jpg: not in this map: best score" in text
    assert "best score below 1.000 (1, as given)" in text
    assert main([*arguments, "--threshold", "-1"]) == 0
    assert "query.jpg: not in this map" not in capsys.readouterr().out


def test_near_and_exclude_restrict_the_answer(places, query, tmp_path, capsys):
    arguments = ["locate", str(query), "--index", str(places), "--out", str(tmp_path)]
    near = ["--near", str(STREETS["south"]), "8.54", "--radius-m", "50"]
    (answer,) = run_json(capsys, *arguments, *near)["answers"]
    assert abs(answer["latitude"] - STREETS["south"]) < 3 * STEP
    assert len(answer["candidates"]) == 3
    (everything,) = run_json(capsys, *arguments)["answers"]
    best = Path(everything["candidates"][0]["path"]).name
    (answer,) = run_json(capsys, *arguments, "--exclude", best, "0")["answers"]
    assert best not in {Path(each["path"]).name for each in answer["candidates"]}
    assert len(answer["candidates"]) < len(everything["candidates"]) or len(everything["candidates"]) == 5
    message = fails(capsys, *arguments, "--exclude", best[:-5] + "x.jpg")
    assert f"Did you mean {best}" in message


def test_photos_without_coordinates_are_answered_by_name(photos, query, model, tmp_path, capsys):
    for path in list(photos.iterdir()):
        path.rename(photos / (path.name.split("@")[7] + ".jpg"))
    assert main(["index", str(photos), str(tmp_path / "places"), "--model", model]) == 0
    assert "6 places" in capsys.readouterr().out
    assert main(["locate", str(query), "--index", str(tmp_path / "places"), "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "query.jpg: looks like north" in text
    assert "confidence" not in text


def test_a_photo_that_knows_its_place_gets_its_matches_judged(places, photos, tmp_path, capsys):
    from d2vpr_hf.reports.pictures import RIGHT_COLOUR, WRONG_COLOUR

    known = next(photos.glob("*north1*"))
    result = run_json(capsys, "locate", str(known), "--index", str(places), "--out", str(tmp_path / "results"))
    pixels = np.asarray(Image.open(result["answers"][0]["picture"]), np.int16)
    for colour in (RIGHT_COLOUR, WRONG_COLOUR):  # three of the north, then two of the south
        rgb = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        assert (np.abs(pixels - rgb).max(axis=-1) < 12).sum() > 2000


def test_what_cannot_be_used_is_listed_and_nothing_usable_is_exit_1(places, photos, model, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    assert main(["locate", str(tmp_path / "broken.jpg"), "--index", str(places)]) == 1
    assert "broken.jpg: not an image" in capsys.readouterr().err
    (photos / "broken.jpg").write_bytes(b"no image")
    result = run_json(capsys, "embed", str(photos), str(tmp_path / "rows"), "--model", model)
    assert result["rows"] == 6
    assert [Path(each["path"]).name for each in result["skipped"]] == ["broken.jpg"]
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "broken.jpg").write_bytes(b"no image")
    assert main(["embed", str(alone), str(tmp_path / "none"), "--model", model]) == 1


def test_strict_stops_at_the_first_photo_that_cannot_be_used(photos, model, tmp_path, capsys):
    (photos / "broken.jpg").write_bytes(b"no image")
    message = fails(capsys, "embed", str(photos), str(tmp_path / "rows"), "--model", model, "--strict")
    assert "broken.jpg: not an image" in message


def test_evaluate_prints_recall_with_its_counts_and_saves_a_page(photos, query, model, tmp_path, capsys):
    queries = tmp_path / "queries"
    queries.mkdir()
    query.rename(queries / at(STREETS["north"], "query"))
    random = np.random.default_rng(5)
    write_photo(queries / at(40.0, "elsewhere"), random.integers(0, 256, (6, 8, 3)), random)
    arguments = ["evaluate", "--database", str(photos), "--queries", str(queries), "--model", model, "--k", "1", "3"]
    assert main([*arguments, "--radius-m", "25", "--save", str(tmp_path / "results")]) == 0
    text = capsys.readouterr().out
    assert "recall@1  50.0 %   1 of 2" in text
    assert "queries without positives: 1 (counted as misses)" in text
    saved = json.loads((tmp_path / "results" / "results.json").read_text())
    assert saved["recall"] == {"recall@1": 0.5, "recall@3": 0.5}
    page = (tmp_path / "results" / "gallery.html").read_text()
    assert page.count("<article") == 2
    assert "no database photo shows its place" in page
    assert run_json(capsys, *arguments, "--radius-m", "25")["recall"] == saved["recall"]


def test_evaluate_takes_an_index_and_lists_of_positives(places, photos, query, model, tmp_path, capsys):
    queries = tmp_path / "queries"
    queries.mkdir()
    query.rename(queries / "query.jpg")
    positives = tmp_path / "positives.json"
    positives.write_text(json.dumps({"query.jpg": [next(photos.glob("*south*")).name]}))
    arguments = ["evaluate", "--database", str(places), "--queries", str(queries), "--model", model]
    result = run_json(capsys, *arguments, "--positives", str(positives), "--k", "1", "6")
    assert result["recall"] == {"recall@1": 0.0, "recall@6": 1.0}
    assert run_json(capsys, *arguments, "--no-labels")["recall"] is None
    assert "--save" in fails(capsys, *arguments, "--no-labels")


def test_an_index_of_another_model_is_refused(places, photos, query, tmp_path, tiny_config, tiny_processor, capsys):
    from d2vpr_hf import D2VprModel

    other = str(save_checkpoint(tmp_path / "other", D2VprModel(tiny_config), tiny_processor))
    assert "weights" in fails(capsys, "locate", str(query), "--index", str(places), "--model", other)
    assert "weights" in fails(capsys, "index", str(photos), str(places), "--model", other)


@pytest.fixture
def nested(tmp_path, tiny_model, tiny_processor) -> str:
    """A checkpoint folder of the tiny model with a head of 8 numbers, of which 5 are a descriptor too."""
    tiny_model.add_head(8, nested_dims=(8, 5))
    return str(save_checkpoint(tmp_path / "nested", tiny_model, tiny_processor))


def test_dim_chooses_the_length_of_a_nested_head(photos, query, nested, tmp_path, capsys):
    embed = ["embed", str(photos)]
    assert run_json(capsys, *embed, str(tmp_path / "8"), "--model", nested)["dim"] == 8
    whole = Descriptors.load(tmp_path / "8").vectors
    assert run_json(capsys, *embed, str(tmp_path / "5"), "--model", nested, "--dim", "5")["dim"] == 5
    cut = whole[:, :5] / np.linalg.norm(whole[:, :5], axis=1, keepdims=True)
    np.testing.assert_allclose(Descriptors.load(tmp_path / "5").vectors, cut, rtol=0, atol=1e-6)
    # Rows of two lengths don't come together, neither in a folder of descriptors nor in an index.
    assert "descriptor_dim" in fails(capsys, *embed, str(tmp_path / "8"), "--model", nested, "--dim", "5")
    places = str(tmp_path / "short_places")
    index = ["index", str(photos), places, "--model", nested]
    run_json(capsys, *index, "--dim", "5")
    assert "descriptors of 5 numbers, but the model gives 8" in fails(capsys, *index)
    # Who searches in an index need not know its length, and can't get it wrong.
    evaluate = ["evaluate", "--database", places, "--queries", str(photos), "--model", nested, "--radius-m", "25"]
    assert run_json(capsys, *evaluate)["settings"]["dim"] == 5
    assert "descriptors of" in fails(capsys, *evaluate, "--dim", "8")
    locate = ["locate", str(query), "--index", places, "--out", str(tmp_path / "results")]
    assert run_json(capsys, *locate)["answers"] == run_json(capsys, *locate, "--dim", "5")["answers"]
    assert "of 5 numbers" in fails(capsys, *locate, "--dim", "8")


def test_a_cache_keeps_the_lengths_of_a_nested_head_apart(photos, nested, tmp_path, capsys):
    town = ["--database", str(photos), "--queries", str(photos), "--radius-m", "25"]
    evaluate = ["evaluate", *town, "--model", nested, "--cache", str(tmp_path / "kept")]
    for dim in (8, 5, 8):
        assert run_json(capsys, *evaluate, "--dim", str(dim))["settings"]["dim"] == dim


def test_dim_names_the_lengths_that_there_are(photos, model, nested, tmp_path, capsys):
    embed = ["embed", str(photos), str(tmp_path / "out"), "--dim", "4", "--model"]
    assert "--dim is 4, but the descriptors of" in (complaint := fails(capsys, *embed, nested))
    assert "may have 8 or 5 numbers" in complaint
    assert "have 672 numbers and no other choice" in fails(capsys, *embed, model)
    own = ["embed", str(photos), str(tmp_path / "own"), "--dim", "672", "--model", model]
    assert run_json(capsys, *own)["dim"] == 672


def run_process(*arguments: str, **settings) -> subprocess.CompletedProcess:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "d2vpr_hf.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **settings)


def test_the_process_keeps_results_and_progress_apart(photos, model, tmp_path):
    done = run_process("index", str(photos), "places", "--model", model, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["places"] == 6
    assert "loading the model" in done.stderr
    assert "Traceback" not in done.stderr


HEAVY = ("torch", "transformers", "numpy", "PIL", "datasets", "accelerate", "pandas", "matplotlib", "faiss", "pyproj")


def loaded_after(code: str, folder: Path) -> list[str]:
    """Which of the heavy modules a process has loaded in the end."""
    code = f"import sys\nfrom d2vpr_hf.cli.main import main\n{code}\nprint([n for n in {HEAVY} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    return ast.literal_eval(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("arguments", [["--help"], ["locate", "--help"], ["--version"], ["locate", "--k", "x"]])
def test_help_and_usage_load_nothing_heavy(arguments, tmp_path):
    assert loaded_after(f"main({arguments})", tmp_path) == []


def test_locate_loads_what_it_needs_when_it_needs_it(places, query, tmp_path):
    missing = f"assert main(['locate', 'gone.jpg', '--index', {str(places)!r}]) == 2"
    assert loaded_after(missing, tmp_path) == []
    whole = f"assert main(['locate', {str(query)!r}, '--index', {str(places)!r}]) == 0"
    # pandas holds the index's places, and transformers loads accelerate with its models.
    assert not {"datasets", "matplotlib"} & (loaded := set(loaded_after(whole, tmp_path)))
    assert "transformers" in loaded


def test_the_package_runs_as_a_module(tmp_path):
    command = [sys.executable, "-m", "d2vpr_hf", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("d2vpr 0.")


@pytest.mark.parametrize(
    "error",
    [
        TypeError("unhashable type: 'list'"),
        KeyError("rows"),
        RecursionError("maximum recursion depth exceeded"),
        StopIteration(),
        type("OddError", (Exception,), {})("two\nlines"),
    ],
)
def test_what_nobody_foresaw_is_one_line_that_asks_for_a_report(error, monkeypatch, capsys):
    def fail(options):
        raise error

    monkeypatch.setattr("d2vpr_hf.cli.convert.run", fail)
    message = fails(capsys, "convert", "a", "b")
    assert len(message.splitlines()) == 1
    assert f"({type(error).__name__}: " in message
    assert "Please report it" in message
    assert "--debug" in message
    with pytest.raises(type(error)):
        main(["convert", "a", "b", "--debug"])


def test_memory_that_ran_out_is_said(monkeypatch, capsys):
    def fail(options):
        raise MemoryError

    monkeypatch.setattr("d2vpr_hf.cli.convert.run", fail)
    assert "memory ran out" in (message := fails(capsys, "convert", "a", "b"))
    assert "--batch-size" in message


DAMAGED = {
    "empty": b"",
    "cut": b'{"a": ["b',
    "Latin-1": '{"é": []}'.encode("latin-1"),
    "a list": b"[1]",
    "a number": b"7",
    "null": b"null",
    "a long integer": b'{"a": [' + b"1" * 5000 + b"]}",
    "deep": b"[" * 100_000,
    "zeros": b"\0" * 10,
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_named(content, places, photos, model, query, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    evaluate = ["evaluate", "--database", "photos", "--queries", "photos", "--model", "tiny", "--positives", "damaged"]
    for file, words in (
        ("damaged", evaluate),
        ("damaged", ["train", "--config", "damaged"]),
        ("damaged", ["push", "tiny", "me/tiny", "--dry-run", "out", "--training", "damaged"]),
        ("damaged", ["push", "tiny", "me/tiny", "--dry-run", "out", "--evaluation", "damaged"]),
        ("damaged.csv", ["index", "photos", "out", "--positions", "damaged.csv", "--model", "tiny"]),
        ("places/index.json", ["locate", "query.jpg", "--index", "places"]),
        ("tiny/config.json", ["embed", "photos", "rows", "--model", "tiny"]),
        ("tiny/preprocessor_config.json", ["embed", "photos", "rows", "--model", "tiny"]),
    ):
        before = Path(file).read_bytes() if Path(file).exists() else b""
        Path(file).write_bytes(content)
        message = fails(capsys, *words).strip().splitlines()[-1]
        # transformers names the folder of a processor that it can't read.
        assert file in message or file.partition("/")[0] + " can't be opened" in message, message
        assert "should not have happened" not in message
        assert len(message) < 700
        Path(file).write_bytes(before)


@contextmanager
def little_room():
    """No file may become larger than 100 bytes, as on a full disk; the file that pytest prints to neither."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["embed", "photos", "out", "--model", "tiny"], "out/parts/part-000001.npy"),
        (["index", "photos", "out", "--model", "tiny"], "out/descriptors.partial/parts/part-000001.npy"),
        (["reduce", "photos", "out", "--model", "tiny", "--dim", "4"], "out.descriptors/parts/part-000001.npy"),
        (["evaluate", "--database", "photos", "--queries", "photos", "--no-labels", "--model", "tiny", "--save", "out"],
         "out/results.json"),
        (["cut", "pano.png", "out", "--headings", "1"], "out/"),
        (["push", "tiny", "me/tiny", "--dry-run", "out"], "out"),
    ],
)  # fmt: skip
def test_a_full_disk_is_said_with_the_file_that_found_no_room(
    words, file, photos, model, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((64, 32), 90).convert("RGB").save("pano.png")
    with little_room():
        said = fails(capsys, *words)
    message = said.strip().splitlines()[-1]
    assert message.startswith(f"d2vpr: {file}")
    assert "File too large. Make room there, or name another folder." in message


@pytest.mark.skipif(os.name == "nt", reason="a shell of Unix closes the output")
def test_a_closed_output_is_no_error(photos, model, tmp_path):
    command = f'"{sys.executable}" -m d2vpr_hf index "{photos}" places --model "{model}" >&-'
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "places" / "index.json").is_file()
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here, which takes nothing")
def test_an_output_that_takes_nothing_is_said():
    code = (
        "import sys\nfrom d2vpr_hf.cli import convert\nfrom d2vpr_hf.cli.main import main\n"
        "convert.run = lambda options: print('done') or 0\nsys.exit(main(['convert', 'a', 'b']))"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert done.stderr.decode().splitlines() == [
        "d2vpr: the answer can't be printed: No space left on device. Let the output go elsewhere."
    ]


def test_a_name_that_the_terminal_cannot_show_does_not_end_a_command(photos, query, model, tmp_path):
    query.rename(tmp_path / "東京.jpg")
    places = str(tmp_path / "places")
    assert main(["index", str(photos), places, "--model", model]) == 0
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "d2vpr_hf", "locate", "東京.jpg", "--index", places]
    done = subprocess.run(command, capture_output=True, check=False, env=ascii_only, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"\\u6771\\u4eac.jpg: 47.372" in done.stdout


TERMINATED = """
import os, signal, sys
from d2vpr_hf import D2VprModel
from d2vpr_hf.cli.main import main

calls, forward = [], D2VprModel.forward
def terminated_in_the_third(self, *args, **kwargs):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return forward(self, *args, **kwargs)

D2VprModel.forward = terminated_in_the_third
sys.exit(main(sys.argv[1:]))
"""


def test_sigterm_ends_a_run_as_ctrl_c_does_and_the_next_goes_on(photos, model, tmp_path):
    words = ["embed", str(photos), str(tmp_path / "rows"), "--model", model, "--batch-size", "1", "--device", "cpu"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", TERMINATED, *words]
    stopped = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert stopped.returncode == 143
    assert "terminated. What was written so far is whole; index, embed, reduce and train go on" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert main(words) == 0
    assert len(Descriptors.load(tmp_path / "rows")) == 6


def test_parts_are_embedded_and_joined_to_an_index(photos, model, tmp_path, capsys):
    rows, options = str(tmp_path / "rows"), ("--model", model, "--device", "cpu")
    for shard in ("2/4", "1/4", "4/4"):
        run_json(capsys, "embed", str(photos), rows, "--shard", shard, *options)
    index = ("index", str(photos), str(tmp_path / "places"), "--from", rows)
    assert "3/4 (missing)" in fails(capsys, *index)
    assert main(["embed", str(photos), rows, "--shard", "3/4", *options]) == 0
    assert ", part 3 of 4 (0 skipped)" in capsys.readouterr().out
    result = run_json(capsys, *index)
    assert (result["places"], result["with_coordinates"], result["model_name"]) == (6, 6, model)
    assert run_json(capsys, "index", str(photos), str(tmp_path / "places"), *options)["kept"] == 6
    assert "--dim" in fails(capsys, *index, "--dim", "5")


@pytest.mark.parametrize("shard", ["0/4", "5/4", "x", "3", "1/0", "-1/4", "1/4/4", "1.5/4", "1/100000", "/"])
def test_a_shard_that_is_none(photos, model, tmp_path, capsys, shard):
    said = fails(capsys, "embed", str(photos), str(tmp_path / "rows"), "--model", model, f"--shard={shard}")
    assert "must be a part's number, from 1, and the number of parts" in said
    assert not (tmp_path / "rows").exists()


def test_parts_have_no_hloc_file(photos, model, tmp_path, capsys):
    words = ["embed", str(photos), str(tmp_path / "rows"), "--shard", "1/2", "--format", "hloc"]
    assert "leave out --format hloc" in fails(capsys, *words)


def test_sigterm_is_left_to_programs_that_handle_it(monkeypatch):
    seen = []
    monkeypatch.setattr("d2vpr_hf.cli.convert.run", lambda options: os.kill(os.getpid(), signal.SIGTERM) or 0)
    before = signal.signal(signal.SIGTERM, lambda *arguments: seen.append(1))
    try:
        assert main(["convert", "a", "b"]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [1]
    assert main(["convert", "a", "b"]) == 143
    assert signal.getsignal(signal.SIGTERM) == before


STRANGE = """
from pathlib import Path
Path("ran").touch()
from transformers import BaseImageProcessor, PretrainedConfig, PreTrainedModel
class Config(PretrainedConfig): model_type = "strange"
class Model(PreTrainedModel): config_class = Config
class Processor(BaseImageProcessor): pass
"""
AUTO_MAP = {"AutoConfig": "strange.Config", "AutoModel": "strange.Model", "AutoImageProcessor": "strange.Processor"}


@pytest.fixture(params=["strange", None, "d2vpr"])
def theirs(request, places, model) -> Path:
    """The checkpoint of the index, which now brings code of its own."""
    model_type, theirs = request.param, Path(model)
    (theirs / "strange.py").write_text(STRANGE)
    for name in ("config.json", "preprocessor_config.json"):
        settings = json.loads((theirs / name).read_text()) | {"auto_map": AUTO_MAP}
        if name == "config.json":
            del settings["model_type"]
            settings |= {"model_type": model_type} if model_type else {}
        else:
            settings["image_processor_type"] = "Processor"
        (theirs / name).write_text(json.dumps(settings))
    return theirs


def test_no_code_of_a_checkpoint_runs_unasked(theirs, places, photos, query, tmp_path, monkeypatch, capsys):
    """Even where each question is answered with yes, and even where an index names the checkpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *question: "y")
    for words in (
        ["locate", str(query), "--index", str(places)],
        ["embed", str(photos), "rows", "--model", str(theirs)],
        ["train", "--model", str(theirs), "--stage", "finetune", "--data", str(photos), "--output", "run"],
    ):
        assert main(words) == 2, words
        assert "Traceback" not in capsys.readouterr().err
        assert not Path("ran").exists(), words
    if json.loads((theirs / "config.json").read_text()).get("model_type") == "strange":
        done = run_process("locate", str(query), "--index", str(places), input="y\n" * 100)
        assert (done.returncode, done.stdout) == (2, "")
        assert not Path("ran").exists()


def test_every_checkpoint_is_opened_without_its_code_unless_the_user_says_so():
    package = Path(cli.__file__).parents[1]
    calls = [
        (path.name, node)
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and re.fullmatch(r"Auto\w+\.from_(pretrained|config)", ast.unparse(node.func))
    ]
    assert len(calls) > 6
    for name, call in calls:
        assert "trust_remote_code" in [keyword.arg for keyword in call.keywords], (name, ast.unparse(call))
