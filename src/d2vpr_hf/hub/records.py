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
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..evaluation.results import RESULTS_FILE, Evaluation
from ..models.checkpoint import TRAINING_FILE

EVALUATIONS_FOLDER = "evaluations"
COMPARISONS_FOLDER = "comparisons"
COST_FILE = "cost.json"

# What the records must hold and may hold ("?"); "*" is any other name. A list holds entries of one form, a tuple names
# forms of which one must fit, and None is anything.
_EVALUATION = {
    "protocol": str,
    "rule": str,
    "recall": {"*": float},
    "counts": {"database": int, "database_ranked": int, "queries": int, "queries_ranked": int, "*": None},
    "queries_without_positives": int,
    "model": {"name": str, "weight_hash": str, "*": None},
    "settings": {"batch_rule": str, "dtype": str, "query_method": str, "*": None},
    "hits?": {"*": int},
    "recall_intervals?": {"level": float, "*": (float, [float])},
    "notes?": [str],
    "*": None,
}
_COMPARISON = {
    "name": str,
    "measure": str,
    "rule": str,
    "counts": {"*": int},
    "model": {"weight_hash": str, "*": None},
    "rows": [
        {
            "method": str,
            "value": float,
            "hits?": int,
            "of?": int,
            "interval?": [float],
            "difference?": float,
            "difference_interval?": [float],
            "source?": str,
            "dim?": int,
        }
    ],
    "command?": str,
    "remarks?": [str],
    "versions?": {"*": None},
}
# As `Comparison.to_json` gives it.
_COMPARED = {
    "protocol": str,
    "model?": str,
    "results": {"*": _EVALUATION},
    "differences": {"*": {"*": {"difference": float, "interval": [float], "*": None}}},
    "*": None,
}
_TRAINING = {
    "stages": [
        {"stage": str, "base_model?": (str, [str]), "datasets?": (str, [str]), "best?": {"*": None}, "*": None},
    ],
    "*": None,
}
_ABOUT = {
    "not_this?": [str],
    "data_sources?": [{"name": str, "terms": str, "files?": int, "files_sha256?": str, "url?": str, "use?": str}],
    "credits?": [str],
    "teacher?": {"name": str, "terms": str, "url?": str, "use?": str},
    "retrain?": {"command": str, "seeds?": (int, str, [(int, str)]), "commit?": str, "steps?": [str]},
}
_KINDS = {str: "text", int: "an integer", float: "a finite number"}
# What a browser opens without running it.
_URL = re.compile(r"https?://[^\s()<>\[\]\"'|`]+")
_MARKDOWN_LINK = re.compile(r"\][(:]\s*<?\s*([^\s)>]*)")
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

    Raises: ValueError if one is of other weights, has no recall, or isn't an evaluation. FileNotFoundError.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, each in enumerate(evaluations, start=1):
        where, content = _opened(each, f"evaluation {number}")
        if missing := _missing(content, _EVALUATION):
            raise ValueError(
                f"{where} lacks {', '.join(missing)}, so it isn't an evaluation. Give {RESULTS_FILE} as `d2vpr "
                "evaluate --save` or `Evaluation.save` writes it."
            )
        if content["recall"] is None:
            raise ValueError(
                f"{where} has no recall, because nobody knew the right answers, so a card can't show it. Leave it out."
            )
        _check(where, content, _EVALUATION)
        if wrong := [metric for metric in content["recall"] if not re.fullmatch(r"recall@[1-9]\d*", metric)]:
            raise ValueError(f"{where}: recall holds {wrong[0]!r}, but its names must be recall@1 and the like.")
        if content["model"]["weight_hash"] != weight_hash:
            raise ValueError(
                f"{where} is of the weights {content['model']['weight_hash'][:8]} ({content['model']['name']}), but "
                f"the model to push has the weights {weight_hash[:8]}. Evaluate this model, or leave the result out."
            )
        kept = {name: value for name, value in content.items() if name not in _PHOTO_FIELDS}
        found[_free_name(content["protocol"], found)] = _to_share(where, kept)
    return found


