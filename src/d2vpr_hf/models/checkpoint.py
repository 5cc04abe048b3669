"""One checkpoint folder: model, processor and the code that loads them, written whole or not at all."""

from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..files import replacing_folder

# What a checkpoint says of how it was trained: {"stages": [...]}, one entry a stage, oldest first.
TRAINING_FILE = "training.json"
# What a checkpoint says of itself besides: where its data comes from, on what terms, what it is not.
ABOUT_FILE = "about.json"


def save_checkpoint(folder: str | Path, model: PreTrainedModel, processor: BaseImageProcessor) -> Path:
    """Writes a folder that `AutoModel.from_pretrained` and `AutoImageProcessor.from_pretrained` open.

    It holds config.json, safetensors, preprocessor_config.json and, for models that carry it, the code for
    `trust_remote_code=True`. Everything is written beside the folder and renamed into place.

    Weights that are float16 numbers throughout, held as float32, take half the space and become float32 again when
    they are loaded.

    Raises: FileExistsError if the folder exists and isn't empty.
    """
    folder = Path(folder)
    with replacing_folder(folder) as draft:
        processor.save_pretrained(draft)
        model.save_pretrained(draft, state_dict=_as_float16(model))
    return folder


def round_to_float16(model: PreTrainedModel) -> None:
    """Rounds every number of a float32 model to the nearest float16 in place, by which its file halves.

    Raises: ValueError if a number is too large for float16; the model is unchanged then.
    """
    rounded = {name: tensor.half() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    if too_large := [name for name, tensor in rounded.items() if not torch.isfinite(tensor).all()]:
        raise ValueError(
            f"{', '.join(too_large)} of the model holds numbers that float16 can't (above 65,504, or none at all). "
            "Keep its weights in float32."
        )
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name in rounded:
                tensor.copy_(rounded[name])


def _as_float16(model: PreTrainedModel) -> dict[str, torch.Tensor] | None:
    """The state dict with float16 in place of float32, if that loses nothing; else None.

    The configuration goes on naming float32, the model's own type, so that nobody computes with halves unasked.
    """
    state = model.state_dict()
    floats = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    halves = {}
    for name, tensor in floats.items():
        halves[name] = tensor.half()
        if tensor.dtype != torch.float32 or not torch.equal(halves[name].float(), tensor):
            return None
    return state | halves
