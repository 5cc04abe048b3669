"""What a card is made of, as JSON that may leave this machine: evaluations, comparisons, training, what else is said.

A comparison is a table of several methods on one set:

    {"name": "corridor", "measure": "recall@1", "rule": "...", "counts": {"database": 111, "queries": 111},
     "model": {"name": "d2vpr-small", "weight_hash": "..."}, "command": "...", "remarks": ["..."],
     "rows": [{"method": "d2vpr-small", "value": 0.7, "hits": 78, "of": 111, "interval": [0.6, 0.8]},
              {"method": "grey thumbnail", "value": 0.27, "hits": 30, "of": 111,
               "difference": 0.43, "difference_interval": [0.33, 0.53]},
              {"method": "NetVLAD", "value": 0.676, "source": "published"}]}

Values are fractions; a difference is the model's value minus the row's. What a row doesn't have is left out.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.results import RESULTS_FILE, Evaluation
from ..models.checkpoint import TRAINING_FILE

EVALUATIONS_FOLDER = "evaluations"
COMPARISONS_FOLDER = "comparisons"
COST_FILE = "cost.json"

# What an evaluation must hold for a card to be made of it, and what within that.
_NEEDED = {
    "protocol": (),
    "rule": (),
    "recall": (),
    "counts": ("database", "database_ranked", "queries", "queries_ranked"),
    "queries_without_positives": (),
    "model": ("name", "weight_hash"),
    "settings": ("batch_rule", "dtype", "query_method"),
}
# What a comparison must hold and may hold, and what its rows must and may.
_COMPARISON = ("name", "measure", "rule", "counts", "model", "rows"), ("command", "remarks", "versions")
_ROW = ("method", "value"), ("hits", "of", "interval", "difference", "difference_interval", "source", "dim")
# {field: (fields that each entry must have, fields that it may have)}, where the entries are objects.
_ABOUT = {
    "not_this": None,
    "data_sources": (("name", "terms"), ("files", "files_sha256", "url", "use")),
    "credits": None,
    "teacher": (("name", "terms"), ("url", "use")),
    "retrain": (("command",), ("seeds", "commit", "steps")),
}
# Photos by name: names may hold coordinates, and a card needs none of them.
_PHOTO_FIELDS = ("ranking", "skipped")
# A path from the root, the home or a drive within any text; not the slashes of a URL or of "owner/name".
_PATH = re.compile(r"(?:(?<=[\s=\"'(\[,])|^)(?:~[^/\\\s]*|[A-Za-z]:)?[/\\](?=[^/\\\s])[^\s\"',)\]]+")


def read_evaluations(
    evaluations: Sequence[Evaluation | Mapping[str, Any] | str | Path], weight_hash: str
) -> dict[str, dict[str, Any]]:
    """{file name: evaluation}, as they lie in a repository: without the names of photos and of this machine's folders.

    Args:
        evaluations: as `evaluate_protocol` returns them, as their JSON, or paths of `results.json` or its folder.
        weight_hash: of the model that they must be of.

    Raises: ValueError if one is of other weights, has no recall, or is no evaluation. FileNotFoundError.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, each in enumerate(evaluations, start=1):
        where, content = _opened(each, number)
        if missing := _missing(content):
            raise ValueError(
                f"{where} lacks {', '.join(missing)}, so it is no evaluation. Give {RESULTS_FILE} as `d2vpr evaluate "
                "--save` or `Evaluation.save` writes it."
            )
        if content["model"]["weight_hash"] != weight_hash:
            raise ValueError(
                f"{where} is of the weights {content['model']['weight_hash'][:8]} ({content['model']['name']}), but "
                f"the model to push has the weights {weight_hash[:8]}. Evaluate this model, or leave the result out."
            )
        if content["recall"] is None:
            raise ValueError(
                f"{where} has no recall, because nobody knew the right answers, so a card can't show it. Leave it out."
            )
        kept = {name: value for name, value in content.items() if name not in _PHOTO_FIELDS}
        found[_free_name(str(content["protocol"]), found)] = without_folders(kept)
    return found


