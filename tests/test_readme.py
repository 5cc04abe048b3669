"""What the README shows works as written: its Python, its commands and its links."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from d2vpr_hf.cli import COMMANDS, main
from d2vpr_hf.data.images import list_images
from d2vpr_hf.demo import town_split, write_demo_model

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = ".venv/bin/"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """Every `d2vpr` command of the README that stands in a block of its own, without those that install."""
    lines = [line for block in blocks("bash") if "pip install" not in block for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.strip()]


@pytest.fixture
def after_the_demo(tmp_path, monkeypatch) -> Path:
    """A working directory as a smaller demo leaves it, with photos of one's own beside it."""
    monkeypatch.chdir(tmp_path)
    write_demo_model("d2vpr")
    split = town_split("d2vpr-demo/town", places=2, queries=2)
    for folder, photos in (("my_photos", split.database), ("other_photos", split.queries)):
        Path(folder).mkdir()
        for path in photos.paths:
            (Path(folder) / path.name).write_bytes(path.read_bytes())
    Path("photo.jpg").write_bytes(split.queries.paths[0].read_bytes())
    return tmp_path


def test_the_python_and_the_commands_run_where_the_demo_ran(after_the_demo, capsys):
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    answer = capsys.readouterr().out
    assert "Answer(query=" in answer
    assert "latitude=1.8" in answer  # the made town lies in the Gulf of Guinea

    run = commands()
    named = ["index", "locate", "evaluate", "evaluate", "verify", "evaluate"]
    assert [words[:2] for words in run] == [[BIN + "d2vpr", name] for name in named]
    for words in run:
        assert main(words[1:]) == 0, words
    out = capsys.readouterr().out
    assert f"{len(list_images('my_photos'))} places in places" in out
    assert "photo.jpg: " in out
    assert "recall@1" in out
    made = {path.name for path in Path("results").iterdir()}
    assert {"photo-matches.jpg", "photo-regions.jpg", "results.json", "gallery.html", "figures.html"} <= made


def test_the_two_commands_make_an_environment_and_use_it():
    demo, develop = (block.strip() for block in blocks("bash") if "pip install" in block)
    start = "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt "
    assert demo == start + ". && .venv/bin/d2vpr demo"
    assert develop == start + '-e ".[dev]" && .venv/bin/python -m pytest'
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"d2vpr": "d2vpr_hf.cli:main"}
    assert "dev" in project["optional-dependencies"]
    assert (ROOT / "constraints.txt").is_file()


def test_commands_and_files_that_are_named_are_there():
    for name in re.findall(rf"`{re.escape(BIN)}d2vpr (\w+)", README):
        assert name in COMMANDS or name == "COMMAND", name
    linked = [*re.findall(r"\]\(([^)]+)\)", README), *re.findall(r"((?:tests|benchmarks|examples)/[\w/]+\.py)", README)]
    local = [name for name in linked if not name.startswith("http")]
    assert len(local) >= 5
    for name in local:
        assert (ROOT / name).exists(), name


def test_pictures_are_small():
    pictures = list_images(ROOT / "docs")
    assert pictures
    assert all(path.stat().st_size < 200_000 for path in pictures)
