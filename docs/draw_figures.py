"""Draws the figures of docs/measured.md, curves.svg and error_map.svg, from the town that `d2vpr demo` leaves.

python docs/draw_figures.py d2vpr-demo/town
"""

import sys
from pathlib import Path

import d2vpr_hf
from d2vpr_hf.evaluation.baselines import open_peer, random_weights
from d2vpr_hf.models.checkpoint import DEFAULT_PRETRAINED
from d2vpr_hf.reports.charts import recall_chart
from d2vpr_hf.reports.error_map import error_maps

protocol = d2vpr_hf.named_protocol("folders", sys.argv[1])
embedder = d2vpr_hf.Embedder.from_pretrained(DEFAULT_PRETRAINED)
embedders = {
    DEFAULT_PRETRAINED: embedder,
    "grey thumbnail, 16 px": open_peer("thumbnail"),
    "random weights": d2vpr_hf.Embedder(random_weights(embedder.model), embedder.processor),
}
comparison = d2vpr_hf.compare_models(protocol, embedders, ks=[1, 10])
folder = Path(__file__).parent
chart = recall_chart(list(comparison.evaluations.values()), list(embedders))
(folder / "curves.svg").write_text(chart, encoding="utf-8")
(folder / "error_map.svg").write_text(error_maps(comparison.first)[0].svg, encoding="utf-8")
print(comparison.table().text())
