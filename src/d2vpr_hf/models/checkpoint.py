"""One checkpoint folder: model, processor and the code that loads them, written whole or not at all."""

import os
import tempfile
from pathlib import Path

from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

# What a checkpoint says of how it was trained: {"stages": [...]}, one entry a stage, oldest first.
TRAINING_FILE = "training.json"


def save_checkpoint(folder: str | Path, model: PreTrainedModel, processor: BaseImageProcessor) -> Path:
    """Writes a folder that `AutoModel.from_pretrained` and `AutoImageProcessor.from_pretrained` open.

    It holds config.json, safetensors, preprocessor_config.json and, for models that carry it, the code for
    `trust_remote_code=True`. Everything is written beside the folder and renamed into place.

    Raises: FileExistsError if the folder exists and isn't empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and isn't empty. Remove it, or name another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-", ignore_cleanup_errors=True) as work:
        draft = Path(work) / folder.name
        processor.save_pretrained(draft)
        model.save_pretrained(draft)
        for path in draft.rglob("*"):
            if path.is_file():
                sync(path)
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)
        sync(folder.parent)
    return folder


def sync(path: Path) -> None:
    """Has the system put a file or folder on the disk before anything is renamed over it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
