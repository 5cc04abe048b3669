"""A folder becomes one commit or none, and each thing that goes wrong is told apart."""

import pytest
from huggingface_hub import constants

from d2vpr_hf.hub.push import PushConflictError, commit_folder

WEIGHTS = bytes(range(256)) * 400


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n")
    (folder / "config.json").write_text('{"mine": true}')
    (folder / "deep" / "notes.txt").write_text("notes")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return folder


def commit(folder, repo_id="me/new", **changes):
    options = {
        "repo_type": "model",
        "message": "Push mine",
        "ours": lambda files, read: "config.json" in files and "mine" in read("config.json"),
        "stale": ["*.safetensors"],
    }
    return commit_folder(folder, repo_id, **options | changes)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_one_commit_in_a_new_repository(hub, folder):
    (folder / ".cache").mkdir()
    (folder / ".cache" / "file").touch()
    (folder / ".DS_Store").touch()
    push = commit(folder)
    assert hub.stored["me/new"].messages == ["initial commit", "Push mine"]
    pushed = dict(hub.repositories["me/new"])
    pushed.pop(".gitattributes")
    assert pushed == {path: content for path, content in contents(folder).items() if path[0] != "."}
    assert sorted(push.files) == sorted(pushed)
    assert push.commit == hub.stored["me/new"].branches["main"]
    assert push.url == f"{hub.url}/me/new/commit/{push.commit}"
    assert (push.revision, push.replaced) == ("main", [])
    assert hub.private["me/new"] is False
    assert hub.asked("PUT", "/objects/") == 1  # the weights alone go by LFS


def test_an_earlier_push_is_replaced_and_what_it_alone_had_goes(hub, folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    commit(folder)
    (folder / "model-00001-of-00002.safetensors").rename(folder / "model.safetensors")
    (folder / "deep" / "notes.txt").unlink()
    push = commit(folder)
    assert push.replaced == ["model-00001-of-00002.safetensors"]
    # notes.txt is none of what a push may take away.
    assert set(hub.repositories["me/new"]) == {*contents(folder), ".gitattributes", "deep/notes.txt"}
    assert len(hub.stored["me/new"].messages) == 3
    # The same again changes nothing.
    assert commit(folder).commit == push.commit
    assert len(hub.stored["me/new"].messages) == 3


def test_a_repository_that_holds_something_else_stays_as_it_is(hub, folder):
    hub.create("me/other")
    hub.commit("me/other", "main", {"config.json": b'{"theirs": 1}', "pytorch_model.bin": b"weights"})
    before = hub.stored["me/other"].branches["main"]
    with pytest.raises(FileExistsError, match=r"me/other holds something else \(config.json, pytorch_model.bin\)"):
        commit(folder, "me/other")
    assert hub.stored["me/other"].branches == {"main": before}
    assert hub.asked("PUT", "/objects/") == 0
    # A repository with no more than a page is nobody's.
    hub.create("me/empty")
    hub.commit("me/empty", "main", {"README.md": b"# To come\n", ".gitattributes": b""})
    commit(folder, "me/empty")
    assert hub.repositories["me/empty"]["model.safetensors"] == WEIGHTS


def test_a_branch_is_made_and_main_left_alone(hub, folder):
    commit(folder)
    main = hub.stored["me/new"].branches["main"]
    (folder / "config.json").write_text('{"mine": "second"}')
    push = commit(folder, revision="v2")
    assert hub.stored["me/new"].branches == {"main": main, "v2": push.commit}
    assert push.revision == "v2"
    (folder / "config.json").write_text('{"mine": "third"}')
    assert commit(folder, revision="v2").commit != push.commit
    assert hub.stored["me/new"].branches["main"] == main
    assert hub.repositories["me/new"]["config.json"] == b'{"mine": true}'


@pytest.mark.parametrize(
    ("revision", "words"),
    [("0123456789abcdef0123456789abcdef01234567", "a commit can't be pushed to"), ("refs/pr/1", "only a branch")],
)
def test_what_is_no_branch_is_refused_before_anything_is_asked(hub, folder, revision, words):
    with pytest.raises(ValueError, match=words):
        commit(folder, revision=revision)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["new", "me/new/er", "/new", "me/", "me/ä b", "me/--x"])
def test_a_wrong_name_is_refused(hub, folder, name):
    with pytest.raises(ValueError, match="isn't a name on the Hub"):
        commit(folder, name)
    assert hub.stored == {}


