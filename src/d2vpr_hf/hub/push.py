"""Pushes what this package makes to the Hub: a model, the metric, an exported protocol; each as one commit, or not."""

import fnmatch
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..messages import first_few
from .release import write_release

METRIC_NAME = "recall_at_k"
_METRIC_FILE = f"{METRIC_NAME}.py"
# A wheel has the metric beside this file, a checkout, which an editable install runs from, at its root.
_METRIC_FOLDERS = (Path(__file__).with_name(METRIC_NAME), Path(__file__).parents[3] / "metrics" / METRIC_NAME)
# What earlier pushes may have left: other shards, other results, code of another version.
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
# What a repository may hold without belonging to anybody: the Hub's own first file, a page, a licence.
_NOBODYS = {".gitattributes", ".gitignore", "README.md", "LICENSE"}
_COMMIT = re.compile("[0-9a-f]{40}")
# Caches, and what desktops leave.
_NOT_PUSHED = re.compile(r"(^|/)(\.|__pycache__/)")

RepoType = Literal["model", "dataset", "space"]


@dataclass(frozen=True)
class Push:
    """What a push has made.

    Attributes:
        repo_id: "owner/name".
        revision: the branch.
        commit: name of the commit, by which this state is found forever (`revision=` in `from_pretrained`).
        url: of the commit's page.
        files: what was pushed, by path in the repository.
        replaced: files of an earlier push that are not part of this one and were taken away.
    """

    repo_id: str
    revision: str
    commit: str
    url: str
    files: list[str]
    replaced: list[str]


class PushConflictError(OSError):
    """Somebody else has changed the repository between a push's look at it and its commit; nothing was written."""


