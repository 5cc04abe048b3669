"""The guide to evaluating names what is there."""

import re
from pathlib import Path

import d2vpr_hf
from d2vpr_hf.evaluation import baselines as peers
from d2vpr_hf.evaluation import compare as comparison
from d2vpr_hf.evaluation import query_methods, recall
from d2vpr_hf.evaluation.run import DEFAULT_KS
from d2vpr_hf.reports import pages

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "evaluating.md").read_text(encoding="utf-8")


def test_names_options_and_figures_of_the_guide_are_those_of_the_code():
    for name in re.findall(r"d2vpr_hf\.(\w+)\(", GUIDE):
        assert callable(getattr(d2vpr_hf, name))
    for module, name in ((peers, "open_peer"), (pages, "comparison_page"), (pages, "evaluation_page")):
        assert name in GUIDE
        assert callable(getattr(module, name))
    assert callable(comparison.compare_models)
    assert re.findall(r"^\| `(\w+)` \|", GUIDE, re.MULTILINE) == list(query_methods.QUERY_METHODS)
    assert all(f"`{name}`" in GUIDE for name in peers.HUB_PEERS)
    assert f"{recall.RESAMPLES:,} seeded resamples" in GUIDE
    assert f"k = {', '.join(map(str, DEFAULT_KS[:-1]))} and {DEFAULT_KS[-1]}" in GUIDE
    assert (ROOT / "docs" / "protocols").is_dir()
    assert (ROOT / re.search(r"`(examples/\w+\.py)`", GUIDE).group(1)).is_file()
