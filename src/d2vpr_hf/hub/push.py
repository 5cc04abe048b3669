"""Pushes what this package makes to the Hub: a model, the metric, an exported benchmark, each as one commit."""

import fnmatch
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..evaluation.results import Evaluation
from .carried_files import METRIC_FOLDER, carried_path
from .release import write_release
from .uploads import Push, commit_folder

METRIC_NAME = "recall_at_k"
_METRIC_FILE = f"{METRIC_NAME}.py"
# What earlier pushes of a model may have left: other shards, other results, code of another version.
_MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "evaluations/*.json",
    "comparisons/*.json",
    "training.json",
    "about.json",
    "*_d2vpr.py",
)
_EXPORT_FILES = ("data/*.parquet",)


def push_model(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    repo_id: str,
    *,
    evaluations: Sequence[Evaluation | Mapping[str, Any] | str | Path] = (),
    comparisons: Sequence[Mapping[str, Any] | str | Path] = (),
    training: Mapping[str, Any] | str | Path | None = None,
    about: Mapping[str, Any] | str | Path | None = None,
    license: str | None = None,
    notes: Sequence[str] = (),
    allow_converted: bool = False,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    token: str | None = None,
) -> Push:
    """Shares a model on the Hub, as one commit that holds all that its users need.

    That is weights (safetensors), configuration, processor, PCA, the code that loads it without this package, the
    evaluations, the training record, and a card made of them. `AutoModel.from_pretrained(repo_id)` opens it.

    Args:
        model: a D2-VPR model.
        processor: the model's image processor.
        repo_id: "owner/name". A new repository is made; an earlier push is replaced; anything else is refused.
        evaluations, comparisons, training, about, license, notes: as for `write_release`, which shows what a push
            would upload.
        allow_converted: push a checkpoint that was converted from published weights. Their authors have given no
            licence, so ask them first.
        private: whether a new repository is seen by its owner alone.
        revision: branch to commit to, made if it isn't there; None for main.
        message: of the commit.
        token: of the Hub; by default the one that is logged in.

    Raises: PermissionError for a converted checkpoint without `allow_converted`; as `write_release` and
        `commit_folder`. Nothing is visible on the Hub then, and the push can be repeated.
    """
    check_may_share(model, allow_converted)
    with tempfile.TemporaryDirectory(prefix="d2vpr-push-") as work:
        folder = write_release(
            Path(work) / "model",
            model,
            processor,
            repo_id,
            evaluations=evaluations,
            comparisons=comparisons,
            training=training,
            about=about,
            license=license,
            revision=revision,
            notes=notes,
        )
        return commit_folder(
            folder,
            repo_id,
            repo_type="model",
            message=message or "Push a D2-VPR model with its records and card",
            ours=_holds_our_model,
            stale=_matching(_MODEL_FILES),
            private=private,
            revision=revision,
            token=token,
        )


def push_metric(
    repo_id: str,
    *,
    folder: str | Path | None = None,
    private: bool = False,
    message: str | None = None,
    token: str | None = None,
) -> Push:
    """Shares recall@k as a Space, from which `evaluate.load(repo_id)` loads it.

    Args:
        repo_id: "owner/recall_at_k": evaluate looks for a file of the repository's name.
        folder: of the metric; by default the one that the package carries.
        private, message, token: as for `push_model`.

    Raises: ValueError if the name ends in something else; as `commit_folder`.
    """
    if repo_id.partition("/")[2] != METRIC_NAME:
        raise ValueError(
            f"The Space is called {repo_id!r}, but evaluate looks for a file of the Space's name, which is "
            f"{_METRIC_FILE}. Give owner/{METRIC_NAME}."
        )
    source = carried_path(METRIC_FOLDER) if folder is None else Path(folder)
    if not (source / _METRIC_FILE).is_file():
        raise FileNotFoundError(f"{source} has no {_METRIC_FILE}, so it isn't the metric's folder. Leave folder out.")
    with tempfile.TemporaryDirectory(prefix="d2vpr-push-") as work:
        draft = shutil.copytree(source, Path(work) / METRIC_NAME, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        return commit_folder(
            draft,
            repo_id,
            repo_type="space",
            message=message or "Push recall@k",
            ours=lambda files, read: _METRIC_FILE in files,
            stale=lambda path: False,
            private=private,
            token=token,
            space_sdk="gradio",
        )


def push_export(
    folder: str | Path, repo_id: str, *, private: bool = True, message: str | None = None, token: str | None = None
) -> Push:
    """Shares an exported benchmark as a dataset repository; private unless told otherwise.

    Most benchmarks may not be passed on. Export a dataset first: `export_protocol`.

    Args:
        folder: as `export_protocol` leaves it.
        repo_id: "owner/name".
        private: whether a new repository is seen by its owner alone.
        message, token: as for `push_model`.

    Raises: ValueError if the folder is no export; as `commit_folder`.
    """
    folder = Path(folder)
    if not is_export(folder):
        raise ValueError(
            f"{folder} has no README.md beside data/*.parquet, so it is no exported benchmark. Give a folder that "
            "`export_protocol` has filled."
        )
    title = _title((folder / "README.md").read_text(encoding="utf-8"))

    def same_set(files: set[str], read: Callable[[str], str]) -> bool:
        return "README.md" in files and _title(read("README.md")) == title

    return commit_folder(
        folder,
        repo_id,
        repo_type="dataset",
        message=message or f"Push {title}",
        ours=same_set,
        stale=_matching(_EXPORT_FILES),
        private=private,
        token=token,
    )


def check_may_share(model: PreTrainedModel, allow_converted: bool) -> None:
    """Refuses a model whose weights are somebody else's, unless the user answers for it.

    Raises: PermissionError.
    """
    source = getattr(model.config, "converted_from", None)
    if source is not None and not allow_converted:
        raise PermissionError(
            f"The model was converted from {source['file']} (SHA-256 {source['sha256'][:8]}), and the repository that "
            "published D2-VPR states no licence, so its weights are for their authors to share. Ask them, and then "
            "push with allow_converted=True (--allow-converted); or push weights that you have trained."
        )


def is_export(folder: Path) -> bool:
    """Whether it is a benchmark as `export_protocol` leaves it."""
    return (folder / "README.md").is_file() and any(folder.glob("data/*.parquet"))


def is_metric(folder: Path) -> bool:
    """Whether it is the metric's folder."""
    return (folder / _METRIC_FILE).is_file()


def _holds_our_model(files: set[str], read: Callable[[str], str]) -> bool:
    if "config.json" not in files:
        return False
    try:
        return json.loads(read("config.json")).get("model_type") == "d2vpr"
    except (ValueError, AttributeError):
        return False


def _matching(patterns: Sequence[str]) -> Callable[[str], bool]:
    return lambda path: any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _title(card: str) -> str:
    """The first heading of a card."""
    found = re.search(r"^# (.+)$", card, re.MULTILINE)
    return found[1].strip() if found else ""