def push_model(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    repo_id: str,
    *,
    allow_converted: bool = False,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    token: str | None = None,
    **records: Any,
) -> Push:
    """Shares a model on the Hub, as one commit that holds all that its users need.

    That is weights (safetensors), configuration, processor, PCA, the code that loads it without this package, the
    evaluations, the training record, and a card made of them. `AutoModel.from_pretrained(repo_id)` opens it.

    Args:
        model: a D2-VPR model.
        processor: the model's image processor.
        repo_id: "owner/name". A new repository is made; an earlier push is replaced; anything else is refused.
        allow_converted: push a checkpoint that was converted from published weights. Their authors have given no
            licence, so ask them first.
        private: whether a new repository is seen by its owner alone.
        revision: branch to commit to, made if it isn't there; None for main.
        message: of the commit.
        token: of the Hub; by default the one that is logged in.
        records: evaluations, comparisons, training, about, license and notes, as for `write_release`, which shows what
            a push would upload.

    Raises: PermissionError for a converted checkpoint without `allow_converted`; as `write_release` and
        `commit_folder`. Nothing is visible on the Hub then, and the push can be repeated.
    """
    check_may_share(model, allow_converted)
    with tempfile.TemporaryDirectory(prefix="d2vpr-push-") as work:
        folder = write_release(Path(work) / "model", model, processor, repo_id, revision=revision, **records)
        return commit_folder(
            folder,
            repo_id,
            repo_type="model",
            message=message or "Push a D2-VPR model with its records and card",
            ours=_holds_our_model,
            stale=_MODEL_FILES,
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
    source = next(filter(Path.is_dir, _METRIC_FOLDERS), _METRIC_FOLDERS[0]) if folder is None else Path(folder)
    if not is_metric(source):
        raise FileNotFoundError(f"{source} has no {_METRIC_FILE}, so it isn't the metric's folder. Leave folder out.")
    return commit_folder(
        source,
        repo_id,
        repo_type="space",
        message=message or "Push recall@k",
        ours=lambda files, read: _METRIC_FILE in files,
        private=private,
        token=token,
        space_sdk="gradio",
    )


def push_export(
    folder: str | Path, repo_id: str, *, private: bool = True, message: str | None = None, token: str | None = None
) -> Push:
    """Shares an exported protocol as a dataset repository; private unless told otherwise.

    Most sets may not be passed on. Export a dataset first: `export_protocol`.

    Args:
        folder: as `export_protocol` leaves it.
        repo_id: "owner/name".
        private: whether a new repository is seen by its owner alone.
        message, token: as for `push_model`.

    Raises: ValueError if the folder isn't an export; as `commit_folder`.
    """
    folder = Path(folder)
    if not is_export(folder):
        raise ValueError(
            f"{folder} has no README.md beside data/*.parquet, so it isn't an exported protocol. Give a folder that "
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
        stale=_EXPORT_FILES,
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
    """Whether it is a protocol as `export_protocol` leaves it."""
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


def _title(card: str) -> str:
    """The first heading of a card."""
    found = re.search(r"^# (.+)$", card, re.MULTILINE)
    return found[1].strip() if found else ""


def commit_folder(
    folder: str | Path,
    repo_id: str,
    *,
    repo_type: RepoType,
    message: str,
    ours: Callable[[set[str], Callable[[str], str]], bool],
    stale: Sequence[str] = (),
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    space_sdk: str | None = None,
) -> Push:
    """Uploads a folder as one commit, into a new repository or over an earlier push of the same kind.

    Large files are sent before the commit, and those that arrived are not sent again: a push that failed can simply be
    repeated. Until the commit nobody sees anything but, at most, an empty repository.

    Args:
        folder: all of it is uploaded but hidden files and Python's caches.
        repo_id: "owner/name".
        repo_type: what the repository is.
        message: of the commit.
        ours: whether an existing repository holds an earlier push, told from its paths and a function that reads one
            of its files.
        stale: patterns of the files of an earlier push that go, if this one doesn't bring them.
        private: whether a new repository is seen by its owner alone.
        revision: branch to commit to, made if it isn't there; None for main.
        token: of the Hub; by default the one that is logged in.
        space_sdk: for a Space, what runs it.

    Raises: PermissionError (no token, one that the Hub doesn't take, or no right), ConnectionError (no network, or the
        Hub fails), FileExistsError (the repository holds something else), PushConflictError (two pushes at once),
        ValueError (a name, branch or card that the Hub doesn't take).
    """
    folder, branch = Path(folder), revision or constants.DEFAULT_REVISION
    check_names(repo_id, branch)
    if token is None and get_token() is None:
        raise PermissionError(
            f"Pushing to {repo_id} needs a token of the Hugging Face Hub, and none is here. Log in with `hf auth "
            "login`, set HF_TOKEN, or give token=; make it at huggingface.co/settings/tokens, with the right to write."
        )
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {name: path for name, path in files.items() if not _NOT_PUSHED.search(name)}
    api = HfApi(token=token)
    with _hub_errors(repo_id, branch):
        head, there = _repository_state(api, repo_id, repo_type, branch, private, space_sdk)

        def read(path: str) -> str:
            stored = api.hf_hub_download(repo_id, path, repo_type=repo_type, revision=head)
            return Path(stored).read_text(encoding="utf-8")

        if (theirs := sorted(there - _NOBODYS)) and not ours(there, read):
            raise FileExistsError(
                f"{repo_id} holds something else ({first_few(theirs, 5)}), which a push would bury. Give the name of a "
                "new repository, or of one that was pushed before in this way."
            )
        gone = sorted(
            path for path in there - files.keys() if any(fnmatch.fnmatchcase(path, pattern) for pattern in stale)
        )
        # Not upload_folder, which splits a large folder into several commits.
        info = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, path) for name, path in files.items()),
                *(CommitOperationDelete(path) for path in gone),
            ],
            commit_message=message,
            repo_type=repo_type,
            revision=branch,
            # The Hub refuses the commit if another one came in between.
            parent_commit=head,
        )
    return Push(repo_id, branch, info.oid, info.commit_url, list(files), gone)