def test_private_is_private_or_refused(hub, folder):
    commit(folder, private=True)
    assert hub.private == {"me/new": True}
    commit(folder, private=True)
    hub.create("me/public")
    with pytest.raises(FileExistsError, match="me/public is there already and public, but a private push"):
        commit(folder, "me/public", private=True)
    assert set(hub.repositories["me/public"]) == {".gitattributes"}


def test_without_a_token_nothing_is_asked(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PermissionError, match=r"needs a token .* Log in with `hf auth login`"):
        commit(folder)
    assert hub.requests == []
    assert commit(folder, token="hf_x").repo_id == "me/new"


def test_a_wrong_token_and_a_missing_right_are_told_apart(hub, folder):
    with pytest.raises(PermissionError, match=r"doesn't take the token for me/new \(Invalid credentials"):
        commit(folder, token="hf_gone")
    with pytest.raises(PermissionError, match="The token has no right to write to other/new"):
        commit(folder, "other/new")
    hub.create("other/public")
    with pytest.raises(PermissionError, match="The token has no right to write to other/public"):
        commit(folder, "other/public")
    # What is private to others looks as if it weren't there.
    hub.create("other/private", private=True)
    with pytest.raises(PermissionError, match="other/private"):
        commit(folder, "other/private")
    assert [len(each.messages) for each in hub.stored.values()] == [1, 1]


def test_no_network_is_said(hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"at http://127.0.0.1:9 can't be reached .* push again"):
        commit(folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set"):
        commit(folder)


def test_an_upload_that_breaks_off_goes_on(hub, folder, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.break_uploads = 2
    commit(folder)
    assert hub.repositories["me/new"]["model.safetensors"] == WEIGHTS
    assert hub.asked("PUT", "/objects/") == 3


def test_a_failed_upload_shows_nothing_and_is_repeated_without_what_arrived(hub, folder, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    commit(folder)
    before = hub.stored["me/new"].branches["main"]
    (folder / "config.json").write_text('{"mine": "second"}')
    (folder / "first.safetensors").write_bytes(WEIGHTS[::-1])
    hub.break_uploads = 1000
    with pytest.raises(ConnectionError, match="nothing of this push is visible in me/new"):
        commit(folder)
    assert hub.stored["me/new"].branches["main"] == before
    assert hub.repositories["me/new"]["config.json"] == b'{"mine": true}'
    hub.break_uploads = 0

    def fail():
        raise OSError("the machine went down")

    # This time all objects arrive, and the commit doesn't.
    hub.before_commit = fail
    with pytest.raises(ConnectionError):
        commit(folder)
    assert hub.stored["me/new"].branches["main"] == before
    sent = hub.asked("PUT", "/objects/")
    commit(folder)
    assert hub.repositories["me/new"]["first.safetensors"] == WEIGHTS[::-1]
    assert hub.asked("PUT", "/objects/") == sent
    assert hub.stored["me/new"].messages == ["initial commit", "Push mine", "Push mine"]


def test_of_two_pushes_at_once_one_is_written_and_the_other_told(hub, folder, tmp_path):
    commit(folder)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "config.json").write_text('{"mine": "theirs"}')
    (folder / "config.json").write_text('{"mine": "ours"}')
    done = []
    hub.before_commit = lambda: done.append(commit(theirs, message="Theirs"))
    with pytest.raises(PushConflictError, match=r"pushed to me/new \(main\) at the same time, so nothing of this push"):
        commit(folder)
    assert hub.stored["me/new"].messages[1:] == ["Push mine", "Theirs"]
    assert hub.stored["me/new"].branches["main"] == done[0].commit
    assert hub.repositories["me/new"]["config.json"] == b'{"mine": "theirs"}'
    # Whoever has looked may push again.
    commit(folder)
    assert hub.repositories["me/new"]["config.json"] == b'{"mine": "ours"}'


def test_a_card_that_the_hub_does_not_take_stops_the_push(hub, folder):
    (folder / "README.md").write_text("---\nbase_model: /home/me/runs\n---\n")
    with pytest.raises(ValueError, match=r'doesn.t take the card of me/new: .*"base_model" with value "/home/me'):
        commit(folder)
    assert set(hub.repositories["me/new"]) == {".gitattributes"}
    hub.expected_problems = ['"base_model" with value "/home/me/runs" is not valid']
