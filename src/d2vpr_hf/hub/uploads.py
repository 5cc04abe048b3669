"""One folder becomes one commit on the Hub, or nothing does; what goes wrong is said in words."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
from huggingface_hub.hf_api import RepoFile

RepoType = Literal["model", "dataset", "space"]

# What a repository may hold without belonging to anybody: the Hub's own first file, a page, a licence.
_NOBODYS = {".gitattributes", ".gitignore", "README.md", "LICENSE"}
_COMMIT_DIGITS = 40


@dataclass(frozen=True)
class Push:
    """What a push has made.

    Attributes:
        repo_id: "owner/name".
        revision: the branch.
        commit: name of the commit, by which this state is found for ever (`revision=` in `from_pretrained`).
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


def commit_folder(
    folder: str | Path,
    repo_id: str,
    *,
    repo_type: RepoType,
    message: str,
    ours: Callable[[set[str], Callable[[str], str]], bool],
    stale: Callable[[str], bool],
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    space_sdk: str | None = None,
) -> Push:
    """Uploads a folder as one commit, into a new repository or over an earlier push of the same kind.

    Large files are sent before the commit, and those that arrived are not sent again: a push that failed can simply be
    repeated. Until the commit nobody sees anything but, at most, an empty repository.

    Args:
        folder: all of it is uploaded but hidden files.
        repo_id: "owner/name".
        repo_type: what the repository is.
        message: of the commit.
        ours: whether an existing repository holds an earlier push, told from its paths and a function that reads one
            of its files.
        stale: which files of an earlier push go, if this one doesn't bring them.
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
    api = HfApi(token=token)
    with _hub_errors(repo_id, branch):
        _make_repository(api, repo_id, repo_type, private, space_sdk)
        head, there = _state(api, repo_id, repo_type, branch)
        if there - _NOBODYS and not ours(there, lambda path: _read(api, repo_id, repo_type, head, path)):
            some = ", ".join(sorted(there - _NOBODYS)[:5])
            raise FileExistsError(
                f"{repo_id} holds something else ({some}), which a push would bury. Give the name of a new repository, "
                "or of one that was pushed before in this way."
            )
        paths = _visible_files(folder)
        gone = sorted(path for path in there - paths.keys() if stale(path))
        info = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, path) for name, path in paths.items()),
                *(CommitOperationDelete(path) for path in gone),
            ],
            commit_message=message,
            repo_type=repo_type,
            revision=branch,
            # The Hub refuses the commit if another one came in between.
            parent_commit=head,
        )
    return Push(repo_id, branch, info.oid, info.commit_url, list(paths), gone)


def _visible_files(folder: Path) -> dict[str, Path]:
    """{path in the repository: file} of a folder, without hidden files, which caches and desktops leave."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in files.items() if not any(part.startswith(".") for part in name.split("/"))}


def _make_repository(api: HfApi, repo_id: str, repo_type: RepoType, private: bool, space_sdk: str | None) -> None:
    """Makes the repository unless it is there, in which case it must be as private as asked for."""
    try:
        found = api.repo_info(repo_id, repo_type=repo_type)
    except RepositoryNotFoundError:
        sdk = {"space_sdk": space_sdk} if repo_type == "space" else {}
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, **sdk)
        found = api.repo_info(repo_id, repo_type=repo_type)
    if private and not found.private:
        raise FileExistsError(
            f"{repo_id} is there already and public, but a private push was asked for. Make it private on its page, "
            "give another name, or push it publicly."
        )


def _state(api: HfApi, repo_id: str, repo_type: RepoType, branch: str) -> tuple[str, set[str]]:
    """The branch's last commit and its files; a branch that isn't there begins as main is."""
    try:
        info = api.repo_info(repo_id, repo_type=repo_type, revision=branch)
    except RevisionNotFoundError:
        api.create_branch(repo_id, branch=branch, repo_type=repo_type, exist_ok=True)
        info = api.repo_info(repo_id, repo_type=repo_type, revision=branch)
    tree = api.list_repo_tree(repo_id, repo_type=repo_type, revision=info.sha, recursive=True)
    return info.sha, {entry.path for entry in tree if isinstance(entry, RepoFile)}


def _read(api: HfApi, repo_id: str, repo_type: RepoType, commit: str, path: str) -> str:
    """The text of a file in the repository."""
    file = api.hf_hub_download(repo_id, path, repo_type=repo_type, revision=commit)
    return Path(file).read_text(encoding="utf-8")


def check_names(repo_id: str, branch: str) -> None:
    """Refuses what is no name of a repository, or no branch.

    Raises: ValueError.
    """
    if repo_id.count("/") != 1 or not all(repo_id.split("/")):
        raise ValueError(f"{repo_id!r} is no name on the Hub. Give owner/name, such as me/d2vpr-town.")
    if len(branch) == _COMMIT_DIGITS and all(digit in "0123456789abcdef" for digit in branch):
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
        raise ValueError(f"{repo_id!r} is no name on the Hub ({error}). Give owner/name, such as me/d2vpr.") from error
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
            "Look at what is there now, and push again if yours shall replace it."
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