def _repository_state(
    api: HfApi, repo_id: str, repo_type: RepoType, branch: str, private: bool, space_sdk: str | None
) -> tuple[str, set[str]]:
    """The branch's last commit and its files; a repository or branch that isn't there is made, a branch as main is."""
    api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=space_sdk)
    if private and not api.repo_info(repo_id, repo_type=repo_type).private:
        raise FileExistsError(
            f"{repo_id} is there already and public, but a private push was asked for. Make it private on its page, "
            "give another name, or push it publicly."
        )
    if branch != constants.DEFAULT_REVISION:
        api.create_branch(repo_id, branch=branch, repo_type=repo_type, exist_ok=True)
    info = api.repo_info(repo_id, repo_type=repo_type, revision=branch)
    return info.sha, {file.rfilename for file in info.siblings or ()}


def check_names(repo_id: str, branch: str) -> None:
    """Refuses what isn't a name of a repository, or a branch.

    Raises: ValueError.
    """
    if repo_id.count("/") != 1 or not all(repo_id.split("/")):
        raise ValueError(f"{repo_id!r} isn't a name on the Hub. Give owner/name, such as me/d2vpr-town.")
    if _COMMIT.fullmatch(branch):
        raise ValueError(
            f"revision is {branch}, a commit, and a commit can't be pushed to. Give the name of a branch, such as v2, "
            "or leave it out for main."
        )
    if branch.startswith("refs/"):
        raise ValueError(f"revision is {branch}, but only a branch can be pushed to. Give its name, such as v2.")


@contextmanager
def _hub_errors(repo_id: str, branch: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into errors that say what to do."""
    try:
        yield
    except HFValidationError as error:
        raise ValueError(
            f"{repo_id!r} isn't a name on the Hub ({error}). Give owner/name, such as me/d2vpr."
        ) from error
    except LocalTokenNotFoundError as error:
        raise PermissionError(f"{error} Log in with `hf auth login`, or set HF_TOKEN.") from error
    except OfflineModeIsEnabled as error:
        raise ConnectionError(
            f"The Hub can't be asked about {repo_id}, because HF_HUB_OFFLINE is set. Unset it to push."
        ) from error
    except HTTPError as error:
        raise _said(error, repo_id, branch) from error
    except RuntimeError as error:
        # So huggingface_hub wraps what happened while a large file was sent.
        if not isinstance(error.__cause__, HTTPError):
            raise
        raise _said(error.__cause__, repo_id, branch) from error
    except ValueError as error:
        # So it hands on what the Hub says against a card, before anything is sent.
        if "README.md" not in str(error):
            raise
        words = " ".join(str(error).split())
        raise ValueError(
            f"The Hub doesn't take the card of {repo_id}: {words}. Nothing was sent. Correct that in the records or "
            "options that the card is made of, and push again."
        ) from error


def _said(error: HTTPError, repo_id: str, branch: str) -> OSError | ValueError:
    """What a failed call means for a push."""
    if not isinstance(error, HfHubHTTPError):
        return ConnectionError(
            f"The Hub at {constants.ENDPOINT} can't be reached or broke off ({type(error).__name__}: {error}), so "
            f"nothing of this push is visible in {repo_id}. Check the network and push again: files that arrived "
            "aren't sent a second time."
        )
    status = error.response.status_code
    words = " ".join(str(error.server_message or error).split())
    if status == 401:
        return PermissionError(
            f"The Hub doesn't take the token for {repo_id} ({words}). Log in anew with `hf auth login`, or give "
            "another token; make it at huggingface.co/settings/tokens, with the right to write."
        )
    if status == 403:
        return PermissionError(
            f"The token has no right to write to {repo_id} ({words}). Give a token with the right to write, or a name "
            "of your own: `hf auth whoami` says who you are."
        )
    if status == 412:
        return PushConflictError(
            f"Somebody else has pushed to {repo_id} ({branch}) at the same time, so nothing of this push was written. "
            "Look at what is there now, and push again if yours should replace it."
        )
    if isinstance(error, BadRequestError):
        return ValueError(
            f"The Hub doesn't take this push to {repo_id} ({branch}): {words}. Change that and push again."
        )
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
        return PermissionError(
            f"The Hub shows no repository {repo_id} ({branch}) to this token. Check the name, and that the token may "
            "read and write there."
        )
    return ConnectionError(
        f"The Hub has failed on {repo_id} ({status}: {words}), so nothing of this push is visible. Push again later: "
        "files that arrived aren't sent a second time."
    )
