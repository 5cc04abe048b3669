"""Both stages on made towns, with several seeds: recall@1 of random weights, teacher, distilled and fine-tuned student.

    python benchmarks/train_three_seeds.py
    python benchmarks/train_three_seeds.py --seeds 0 1 2 3 4 --out runs/seeds --json

Each seed draws towns of its own, trains for some minutes, and measures all four on a town that nothing was trained on,
with one processor. A drawn town is no evidence about real streets: what is shown is that each stage teaches something.
"""

import argparse
import json
import statistics
from pathlib import Path

from d2vpr_hf.training.town_run import train_on_town

# What has to hold in the mean over the seeds.
ORDERS = (("teacher", "random"), ("distilled", "random"), ("fine-tuned", "distilled"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run each (default: 0 1 2)")
    parser.add_argument("--out", default="runs/seeds", help="gets a folder for each seed (default: runs/seeds)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    options = parser.parse_args()
    runs = {seed: train_on_town(Path(options.out) / str(seed), seed=seed) for seed in options.seeds}
    recall = {seed: {name: each.recall[1] for name, each in run.evaluations.items()} for seed, run in runs.items()}
    means = {name: statistics.fmean(each[name] for each in recall.values()) for name in next(iter(recall.values()))}
    holds = {f"{better} > {worse}": means[better] > means[worse] for better, worse in ORDERS}
    if options.json:
        print(json.dumps({"recall@1": recall, "mean": means, "holds": holds}, indent=2))
        return
    print(f"{'recall@1, %':12}" + "".join(f"{name:>12}" for name in means))
    for seed, each in recall.items():
        print(f"{f'seed {seed}':12}" + "".join(f"{100 * share:12.1f}" for share in each.values()))
    print(f"{'mean':12}" + "".join(f"{100 * share:12.1f}" for share in means.values()))
    for order, is_so in holds.items():
        print(f"{order} in the mean: {'yes' if is_so else 'no'}")


if __name__ == "__main__":
    main()
