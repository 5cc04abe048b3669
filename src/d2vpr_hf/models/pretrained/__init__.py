"""The trained checkpoints that come with the package, each in a folder of its name."""

from pathlib import Path

DEFAULT_PRETRAINED = "d2vpr-small"
_FOLDER = Path(__file__).parent


def pretrained_names() -> list[str]:
    """Names of the checkpoints that this installation carries, sorted."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/config.json"))


def pretrained_path(name: str = DEFAULT_PRETRAINED) -> Path:
    """Folder of a checkpoint that comes with the package; `AutoModel` and `AutoImageProcessor` open it.

    It also holds its card, its evaluations and how it was trained. To change anything, copy it first.

    Raises: ValueError if no checkpoint of that name comes with the package.
    """
    if name not in (known := pretrained_names()):
        raise ValueError(
            f"The package has no checkpoint {name!r}; it has {', '.join(known) or 'none'}. Give one of these names, or "
            "the folder of a checkpoint of your own to `AutoModel.from_pretrained`."
        )
    return _FOLDER / name