def read_training(training: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """How the model was trained, by stage, without this machine's folders.

    Raises: ValueError if it doesn't hold a list of stages. FileNotFoundError.
    """
    where, content = _opened(training, "training")
    stages = content.get("stages")
    if not isinstance(stages, list | tuple) or not all(
        isinstance(each, Mapping) and "stage" in each for each in stages
    ):
        raise ValueError(
            f"{where} holds no list `stages` of objects with a `stage`, so it doesn't say how the model was trained. "
            f"Give {TRAINING_FILE} as `d2vpr train` writes it, or leave it out."
        )
    _check(where, content, _TRAINING)
    return _to_share(where, content)


def read_comparisons(
    comparisons: Sequence[Mapping[str, Any] | str | Path], weight_hash: str
) -> dict[str, dict[str, Any]]:
    """{file name: comparison}, without this machine's folders.

    Args:
        comparisons: as this module describes them, or as `Comparison.to_json` gives them with this model as the
            baseline; or paths of either.
        weight_hash: of the model that they must be of.

    Raises: ValueError if one is of other weights, or lacks or has a field that it must or can't. FileNotFoundError.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, each in enumerate(comparisons, start=1):
        where, content = _opened(each, f"comparison {number}")
        if "results" in content and "differences" in content:
            _check(where, content, _COMPARED)
            content = _from_evaluations(content)
        _check(where, content, _COMPARISON)
        if (hash_there := content["model"]["weight_hash"]) != weight_hash:
            raise ValueError(
                f"{where} is of the weights {hash_there[:8]}, but the model to release has the weights "
                f"{weight_hash[:8]}. Compare this model, or leave the comparison out."
            )
        found[_free_name(content["name"], found)] = _to_share(where, content)
    return found


def read_about(about: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """What is to be said of a checkpoint besides its figures, without this machine's folders.

    `not_this` and `credits` are lists of sentences; `data_sources` is a list of {name, terms, files, files_sha256,
    url, use}; `teacher` is {name, terms, url, use}; `retrain` is {command, seeds, commit, steps}. All are optional.

    Raises: ValueError for a field that isn't known, lacks a part, is of another type, or whose link isn't to a web
        page. FileNotFoundError.
    """
    where, content = _opened(about, "about")
    _check(where, content, _ABOUT)
    for entry in [*(content.get("data_sources") or ()), content.get("teacher") or {}]:
        if (url := entry.get("url")) and not _URL.fullmatch(url):
            raise ValueError(
                f"{where}: the url of {entry['name']} is {url!r}, but it must begin with https:// or http:// and hold "
                "no brackets, quotes or spaces. Write those as %20 and the like."
            )
    return _to_share(where, content)


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


def _check(where: str, value: Any, form: Any) -> None:
    """Refuses a value that isn't of its form, with the place where it differs."""
    if isinstance(form, tuple):
        *others, form = form
        for each in others:
            with suppress(ValueError):
                return _check(where, value, each)
    if isinstance(form, dict):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is a {type(value).__name__}, but it must be an object. Write it as one.")
        _check_names(where, value, form)
        for name, each in value.items():
            optional = f"{name}?" in form
            if not (optional and each is None):
                _check(f"{where}: {name}", each, form[f"{name}?"] if optional else form.get(name, form.get("*")))
    elif isinstance(form, list):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} is a {type(value).__name__}, but it must be a list.")
        for number, each in enumerate(value, start=1):
            _check(f"{where}, entry {number}", each, form[0])
    elif form is not None:
        fits = isinstance(value, int | float if form is float else form) and not isinstance(value, bool)
        if not fits or (form is float and not math.isfinite(value)):
            raise ValueError(f"{where} is {str(value)[:60]!r}, but it must be {_KINDS[form]}.")


def _check_names(where: str, content: Mapping[str, Any], form: Mapping[str, Any]) -> None:
    needed = [name for name in form if name != "*" and not name.endswith("?")]
    optional = [name[:-1] for name in form if name.endswith("?")]
    missing = [name for name in needed if name not in content]
    unknown = [] if "*" in form else [str(name) for name in content if name not in (*needed, *optional)]
    if missing or unknown:
        found = "; ".join(
            f"{verb} {', '.join(names)}" for verb, names in (("lacks", missing), ("has unknown", unknown)) if names
        )
        raise ValueError(
            f"{where} {found}. It must have {', '.join(needed) or 'nothing'} and may have {', '.join(optional)}."
        )


def _to_share(where: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """The record without this machine's folders, if none of its texts links to anything but web pages and files."""
    for text in _texts(content):
        for target in _MARKDOWN_LINK.findall(text):
            scheme = re.match(r"[A-Za-z][\w+.-]*(?=:)", target)
            if scheme and scheme[0].lower() not in ("http", "https", "mailto"):
                raise ValueError(f"{where} links to {target[:60]!r}, but a card links to web pages alone. Take it out.")
    return without_folders(dict(content))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)


def without_folders(value: Any) -> Any:
    """The same JSON value, in whose texts every path from the root or the home keeps its last name alone."""
    if isinstance(value, str):
        return _PATH.sub(lambda found: re.split(r"[/\\]+", found[0].rstrip("/\\"))[-1], value)
    if isinstance(value, Mapping):
        return {name: without_folders(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(each) for each in value]
    return value


def _missing(content: Mapping[str, Any], form: Mapping[str, Any], where: str = "") -> list[str]:
    """Names of what a record must hold and doesn't, within its parts too."""
    found: list[str] = []
    for name, part in form.items():
        if name == "*" or name.endswith("?"):
            continue
        if name not in content:
            found.append(where + name)
        elif isinstance(part, dict):
            inside = content[name] if isinstance(content[name], Mapping) else {}
            found += _missing(inside, part, f"{where}{name}.")
    return found


def _opened(record: Any, name: str) -> tuple[str, Mapping[str, Any]]:
    """What to call a record in an error, and its JSON."""
    if isinstance(record, Evaluation):
        return f"{name} ({record.protocol.name})", record.to_json()
    if isinstance(record, Mapping):
        return name, record
    path = Path(record)
    path = path / RESULTS_FILE if path.is_dir() else path
    return str(path), _json(path)


def _json(path: Path) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no {path}. Give the path of a file that is there.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} isn't valid JSON ({error}). Give the file as it was written.") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, but a JSON object was expected.")
    return content


def _free_name(protocol: str, taken: Mapping[str, Any]) -> str:
    """A file name for an evaluation, with a number from the second one of a protocol on."""
    base = re.sub(r"[^\w.-]+", "-", protocol).strip("-.") or "evaluation"
    names = [f"{base}.json", *(f"{base}-{number}.json" for number in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken and name != COST_FILE)
