"""Share a model on the Hugging Face Hub: evaluate it, look at its card, push it, and open it again.

    python examples/push_to_hub.py                    writes what would be pushed, and sends nothing
    python examples/push_to_hub.py me/d2vpr-town      pushes it to that repository, seen by its owner alone

It uses the checkpoint folder `d2vpr` of the working directory, or else the checkpoint that comes with the package.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoModel

import d2vpr_hf

folder, repo_id = Path("runs/push_to_hub"), sys.argv[1] if len(sys.argv) > 1 else "me/d2vpr-town"
checkpoint = "d2vpr" if Path("d2vpr").is_dir() else d2vpr_hf.pretrained_path()
processor, model = AutoImageProcessor.from_pretrained(checkpoint), AutoModel.from_pretrained(checkpoint)

# The card's figures come from evaluations of these very weights; any other is refused.
town = d2vpr_hf.make_town(folder / "town", places=4, views=3, queries=6, easy_queries=0)
protocol = d2vpr_hf.named_protocol("folders", town.database.parent)
result = d2vpr_hf.evaluate_protocol(protocol, d2vpr_hf.Embedder(model, processor))
records = {"evaluations": [result], "notes": ["The results are of a drawn town, no evidence about real streets."]}

if len(sys.argv) == 1:
    release = d2vpr_hf.write_release(folder / "release", model, processor, repo_id, **records)
    print((release / "README.md").read_text(encoding="utf-8"))
else:
    push = d2vpr_hf.push_model(model, processor, repo_id, private=True, **records)
    again = AutoModel.from_pretrained(repo_id, revision=push.commit)
    pixels = torch.zeros(1, 3, 224, 224)
    same = torch.equal(model(pixels).pooler_output, again(pixels).pooler_output)
    print(f"{push.url}\n{len(push.files)} files; opened again it gives {'the same' if same else 'another'} descriptor")
