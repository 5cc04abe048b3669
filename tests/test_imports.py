"""The package's imports run one way, down the tree, and every module can be imported on any system."""

import ast
import subprocess
import sys
from pathlib import Path

import d2vpr_hf

PACKAGE = Path(d2vpr_hf.__file__).parent
# From the top down. What stands on one line doesn't know the others of its line.
ORDER = (
    ("cli", "__main__"),
    ("hub", "reports", "export"),
    ("training",),
    ("evaluation",),
    ("protocols",),
    ("retrieval", "panoramas", "town"),
    ("photos",),
    ("models",),
    ("cores", "files", "messages", "version"),
)
LEVEL = {part: level for level, line in enumerate(ORDER) for part in line}
# Systems other than Linux lack these.
UNIX_ONLY = ("fcntl", "resource", "pwd", "grp", "termios")


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below it; "" is the package itself."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The package's modules that a file imports, anywhere in it."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    package = [part for part in package if part]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            dotted = [each.name for each in node.names if each.name.split(".")[0] == "d2vpr_hf"]
            found |= {each.removeprefix("d2vpr_hf").lstrip(".") for each in dotted}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) + 1 - node.level]
            elif node.module and node.module.split(".")[0] == "d2vpr_hf":
                base = []
            else:
                continue
            words = (node.module or "").removeprefix("" if node.level else "d2vpr_hf").split(".")
            target = ".".join([*base, *filter(None, words)])
            below = {f"{target}.{each.name}".lstrip(".") for each in node.names}
            # Of `from package import name`, the package itself counts where name is no module of it.
            found |= (below & known.keys()) or {target}
    return found - {name}


def imports() -> dict[str, set[str]]:
    known = modules()
    return {name: imported(name, path, known) for name, path in known.items()}


def test_imports_run_down_the_tree():
    wrong = []
    for name, targets in imports().items():
        part = name.split(".")[0]
        for target in targets:
            other = target.split(".")[0]
            # The package itself only lists names and registers the models.
            if part in ("", "__main__") or other in (part, ""):
                continue
            if part not in LEVEL or other not in LEVEL or LEVEL[other] <= LEVEL[part]:
                wrong.append(f"{name} imports {target}")
    assert not wrong, "\n".join(sorted(wrong))
    crossings = sum(name.split(".")[0] != each.split(".")[0] for name, targets in imports().items() for each in targets)
    assert crossings > 100  # the walk has seen the package


def test_no_file_is_part_of_a_circle():
    graph = {name: {each for each in targets if each} for name, targets in imports().items() if name}
    left = dict(graph)
    while leaves := {name for name, targets in left.items() if not targets & left.keys()}:
        left = {name: targets for name, targets in left.items() if name not in leaves}
    assert not left, f"these import each other, or a circle of others: {sorted(left)}"


def test_the_models_that_travel_import_nothing_of_ours_outside_their_folder():
    for name, targets in imports().items():
        if name.startswith("models.d2vpr."):
            assert all(target.startswith("models.d2vpr") for target in targets), (name, targets)


def test_every_module_is_imported_where_the_system_is_not_unix():
    # sentence-transformers isn't a dependency; only it imports that module.
    names = [f"d2vpr_hf.{name}".rstrip(".") for name in modules() if "sentence_transformers" not in name]
    # The libraries below choose by the system that they see here; it is our own files that must do without.
    code = (
        "import importlib, sys\n"
        "import accelerate, datasets, faiss, filelock, matplotlib.pyplot, pyproj, scipy.spatial, torch.utils.data\n"
        "import torch.utils.tensorboard, pytorch_metric_learning.losses, psutil, multiprocessing.util\n"
        "from transformers import AutoConfig, AutoImageProcessor, AutoModel, HfArgumentParser, Trainer\n"
        f"for name in {UNIX_ONLY!r}: sys.modules[name] = None\n"
        f"for name in {sorted(names)!r}: importlib.import_module(name)\n"
        "print('all imported')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "all imported"
