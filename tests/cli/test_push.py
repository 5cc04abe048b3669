"""`d2vpr push` as it is typed: what it sends, what it shows, what it asks, and what it refuses."""

import dataclasses
import io
import json
from pathlib import Path

import protocol_trees as trees
import pytest
from made_evaluation import made_evaluation

from d2vpr_hf.cli.main import main
from d2vpr_hf.models.checkpoint import save_checkpoint
from d2vpr_hf.protocols.export import export_protocol
from d2vpr_hf.protocols.table import load_protocol
from d2vpr_hf.retrieval.embedder import weight_hash

METRIC = Path(__file__).parents[2] / "metrics" / "recall_at_k"


@pytest.fixture
def checkpoint(tmp_path, monkeypatch, tiny_model, tiny_processor):
    """The folder d2vpr in the working directory, with an evaluation of it in results."""
    monkeypatch.chdir(tmp_path)
    dataclasses.replace(made_evaluation(), weight_hash=weight_hash(tiny_model)).save("results")
    return save_checkpoint("d2vpr", tiny_model, tiny_processor)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def convert(checkpoint):
    """Marks the checkpoint as converted from published weights."""
    config = json.loads((checkpoint / "config.json").read_text())
    config["converted_from"] = {"file": "original.pth", "sha256": "f" * 64}
    (checkpoint / "config.json").write_text(json.dumps(config))


def test_push_and_what_it_says(hub, checkpoint, capsys):
    words = ["push", "d2vpr", "me/tiny", "--evaluation", "results/results.json", "--message", "First"]
    assert main([*words, "--revision", "v1", "--private"]) == 0
    out, err = capsys.readouterr()
    repository = hub.stored["me/tiny"]
    count = len(repository.commits[repository.branches["v1"]]) - 1  # .gitattributes was there
    assert f"me/tiny (v1): {count} files in commit {repository.branches['v1'][:12]}" in out
    assert out.splitlines()[-1] == f"{hub.url}/me/tiny/commit/{repository.branches['v1']}"
    assert "pushing d2vpr to me/tiny" in err
    assert repository.private
    assert repository.messages[1:] == ["First"]
    files = repository.commits[repository.branches["v1"]]
    assert '"me/tiny", revision="v1", trust_remote_code=True' in files["README.md"].decode()
    assert "evaluations/made.json" in files
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["repo_id"], result["revision"]) == ("me/tiny", "main")
    assert result["commit"] == repository.branches["main"]
    assert "README.md" in result["files"]


def test_a_dry_run_writes_and_shows_and_sends_nothing(hub, checkpoint, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", "d2vpr", "me/tiny", "--evaluation", "results", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    card = (checkpoint.parent / "d2vpr-push" / "README.md").read_text()
    assert out == card + "\n"
    assert "| made | 6 | 4 | 50.0 (2) | 75.0 (3) |" in card
    assert "nothing was sent. d2vpr-push holds what would be: README.md, " in err
    assert main(["push", "d2vpr", "me/tiny", "--license", "mit", "--json", "--dry-run", "there"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["folder"] == "there"
    assert "license: mit" in result["card"]
    assert main(["push", "d2vpr", "me/tiny", "--dry-run", "there"]) == 2
    assert "there exists and isn't empty" in capsys.readouterr().err
    assert hub.requests == []


def test_a_converted_checkpoint_is_asked_about_on_a_terminal_alone(hub, checkpoint, capsys, monkeypatch):
    convert(checkpoint)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main(["push", "d2vpr", "me/tiny"]) == 2
    assert "converted from original.pth" in capsys.readouterr().err
    for answer in ("n\n", "\n", ""):
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        assert main(["push", "d2vpr", "me/tiny"]) == 2
        err = capsys.readouterr().err
        assert "Have its authors agreed, and should it be pushed? [y/N]" in err
        assert "nothing was pushed" in err
    assert hub.requests == []
    assert main(["push", "d2vpr", "me/tiny", "--dry-run"]) == 0
    assert "note: without --dry-run this is refused. The model was converted" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert main(["push", "d2vpr", "me/tiny"]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main(["push", "d2vpr", "me/tiny2", "--allow-converted"]) == 0
    assert {"me/tiny", "me/tiny2"} == set(hub.repositories)


def test_the_metric_and_an_export_are_pushed_in_the_same_way(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["push", str(METRIC), "me/recall_at_k"]) == 0
    assert hub.stored["me/recall_at_k"].type == "spaces"
    assert hub.private["me/recall_at_k"] is False

    trees.utm(zone=17)(tmp_path / "pitts30k")
    export_protocol(load_protocol("pitts30k-test", "pitts30k", cache_dir="cache"), "export")
    assert main(["push", "export", "me/pitts"]) == 0
    assert "me/pitts (main): 3 files in commit" in capsys.readouterr().out
    assert hub.stored["me/pitts"].type == "datasets"
    assert hub.private["me/pitts"] is True
    assert set(hub.repositories["me/pitts"]) >= {"README.md", "data/queries-00000.parquet"}
    assert main(["push", "export", "me/open-pitts", "--public"]) == 0
    assert hub.private["me/open-pitts"] is False

    hub.commit("me/pitts", "main", {"README.md": b"# Another set\n", "data/train-0.parquet": b"0"})
    assert main(["push", "export", "me/pitts"]) == 2
    assert "me/pitts holds something else (data/train-0.parquet)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["empty", "me/tiny"], "empty is neither a checkpoint (config.json), nor the metric (recall_at_k.py), nor"),
        (["gone", "me/tiny"], "there is no model 'gone' here"),
        (["d2vpr", "tiny"], "'tiny' isn't a name on the Hub. Give owner/name"),
        (["d2vpr", "me/tiny", "--revision", "0" * 40], "a commit can't be pushed to"),
        (["d2vpr", "me/tiny", "--evaluation", "gone.json"], "There is no gone.json"),
        (["d2vpr", "me/tiny", "--private", "--public"], "not allowed with argument --private"),
        (["d2vpr", "other/tiny"], "The token has no right to write to other/tiny"),
        (["export", "me/x", "--evaluation", "results"], "--evaluation is for checkpoints, but export is none"),
    ],
)
def test_what_is_wrong_is_said_in_one_paragraph(hub, checkpoint, capsys, words, said):
    (checkpoint.parent / "empty").mkdir()
    (checkpoint.parent / "export" / "data").mkdir(parents=True)
    (checkpoint.parent / "export" / "README.md").write_text("# Set\n")
    (checkpoint.parent / "export" / "data" / "train.parquet").touch()
    assert main(["push", *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert hub.stored == {}
