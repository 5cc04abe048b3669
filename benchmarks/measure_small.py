"""A small checkpoint beside what it has to beat, on the project's real test photos: one table, one JSON.

    python benchmarks/measure_small.py d2vpr shared/data measured.json
    python benchmarks/measure_small.py d2vpr shared/data measured.json --network mobilenet_teacher:mobilenet
    python benchmarks/measure_small.py d2vpr shared/data measured.json --also folders=towns/test places=views
    python benchmarks/measure_small.py d2vpr shared/data measured.json --comparisons tables   # for the card

Every figure is what `d2vpr evaluate` prints: the commands run here, one after the other, and stand below the table with
the names of the figures that they make. Seeds of random weights and of the bootstrap are fixed. Sets that aren't there
are named and left out.
"""

import argparse
import contextlib
import io
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d2vpr_hf.cli.main import main as d2vpr
from d2vpr_hf.evaluation.table import Table
from d2vpr_hf.files import path_to_text
from d2vpr_hf.messages import points

TOY_POSITIVES = Path(__file__).with_name("toy_san_francisco_positives.json")
PUBLISHED = ("NetVLAD", "denseVLAD", "HybridNet")
KS = (1, 5, 10)
# Of fewer queries a share would say more than is known: hits alone are shown.
FEW_QUERIES = 10


@dataclass(frozen=True)
class PhotoSet:
    """A set of photos to measure on.

    Attributes:
        name: for the table.
        arguments: of `d2vpr evaluate`, those that say what is measured.
        against: further names for --against, that this set alone has.
        needs: folders and files without which the set is left out.
    """

    name: str
    arguments: list[str]
    against: list[str]
    needs: list[Path]


def photo_sets(data: Path, also: list[str]) -> list[PhotoSet]:
    """The sets of a folder laid out as the project's shared data, and PROTOCOL=FOLDER of one's own."""
    corridor = data / "corridor" / "datasets" / "corridor"
    published = data / "metadata" / "vpr_bench" / "corridor_scores.npz"
    toy, opensfm = data / "toy_san_francisco" / "toy_dataset", data / "opensfm" / "data"
    nowhere = [toy, data / "training" / "photos"]
    toy_arguments = ["--database", toy / "database", "--queries", toy / "queries"]
    toy_arguments += ["--positives", TOY_POSITIVES, "--labelled-only"]
    sets = [
        PhotoSet(
            "corridor",
            ["vprbench-corridor", str(corridor)],
            [f"scores:{published}#{name}" for name in PUBLISHED if published.is_file()],
            [corridor],
        ),
        PhotoSet("toy_san_francisco", [str(each) for each in toy_arguments], [], [toy]),
        PhotoSet(
            "opensfm",
            ["places", str(opensfm), "--distractors", *(str(folder) for folder in nowhere)],
            [],
            [opensfm, *nowhere],
        ),
    ]
    for entry in also:
        protocol, _, folder = entry.partition("=")
        sets.append(PhotoSet(entry, [protocol, folder], [], [Path(folder)]))
    return sets


def measure(photos: PhotoSet, checkpoint: str, against: list[str], options: list[str]) -> dict[str, Any]:
    """What the command says of one set, with the command."""
    command = ["evaluate", *photos.arguments, "--model", checkpoint, "--k", *map(str, KS), *options]
    command += ["--against", *against, *photos.against]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = d2vpr([*command, "--json"])
    if code != 0:
        raise SystemExit(f"{photos.name}: `{shlex.join(['d2vpr', *command])}` ended with {code}; its error is above.")
    return {"command": shlex.join(["d2vpr", *command])} | json.loads(said.getvalue())