def read_training(training: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """How the model was trained, by stage, without this machine's folders.

    Raises: ValueError if it doesn't hold a list of stages. FileNotFoundError.
    """
    where, content = "training", training
    if not isinstance(training, Mapping):
        where, content = str(training), _json(Path(training))
    stages = content.get("stages") if isinstance(content, Mapping) else None
    if not isinstance(stages, Sequence) or not all(isinstance(each, Mapping) and "stage" in each for each in stages):
        raise ValueError(
            f"{where} holds no list `stages` of objects with a `stage`, so it doesn't say how the model was trained. "
            f"Give {TRAINING_FILE} as `d2vpr train` writes it, or leave it out."
        )
    return without_folders(dict(content))


def read_comparisons(
    comparisons: Sequence[Mapping[str, Any] | str | Path], weight_hash: str
) -> dict[str, dict[str, Any]]:
    """{file name: comparison}, without this machine's folders.

    Args:
        comparisons: as this module describes them, or as `Comparison.to_json` gives them with this model as the
            first; or paths of either.
        weight_hash: of the model that they must be of.

    Raises: ValueError if one is of other weights, or lacks or has a field that it must or can't. FileNotFoundError.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, each in enumerate(comparisons, start=1):
        where, content = (f"comparison {number}", each) if isinstance(each, Mapping) else (str(each), _json(Path(each)))
        if "results" in content and "differences" in content:
            content = _from_evaluations(content)
        _check_fields(where, content, *_COMPARISON)
        for field, kind in (("counts", Mapping), ("model", Mapping), ("rows", Sequence)):
            if not isinstance(content[field], kind):
                raise ValueError(
                    f"{where}: {field} is a {type(content[field]).__name__}, but it must be "
                    f"{'a list' if kind is Sequence else 'an object'}. The docstring of hub/records.py shows one."
                )
        for place, row in enumerate(content["rows"], start=1):
            _check_fields(f"{where}, row {place}", row, *_ROW)
        hash_there = content["model"].get("weight_hash")
        if hash_there != weight_hash:
            raise ValueError(
                f"{where} is of the weights {str(hash_there)[:8]}, but the model to release has the weights "
                f"{weight_hash[:8]}. Compare this model, or leave the comparison out."
            )
        found[_free_name(str(content["name"]), found)] = without_folders(dict(content))
    return found


def read_about(about: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """What is to be said of a checkpoint besides its figures, without this machine's folders.

    `not_this` and `credits` are lists of sentences; `data_sources` is a list of {name, terms, files, files_sha256,
    url, use}; `teacher` is {name, terms, url, use}; `retrain` is {command, seeds, commit, steps}. All are optional.

    Raises: ValueError for a field that isn't known or lacks a part. FileNotFoundError.
    """
    where, content = ("about", about) if isinstance(about, Mapping) else (str(about), _json(Path(about)))
    _check_fields(where, content, (), tuple(_ABOUT))
    for field, parts in _ABOUT.items():
        entries = content.get(field, [])
        if field in ("teacher", "retrain"):
            entries = [entries] if field in content else []
        if not isinstance(entries, list | tuple):
            raise ValueError(f"{where}: {field} is a {type(entries).__name__}, but it must be a list.")
        for number, entry in enumerate(entries, start=1):
            if parts is not None:
                _check_fields(f"{where}: {field}, entry {number}", entry, *parts)
            elif not isinstance(entry, str):
                raise ValueError(f"{where}: {field}, entry {number} is {entry!r}, but it must be a sentence.")
    return without_folders(dict(content))


def _from_evaluations(content: Mapping[str, Any]) -> dict[str, Any]:
    """The comparison that several evaluations on one protocol make, by their recall at the first cut-off."""
    # Files of earlier versions call the first model the baseline, and their differences are the other's minus its own.
    old = "baseline" in content
    first = content["results"][content["baseline" if old else "model"]]
    metric = next(iter(first["recall"]))
    rows = []
    for name, each in content["results"].items():
        row = {"method": name, "value": each["recall"][metric]}
        if each.get("hits"):
            row |= {"hits": each["hits"][metric.replace("recall", "hits")], "of": each["queries_counted"]}
        if each.get("recall_intervals"):
            row["interval"] = each["recall_intervals"][metric]
        if name in content["differences"]:
            found = content["differences"][name][metric]
            difference, (low, high) = found["difference"], found["interval"]
            if old:
                difference, low, high = -difference, -high, -low
            row |= {"difference": difference, "difference_interval": [low, high]}
        rows.append(row)
    return {
        "name": content["protocol"],
        "measure": metric,
        "rule": first["rule"],
        "counts": {name: first["counts"][name] for name in ("database", "queries")},
        "model": first["model"],
        "rows": rows,
        "remarks": list(first.get("notes", ())),
    }


def _check_fields(where: str, content: Any, needed: Sequence[str], optional: Sequence[str]) -> None:
    """Refuses what is no object with these fields; names all that it may have."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} is a {type(content).__name__}, but it must be an object. Write it as one.")
    missing = [name for name in needed if name not in content]
    unknown = [name for name in content if name not in (*needed, *optional)]
    if missing or unknown:
        found = "; ".join(
            f"{verb} {', '.join(names)}" for verb, names in (("lacks", missing), ("has unknown", unknown)) if names
        )
        raise ValueError(
            f"{where} {found}. It must have {', '.join(needed) or 'nothing'} and may have {', '.join(optional)}."
        )


def without_folders(value: Any) -> Any:
    """The same JSON value, in whose texts every path from the root or the home keeps its last name alone."""
    if isinstance(value, str):
        return _PATH.sub(lambda found: re.split(r"[/\\]+", found[0].rstrip("/\\"))[-1], value)
    if isinstance(value, Mapping):
        return {name: without_folders(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(each) for each in value]
    return value


def _missing(content: Mapping[str, Any]) -> list[str]:
    """What a card needs of an evaluation and doesn't find."""
    whole = [name for name in _NEEDED if name not in content]
    parts = [
        f"{name}.{part}"
        for name, wanted in _NEEDED.items()
        for part in wanted
        if name in content and not (isinstance(content[name], Mapping) and part in content[name])
    ]
    return whole + parts


def _opened(evaluation: Evaluation | Mapping[str, Any] | str | Path, number: int) -> tuple[str, Mapping[str, Any]]:
    """What to call an evaluation in an error, and its JSON."""
    if isinstance(evaluation, Evaluation):
        return f"evaluation {number} ({evaluation.protocol.name})", evaluation.to_json()
    if isinstance(evaluation, Mapping):
        return f"evaluation {number}", evaluation
    path = Path(evaluation)
    path = path / RESULTS_FILE if path.is_dir() else path
    return str(path), _json(path)


def _json(path: Path) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no {path}. Give the path of a file that is there.") from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}). Give the file as it was written.") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, but a JSON object was expected.")
    return content


def _free_name(protocol: str, taken: Mapping[str, Any]) -> str:
    """A file name for an evaluation, with a number from the second one of a protocol on."""
    base = re.sub(r"[^\w.-]+", "-", protocol).strip("-.") or "evaluation"
    names = [f"{base}.json", *(f"{base}-{number}.json" for number in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken and name != COST_FILE)
