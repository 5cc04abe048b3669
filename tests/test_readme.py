"""What the README names is there; its blocks are run by test_code_blocks.py."""

import re
import tomllib
from pathlib import Path

from d2vpr_hf.cli.main import COMMANDS
from d2vpr_hf.photos.folder import list_images

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = ".venv/bin/"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_first_screen_is_short():
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10


def test_the_two_commands_make_an_environment_and_use_it():
    demo, develop = (block.strip() for block in blocks("bash") if "pip install" in block)
    start = "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt "
    assert demo == start + ". && .venv/bin/d2vpr demo"
    assert develop == start + '-e ".[dev]" && .venv/bin/python -m pytest'
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"d2vpr": "d2vpr_hf.cli.main:main"}
    assert "dev" in project["optional-dependencies"]
    assert (ROOT / "constraints.txt").is_file()


def test_commands_and_files_that_are_named_are_there():
    commands = re.findall(rf"`(?:{re.escape(BIN)})?d2vpr (\w+)", README)
    assert len(commands) >= 8
    for name in commands:
        assert name in COMMANDS or name == "COMMAND", name
    linked = [*re.findall(r"\]\(([^)]+)\)", README), *re.findall(r"((?:tests|benchmarks|examples)/[\w/]+\.py)", README)]
    local = [name for name in linked if not name.startswith("http")]
    assert len(local) >= 5
    for name in local:
        file, _, heading = name.partition("#")
        assert (ROOT / file).exists(), name
        assert (
            f"# {heading.replace('-', ' ')}" in (ROOT / file).read_text(encoding="utf-8").lower() if heading else True
        )


def test_pictures_are_small():
    pictures = list_images(ROOT / "docs")
    assert pictures
    assert all(path.stat().st_size < 200_000 for path in pictures)
