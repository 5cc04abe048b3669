"""Evaluate a model on a benchmark, and compare it with another one: from photos to a page of curves and a map.

    python examples/evaluate_benchmark.py

The benchmark is a small town that the script draws; any named one (`d2vpr_hf.protocols.records`) runs the same
way. It uses the checkpoint folder `d2vpr` of the working directory, or else the checkpoint that comes with the package.
The other model is a peer of a few lines: a photo's own thumbnail as its descriptor.
"""

from pathlib import Path

import torch

import d2vpr_hf
from d2vpr_hf.evaluation.baselines import SquashProcessor, peer_embedder
from d2vpr_hf.reports.charts import recall_chart
from d2vpr_hf.reports.error_map import error_maps
from d2vpr_hf.reports.pages import comparison_page


class Thumbnail:
    """What any model needs to be compared: a name, a processor, and descriptors of prepared images."""

    name = "thumbnail"
    processor = SquashProcessor(height=32, width=32)

    def encode(self, images):
        pixels = images.mean(dim=1).flatten(1)  # (images, 32 * 32), grey
        return torch.nn.functional.normalize(pixels - pixels.mean(dim=1, keepdim=True), dim=-1)


checkpoint = "d2vpr" if Path("d2vpr").is_dir() else d2vpr_hf.pretrained_path()
embedder = d2vpr_hf.Embedder.from_pretrained(checkpoint, name="D2-VPR")

folder = Path("runs/evaluate_benchmark")
town = d2vpr_hf.make_town(folder / "town", places=9, views=3, queries=18, easy_queries=0)

# A protocol is what is ranked and what counts as right: here photos taken within 25 m.
protocol = d2vpr_hf.named_protocol("folders", town.database.parent)

# The model first, then what it is compared with. Descriptors are kept in the cache: run the script again, and no photo
# is embedded.
models = {"D2-VPR": embedder, "thumbnail": peer_embedder(Thumbnail())}
comparison = d2vpr_hf.compare_models(protocol, models, ks=(1, 5, 10), cache=folder / "cache")
print(f"\n{comparison.table().text()}\n")

# Each evaluation holds its ranking, so that any query can be looked at.
result = comparison.evaluations["D2-VPR"]
print(result.markdown())
for query, rank in zip(protocol.queries.names[:3], result.first_hits, strict=False):
    print(f"{query[-40:]}: first right answer at rank {rank or f'above {result.ranking.shape[1]}'}")

# The photo in its own shape, cut in five, is another way to ask.
crops = d2vpr_hf.evaluate_protocol(protocol, models["thumbnail"], query_method="five_crops")
print(f"\nthumbnails of five crops: recall@1 {100 * crops.recall[1]:.1f} %")

result.save(folder)  # results.json
evaluations = list(comparison.evaluations.values())
(folder / "recall_curves.svg").write_text(recall_chart(evaluations, list(models)), encoding="utf-8")
(folder / "error_map.svg").write_text(error_maps(result)[0].svg, encoding="utf-8")
page = folder / "comparison.html"
page.write_text(comparison_page(comparison), encoding="utf-8")
print(f"curves and maps: {page}")
