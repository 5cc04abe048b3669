"""Runs the example as a user would: first to look, then to push, in a process that takes the Hub of the test."""

import runpy
from pathlib import Path

from fresh_process import hub_environment, run_python
from loopback_hub import LoopbackHub

from d2vpr_hf.models.checkpoint import save_checkpoint

EXAMPLE = Path(__file__).parents[2] / "examples" / "push_to_hub.py"


def test_the_example_looks_first_and_then_pushes(tmp_path, tiny_model, tiny_processor, monkeypatch, capsys):
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 40
    monkeypatch.chdir(tmp_path)
    save_checkpoint("d2vpr", tiny_model, tiny_processor)
    monkeypatch.setattr("sys.argv", [str(EXAMPLE)])
    runpy.run_path(str(EXAMPLE))
    card = capsys.readouterr().out
    assert "**The results are of a drawn town, no evidence about real streets.**" in card
    assert "| folders | 12 | 6 |" in card
    assert Path("runs/push_to_hub/release/model.safetensors").is_file()

    code = f"import runpy, sys\nsys.argv = [{str(EXAMPLE)!r}, 'me/mine']\nrunpy.run_path(sys.argv[0])"
    with LoopbackHub() as hub:
        push = run_python(code, tmp_path, hub_environment(hub.url, tmp_path / "home"))
    assert push.stdout.splitlines()[-2] == f"{hub.url}/me/mine/commit/{hub.stored['me/mine'].branches['main']}"
    assert push.stdout.splitlines()[-1].endswith("opened again it gives the same descriptor")
    assert hub.private == {"me/mine": True}
    assert hub.problems == []
