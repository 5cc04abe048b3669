"""What README, guides and cards show runs as it is written: their Python, and the README's commands.

All blocks run in one process, in one working directory such as the pages speak of, against a Hub on this machine. A
page's blocks share their names. To add a page, write it; to add what it speaks of, see `working_directory`.
"""

import json
import re
import shlex
from pathlib import Path

import protocol_trees as trees
import pytest
import torch
from fresh_process import hub_environment, run_python
from loopback_hub import LoopbackHub
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from d2vpr_hf import write_release
from d2vpr_hf.cli.demo_run import town_split
from d2vpr_hf.models.checkpoint import save_checkpoint

ROOT = Path(__file__).parents[1]
BIN = ".venv/bin/"
# In this order: later pages speak of what earlier ones have made.
GUIDES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md"))
PAGES = list(dict.fromkeys(["README.md", "docs/photos.md", *GUIDES]))
CARDS = sorted(
    path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("metrics/*/*.md"), *ROOT.glob("model_cards/*.md")]
)
# Pages whose commands run too; those that install are run by whoever installs.
COMMAND_PAGES = ("README.md", "docs/photos.md", "docs/hub.md")
# {a line of the block: why it can't run here}; at most five.
EXCEPTIONS = {
    "from sentence_transformers import SentenceTransformer": (
        "sentence-transformers isn't a dependency; tests/hub/test_sentence_transformers.py runs the block where it is"
    ),
    "from peft import LoraConfig, PeftModel, get_peft_model": (
        "peft is no dependency; tests/models/test_peft.py runs the block where it is"
    ),
}
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)

RUN = """
import io
import json
import os
import sys
import traceback
from contextlib import redirect_stdout

from d2vpr_hf.cli.main import main

for page, blocks in json.load(open("blocks.json")):
    names = {"__name__": "__main__"}
    for kind, block in blocks:
        said = io.StringIO()
        try:
            with redirect_stdout(said):
                if kind == "python":
                    exec(compile(block, page, "exec"), names)
                else:
                    assert main(block) == 0, block
        except BaseException:
            print(f"{page}:\\n{block}\\n{said.getvalue()}", file=sys.stderr)
            traceback.print_exc()
            sys.exit(1)
        print(json.dumps([page, kind, block, said.getvalue()]))
"""


def blocks_of(page: str, text: str) -> list[tuple[str, str | list[str]]]:
    """(kind, block) of what runs on a page: Python as it stands, and each command as its words after `d2vpr`."""
    found = []
    for kind, block in BLOCK.findall(text):
        if kind == "python" and not EXCEPTIONS.keys() & set(block.splitlines()):
            found.append((kind, block))
        if kind == "bash" and page in COMMAND_PAGES and "pip install" not in block:
            lines = [shlex.split(line, comments=True) for line in block.splitlines()]
            assert all(not words or words[0] == BIN + "d2vpr" for words in lines), (page, block)
            found += [("bash", words[1:]) for words in lines if words]
    return found


@pytest.fixture
def working_directory(tmp_path, tiny_model, tiny_processor) -> Path:
    """What the pages speak of: a checkpoint, the demo's town, one's own photos, a benchmark, the metric."""
    save_checkpoint(tmp_path / "d2vpr", tiny_model, tiny_processor)
    split = town_split(tmp_path / "d2vpr-demo" / "town", places=2, queries=2)
    for folder, photos in (("my_photos", split.database), ("other_photos", split.queries)):
        (tmp_path / folder).mkdir()
        for path in photos.paths:
            (tmp_path / folder / path.name).write_bytes(path.read_bytes())
    (tmp_path / "photo.jpg").write_bytes(split.queries.paths[0].read_bytes())
    trees.utm(zone=17)(tmp_path / "data" / "pitts30k")
    (tmp_path / "metrics").symlink_to(ROOT / "metrics")
    return tmp_path


def stock(hub: LoopbackHub, folder: Path) -> None:
    """Puts a small stand-in for the model that pages compare with on the Hub."""
    torch.manual_seed(0)
    small = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=56)
    Dinov2Model(small).save_pretrained(folder)
    BitImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}).save_pretrained(folder)
    hub.store_folder("facebook/dinov2-small", folder)


def test_blocks_run_as_they_are_written(working_directory, tmp_path_factory, tiny_model, tiny_processor):
    texts = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES + CARDS}
    # A card made of the template; docs/hub.md pushes its model.
    made = write_release(tmp_path_factory.mktemp("card") / "card", tiny_model, tiny_processor, "me/d2vpr-town")
    texts["a card"] = (made / "README.md").read_text(encoding="utf-8")
    blocks = [(page, blocks_of(page, text)) for page, text in texts.items()]
    (working_directory / "blocks.json").write_text(json.dumps(blocks))
    with LoopbackHub() as hub:
        stock(hub, tmp_path_factory.mktemp("dinov2"))
        run = run_python(RUN, working_directory, hub_environment(hub.url, tmp_path_factory.mktemp("home")))
    ran = [json.loads(line) for line in run.stdout.splitlines() if line.startswith('["')]
    assert [(page, kind, block) for page, kind, block, _ in ran] == [
        (page, kind, block) for page, each in blocks for kind, block in each
    ]
    pages = {page for page, kind, *_ in ran if kind == "python"}
    assert pages >= {"README.md", "docs/evaluating.md", "docs/hub.md", "docs/protocols/README.md", *CARDS}
    said = {page: "".join(output for name, _, _, output in ran if name == page) for page in pages}
    assert "Answer(query=" in said["README.md"]
    assert "latitude=1.8" in said["README.md"]  # the made town lies in the Gulf of Guinea
    assert "photo.jpg: " in said["docs/photos.md"]
    assert "recall@1" in said["docs/photos.md"]
    assert "photo.jpg 1.8" in said["docs/photos.md"]
    assert "torch.Size([1, 672])" in said["docs/hub.md"]
    assert "'recall@1': 0.5" in said["docs/hub.md"]
    made = {path.name for path in (working_directory / "results").iterdir()}
    assert {"photo-matches.jpg", "photo-regions.jpg", "results.json", "gallery.html", "figures.html"} <= made
    assert {"me/d2vpr-town", "me/recall_at_k", "me/pitts30k-test"} <= set(hub.stored)
    assert hub.problems == []


def test_exceptions_are_few_and_there():
    assert len(EXCEPTIONS) <= 5
    lines = {line for page in PAGES + CARDS for line in (ROOT / page).read_text(encoding="utf-8").splitlines()}
    assert EXCEPTIONS.keys() <= lines
