"""The folder that a push uploads: checkpoint, records, card, and what sentence-transformers reads."""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..evaluation.cost import model_cost
from ..evaluation.results import Evaluation
from ..files import replace_file, replacing_folder
from ..models import d2vpr
from ..models.checkpoint import ABOUT_FILE, TRAINING_FILE, write_checkpoint
from ..retrieval.embedder import weight_hash
from .card import model_card
from .records import (
    COMPARISONS_FOLDER,
    COST_FILE,
    EVALUATIONS_FOLDER,
    read_about,
    read_comparisons,
    read_evaluations,
    read_training,
)

# Of weights that somebody trained; a converted checkpoint gets none.
DEFAULT_LICENSE = "apache-2.0"
_SENTENCE_TRANSFORMERS = Path(d2vpr.__file__).with_name("sentence_transformers_d2vpr.py")


def write_release(
    folder: str | Path,
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    repo_id: str,
    *,
    evaluations: Sequence[Evaluation | Mapping[str, Any] | str | Path] | None = None,
    comparisons: Sequence[Mapping[str, Any] | str | Path] | None = None,
    training: Mapping[str, Any] | str | Path | None = None,
    about: Mapping[str, Any] | str | Path | None = None,
    license: str | None = None,
    revision: str | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """The folder, filled with all that a push of this model uploads; nothing leaves this machine.

    It opens like any checkpoint folder, and holds the records that its card is made of. Photos' names and this
    machine's folders are in none of them.

    Args:
        folder: must not exist, or be empty.
        model: a D2-VPR model, with or without a PCA.
        processor: the model's image processor.
        repo_id: "owner/name", for which the card is written; a name alone for a checkpoint that the package ships.
        evaluations: of these very weights; from `evaluate_protocol`, its JSON, or paths of `results.json`. This and
            the next three are by default what the folder that the model was loaded from holds, if its weights are
            still the same; an empty list is none.
        comparisons: tables of these weights beside other methods, as `hub/records.py` describes them, or their paths.
        training: how it was trained, as `training.json` says it.
        about: data sources with their terms, credits, teacher, how to train it again and what it is not, as
            `records.read_about` describes it.
        license: of the weights, by its name on the Hub; by default Apache-2.0, and none for converted weights.
        revision: the branch that the card is for; None for main.
        notes: sentences that must be read first, such as that weights are random.

    Raises: TypeError if it isn't a D2-VPR model, FileExistsError if the folder holds anything, ValueError if an
        evaluation is of other weights, or as the functions of `hub/records.py` that read the records.
    """
    folder = Path(folder)
    if getattr(model.config, "model_type", None) != "d2vpr":
        raise TypeError(
            f"{type(model).__name__} isn't a D2-VPR model, so the code that loads it can't travel with it. Give a "
            "D2VprModel; of a teacher push the student."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and isn't empty. Remove it, or name another folder.")
    digest = weight_hash(model)
    given = {"evaluations": evaluations, "comparisons": comparisons, "training": training, "about": about}
    if any(content is None for content in given.values()):
        own = _own_records(model, digest)
        given = {name: own.get(name) if content is None else content for name, content in given.items()}
    results = read_evaluations(given["evaluations"] or (), digest)
    tables = read_comparisons(given["comparisons"] or (), digest)
    record = None if given["training"] is None else read_training(given["training"])
    said = None if given["about"] is None else read_about(given["about"])
    cost = model_cost(model, height=processor.size["height"], width=processor.size["width"]).to_json()
    if license is None and model.config.converted_from is None:
        license = DEFAULT_LICENSE
    card = model_card(
        repo_id,
        model.config,
        cost=cost,
        evaluations=results,
        comparisons=tables,
        training=record,
        about=said,
        license=license,
        revision=revision,
        notes=notes,
    )
    with replacing_folder(folder) as draft:
        write_checkpoint(draft, model, processor)
        _write_json(draft / EVALUATIONS_FOLDER / COST_FILE, cost)
        for name, content in results.items():
            _write_json(draft / EVALUATIONS_FOLDER / name, content)
        for name, content in tables.items():
            _write_json(draft / COMPARISONS_FOLDER / name, content)
        for name, content in ((TRAINING_FILE, record), (ABOUT_FILE, said)):
            if content is not None:
                _write_json(draft / name, content)
        _write_sentence_transformers(draft, model)
        replace_file(draft / "README.md", str(card))
    return folder


def recorded_results(folder: Path) -> dict[str, list[Path]]:
    """The evaluations and comparisons that a release holds, as arguments of `write_release`."""
    evaluations = [path for path in sorted((folder / EVALUATIONS_FOLDER).glob("*.json")) if path.name != COST_FILE]
    return {"evaluations": evaluations, "comparisons": sorted((folder / COMPARISONS_FOLDER).glob("*.json"))}


def _own_records(model: PreTrainedModel, digest: str) -> dict[str, Any]:
    """The records in the folder that the model was loaded from, unless its weights changed since."""
    if not (name := getattr(model, "name_or_path", "")):
        return {}
    folder = Path(name)
    found: dict[str, Any] = {
        kind: [path for path in paths if _weights_of(path) == digest]
        for kind, paths in recorded_results(folder).items()
    }
    found |= {
        kind: folder / file
        for kind, file in (("training", TRAINING_FILE), ("about", ABOUT_FILE))
        if (folder / file).is_file()
    }
    if not any(found.values()) or weight_hash(type(model).from_pretrained(folder)) != digest:
        return {}
    return found


def _weights_of(path: Path) -> str | None:
    """The hash of the weights that a result is of; None where it doesn't say."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        return json.loads(path.read_text(encoding="utf-8"))["model"]["weight_hash"]
    return None


def _write_sentence_transformers(folder: Path, model: PreTrainedModel) -> None:
    shutil.copyfile(_SENTENCE_TRANSFORMERS, folder / _SENTENCE_TRANSFORMERS.name)
    named = {"idx": 0, "name": "0", "path": "", "type": f"{_SENTENCE_TRANSFORMERS.stem}.D2VprModule"}
    _write_json(folder / "modules.json", [named])
    unit_length = model.config.pca_source is None or model.config.pca_source["renormalise"]
    similarity = {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine" if unit_length else "euclidean"}
    _write_json(folder / "config_sentence_transformers.json", similarity)


def _write_json(path: Path, content: Any) -> None:
    replace_file(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
