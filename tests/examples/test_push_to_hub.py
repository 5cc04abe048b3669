"""Runs the example as a user would: first to look, then to push, in processes that take the Hub of the test."""

from pathlib import Path

from fresh_process import hub_environment, run_python
from loopback_hub import LoopbackHub

from d2vpr_hf.models.checkpoint import save_checkpoint

EXAMPLE = Path(__file__).parents[2] / "examples" / "push_to_hub.py"
RUN = "import runpy, sys\nsys.argv = {words}\nrunpy.run_path({words}[0], run_name='__main__')"


def test_the_example_looks_first_and_then_pushes(tmp_path, tiny_model, tiny_processor):
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 40
    save_checkpoint(tmp_path / "d2vpr", tiny_model, tiny_processor)
    with LoopbackHub() as hub:
        environment = hub_environment(hub.url, tmp_path / "home")
        look = run_python(RUN.format(words=[str(EXAMPLE)]), tmp_path, environment)
        assert "**The results are of a drawn town, no evidence about real streets.**" in look.stdout
        assert "| folders | 12 | 6 |" in look.stdout
        assert hub.stored == {}
        assert (tmp_path / "runs/push_to_hub/release/model.safetensors").is_file()
        push = run_python(RUN.format(words=[str(EXAMPLE), "me/mine"]), tmp_path, environment)
    assert push.stdout.splitlines()[-2] == f"{hub.url}/me/mine/commit/{hub.stored['me/mine'].branches['main']}"
    assert push.stdout.splitlines()[-1].endswith("opened again it gives the same descriptor")
    assert hub.private == {"me/mine": True}
    assert hub.problems == []
