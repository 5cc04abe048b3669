"""`d2vpr push`: a checkpoint, the metric or an exported protocol goes to the Hugging Face Hub."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import add_json_option, note, open_embedder, print_json
from .parser import CommandParser, UsageError, add_command

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..hub.push import Push

# Options that say something about a model alone.
MODEL_OPTIONS = ("evaluation", "training", "license", "allow_converted", "revision", "dry_run")

DESCRIPTION = """\
Shares a checkpoint on the Hugging Face Hub, as one commit with all that its users need: weights, processor, the code
that loads them, evaluations, and a card made of these.
  d2vpr push d2vpr me/d2vpr-town --evaluation results/results.json --dry-run
  d2vpr push d2vpr me/d2vpr-town --evaluation results/results.json

--dry-run shows the card and sends nothing. A push that failed leaves nothing visible and can be repeated. The metric
(metrics/recall_at_k) and an exported protocol are pushed in the same way: d2vpr push export me/my-protocol."""


def add_parser(subparsers: argparse._SubParsersAction) -> CommandParser:
    parser = add_command(
        subparsers,
        "push",
        run,
        summary="share a checkpoint on the Hugging Face Hub",
        usage="FOLDER OWNER/NAME [options]",
        description=DESCRIPTION,
    )
    group = parser.add_argument_group("what, and where to")
    group.add_argument("folder", metavar="FOLDER", help="a checkpoint, the metric's folder or an exported protocol")
    group.add_argument("repo_id", metavar="OWNER/NAME", help="its name on the Hub; what was pushed before is replaced")
    group.add_argument("--revision", metavar="BRANCH", help="branch to push to, made if need be (default: main)")
    visibility = group.add_mutually_exclusive_group()
    visibility.add_argument(
        "--private", action="store_true", help="only you see it (default: everybody, but a protocol only you)"
    )
    visibility.add_argument("--public", action="store_true", help="everybody sees it, a protocol too")
    group.add_argument("--message", metavar="TEXT", help="of the commit (default: what was pushed)")
    group = parser.add_argument_group("what the card is made of")
    group.add_argument(
        "--evaluation",
        metavar="FILE",
        nargs="*",
        help="results.json of this checkpoint, as `d2vpr evaluate --save` writes it; without a FILE none (default: "
        "those that lie in the checkpoint and are of its weights)",
    )
    group.add_argument(
        "--training", metavar="FILE", help="how it was trained (default: the checkpoint's training.json, if there)"
    )
    group.add_argument(
        "--license", metavar="NAME", help="of the weights, as the Hub names it (default: apache-2.0; none if converted)"
    )
    group = parser.add_argument_group("before anything is sent")
    group.add_argument(
        "--dry-run",
        metavar="DIR",
        nargs="?",
        const="",
        help="write into DIR what would be pushed, show the card and stop (default DIR: FOLDER-push)",
    )
    group.add_argument(
        "--allow-converted",
        action="store_true",
        help="push weights converted from published ones, whose authors gave no licence (default: ask, or refuse)",
    )
    add_json_option(group)
    return parser


def run(options: argparse.Namespace) -> int:
    folder = Path(options.folder)
    if (folder / "config.json").is_file() or not folder.is_dir():
        return _push_checkpoint(options)
    from ..hub.push import is_export, is_metric, push_export, push_metric

    if not (is_export(folder) or is_metric(folder)):
        raise UsageError(
            f"{folder} is neither a checkpoint (config.json), nor the metric (recall_at_k.py), nor an exported "
            "protocol (README.md, data/*.parquet). Name one of these."
        )
    if given := [name for name in MODEL_OPTIONS if getattr(options, name) not in (None, [], False)]:
        raise UsageError(f"--{given[0].replace('_', '-')} is for checkpoints, but {folder} is none. Leave it out.")
    note(f"pushing {folder} to {options.repo_id} ...")
    if is_metric(folder):
        push = push_metric(options.repo_id, folder=folder, private=options.private, message=options.message)
    else:
        push = push_export(folder, options.repo_id, private=not options.public, message=options.message)
    return _report(options, push)


def _push_checkpoint(options: argparse.Namespace) -> int:
    model_options: dict[str, Any] = {
        "evaluations": options.evaluation,
        "training": options.training,
        "license": options.license,
        "revision": options.revision,
    }
    from ..hub.push import check_names, push_model

    # Before the model is loaded, which takes seconds.
    check_names(options.repo_id, options.revision or "main")
    embedder = open_embedder(options.folder)
    model, processor = embedder.model, embedder.processor
    if options.dry_run is not None:
        return _show(options, model, processor, model_options)
    allowed = options.allow_converted or _agreed(model)
    note(f"pushing {options.folder} to {options.repo_id} ...")
    push = push_model(
        model,
        processor,
        options.repo_id,
        allow_converted=allowed,
        private=options.private,
        message=options.message,
        **model_options,
    )
    return _report(options, push)


def _show(options: argparse.Namespace, model: "PreTrainedModel", processor: Any, model_options: dict[str, Any]) -> int:
    """Writes what a push would upload, and prints its card."""
    from ..hub.push import check_may_share
    from ..hub.release import write_release

    target = options.dry_run or f"{Path(options.folder).name}-push"
    folder = write_release(target, model, processor, options.repo_id, **model_options)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    card = (folder / "README.md").read_text(encoding="utf-8")
    try:
        check_may_share(model, options.allow_converted)
    except PermissionError as error:
        note(f"note: without --dry-run this is refused. {error}")
    if options.json:
        print_json({"folder": str(folder), "files": files, "card": card})
        return 0
    print(card)
    note(f"nothing was sent. {folder} holds what would be: {', '.join(files)}")
    return 0


def _agreed(model: "PreTrainedModel") -> bool:
    """Whether somebody at a terminal answers for pushing a converted checkpoint; False where nobody is asked."""
    from ..hub.push import check_may_share

    try:
        check_may_share(model, False)
    except PermissionError as error:
        if not sys.stdin.isatty():
            return False
        note(str(error))
        note("Have its authors agreed, and should it be pushed? [y/N]")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UsageError("nothing was pushed, because the question wasn't answered with yes.") from error
        return True
    return False


def _report(options: argparse.Namespace, push: "Push") -> int:
    if options.json:
        print_json(asdict(push))
        return 0
    print(f"{push.repo_id} ({push.revision}): {len(push.files)} files in commit {push.commit[:12]}")
    if push.replaced:
        print(f"taken away, because this push brings no such file: {', '.join(push.replaced)}")
    print(push.url)
    return 0