def by_place(found: dict[str, Any]) -> dict[str, dict[str, dict[str, float | int]]]:
    """{model: {first folder of a photo's name: hits@1, queries and mAP there}} of a set with average precisions."""
    folders = np.array([name.split("/", 1)[0] for name in found["queries"]])
    split: dict[str, dict[str, dict[str, float | int]]] = {}
    for model, result in found["results"].items():
        if "average_precisions" not in result:
            continue
        hits, precisions = np.array(result["first_hits"]) == 1, np.array(result["average_precisions"], float)
        split[model] = {
            str(folder): {
                "hits@1": int(hits[folders == folder].sum()),
                "queries": int((folders == folder).sum()),
                "mean_average_precision": float(np.nanmean(precisions[folders == folder])),
            }
            for folder in np.unique(folders)
        }
    return split


def rows_of(name: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """The table's rows of one set; a difference is the checkpoint's recall@1 minus the row's."""
    rows = []
    for model, result in found["results"].items():
        row = {
            "set": name,
            "model": model,
            "database": result["counts"]["database"],
            "queries": result["queries_counted"],
            "hits": result["hits"],
            "recall@1": result["recall"]["recall@1"],
            "mean_average_precision": result["mean_average_precision"],
            "skipped": sum(len(photos) for photos in result["skipped"].values()),
        }
        if model in found["differences"]:
            difference = found["differences"][model]["recall@1"]
            row |= {"checkpoint_minus_this": difference["difference"], "interval": difference["interval"]}
        rows.append(row)
    return rows


def table_of(rows: list[dict[str, Any]]) -> Table:
    header = ["set", "model", "database", "queries", *(f"hits@{k}" for k in KS), "recall@1", "mAP"]
    header.append("checkpoint minus this, recall@1 in points")
    cells = []
    for row in rows:
        precision, interval = row["mean_average_precision"], row.get("interval")
        difference = ""
        if interval is not None and row["set"] == "corridor":
            difference = points(row["checkpoint_minus_this"], interval)
        recall = f"{row['recall@1']:.3f}" if row["queries"] >= FEW_QUERIES else ""
        hits = [str(row["hits"][f"hits@{k}"]) for k in KS]
        counts = [f"{row['database']:,}", f"{row['queries']:,}"]
        mean = "" if precision is None else f"{precision:.3f}"
        cells.append([row["set"], row["model"], *counts, *hits, recall, mean, difference])
    return Table(header, cells, "intervals: 95 %, paired bootstrap over the queries")


PUBLISHED_SOURCE = "similarity matrices published with VPR-Bench"
METHODS = {"random": "random weights", "thumbnail": "grey thumbnail, 16x16"}


def comparisons_of(name: str, found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{file name: table for the card} of one set, as `d2vpr_hf.hub.records` has them.

    A set with average precisions gives one of these for the whole and one for each of its places, any other one of
    recall@1.
    """
    own = found["results"][found["model"]]
    common = {"rule": own["rule"], "model": own["model"], "command": found["command"]}
    counts = {"database": own["counts"]["database"], "queries": own["queries_counted"]}
    if not found["by_place"]:
        rows = [_row(model, result, found["differences"].get(model)) for model, result in found["results"].items()]
        return {name: common | {"name": name, "measure": "recall@1", "counts": counts, "rows": rows}}
    whole = {
        model: {"mean_average_precision": result["mean_average_precision"], "hits@1": result["hits"]["hits@1"]}
        | {"queries": result["queries_counted"]}
        for model, result in found["results"].items()
        if result["mean_average_precision"] is not None
    }
    parts = {name: whole}
    for place in found["by_place"][found["model"]]:
        parts[f"{name}, {place}"] = {model: places[place] for model, places in found["by_place"].items()}
    tables = {}
    for title, split in parts.items():
        rows = [
            {"method": _method(model), "value": each["mean_average_precision"]}
            # A mean of precisions isn't a share of queries, so that few of them don't hide it.
            | ({"hits": each["hits@1"], "of": each["queries"]} if each["queries"] >= FEW_QUERIES else {})
            for model, each in split.items()
        ]
        own = counts | {"queries": split[found["model"]]["queries"]}
        tables[title.replace(", ", "-")] = common | {
            "name": title, "measure": "mean average precision", "counts": own, "rows": rows,
        }  # fmt: skip
    return tables


def _row(model: str, result: dict[str, Any], difference: dict[str, Any] | None) -> dict[str, Any]:
    row = {"method": _method(model), "value": result["recall"]["recall@1"]}
    row |= {"hits": result["hits"]["hits@1"], "of": result["queries_counted"]}
    if row["of"] < FEW_QUERIES:
        return row
    row["interval"] = result["recall_intervals"]["recall@1"]
    if model.startswith("scores:"):
        row["source"] = PUBLISHED_SOURCE
    if difference is not None:
        found = difference["recall@1"]
        row |= {"difference": found["difference"], "difference_interval": found["interval"]}
    return row


def _method(model: str) -> str:
    """What a reader of the table knows the method by."""
    if model.startswith("scores:"):
        return model.partition("#")[2]
    return METHODS.get(model, f"{model} + GeM" if ":" in model else model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint folder")
    parser.add_argument("data", metavar="DATA_FOLDER", type=Path, help="corridor, toy_san_francisco, opensfm, training")
    parser.add_argument("out", metavar="OUT.json", type=Path, help="gets everything as JSON")
    parser.add_argument(
        "--network",
        metavar="MODULE:FACTORY[@SIDE]",
        help="an image network to beat, with GeM at SIDE px (default: none; SIDE 224)",
    )
    parser.add_argument(
        "--also", metavar="PROTOCOL=FOLDER", nargs="+", default=[], help="further sets, such as places=views"
    )
    parser.add_argument("--batch-size", metavar="N", default="32", help="photos at a time (default: 32)")
    parser.add_argument("--device", metavar="D", default="cpu", help="where to embed (default: cpu)")
    parser.add_argument(
        "--comparisons", metavar="DIR", type=Path, help="gets the tables that model_cards/ship.py takes"
    )
    options = parser.parse_args()
    against = ["random", "thumbnail", *([options.network] if options.network else [])]
    how = ["--batch-size", options.batch_size, "--device", options.device]
    found, rows = {}, []
    for photos in photo_sets(options.data, options.also):
        if absent := [path_to_text(path) for path in photos.needs if not path.exists()]:
            print(f"left out: {photos.name}, which needs {', '.join(absent)}", file=sys.stderr)
            continue
        found[photos.name] = measure(photos, options.checkpoint, against, how)
        found[photos.name]["by_place"] = by_place(found[photos.name])
        rows += rows_of(photos.name, found[photos.name])
    if not found:
        raise SystemExit(f"{options.data} holds none of the sets. Give a folder with corridor/, opensfm/ and so on.")
    table = table_of(rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    made = {"checkpoint": options.checkpoint, "rows": rows, "sets": found, "markdown": table.markdown()}
    options.out.write_text(json.dumps(made, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    if options.comparisons:
        options.comparisons.mkdir(parents=True, exist_ok=True)
        for name, each in found.items():
            for file, table_of_set in comparisons_of(name, each).items():
                path = options.comparisons / f"{file.replace('/', '-').replace('=', '-')}.json"
                path.write_text(json.dumps(table_of_set, indent=2) + "\n", encoding="utf-8")
    print(f"{table.text()}\n\n{made['markdown']}\n")
    for name, each in found.items():
        places = each["by_place"].get(options.checkpoint, {})
        if len(places) > 1:
            words = [
                f"{place} {one['hits@1']} of {one['queries']}, mAP {one['mean_average_precision']:.3f}"
                for place, one in places.items()
            ]
            print(f"{name}, by place: {'; '.join(words)}")
    print("\nhits, counts, recall@1, mAP and differences come from:")
    for name, each in found.items():
        print(f"  {name}: {each['command']}")
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
