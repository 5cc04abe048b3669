"""What a card's figures come from, as JSON that may leave this machine: evaluations and training."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.results import RESULTS_FILE, Evaluation
from ..models.checkpoint import TRAINING_FILE

EVALUATIONS_FOLDER = "evaluations"
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
