"""Opens and saves checkpoints: a folder of model, processor and the code that loads them."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..files import replacing_folder
from ..messages import first_few

# {model_type: the class that a configuration of it names}
OUR_MODELS = {"d2vpr": "D2VprModel", "cricavpr": "CricaVprModel"}
DEFAULT_PRETRAINED = "d2vpr-base"
_PRETRAINED = Path(__file__).with_name("pretrained")

# What a checkpoint says of how it was trained: {"stages": [...]}, one entry a stage, oldest first.
TRAINING_FILE = "training.json"
# What a checkpoint says of itself besides: where its data comes from, on what terms, what it is not.
ABOUT_FILE = "about.json"


def open_checkpoint(
    name_or_path: str | Path,
    dim: int | None = None,
    *,
    usual_dim: int | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Model, in evaluation mode, and processor of a checkpoint.

    Args:
        name_or_path: a checkpoint folder, the name of one that comes with the package, or a name on the Hub. A folder
            goes before a checkpoint of the package that has its name.
        dim: numbers in a descriptor, where the checkpoint has a nested head; None: as many as it says itself.
        usual_dim: what None means instead where the nested head has so many, such as an index's.
        trust_remote_code: run the code that the checkpoint brings, which may be of a model that isn't ours.

    Raises: ValueError or OSError if there is no such checkpoint, it can't be opened, or it has no such `dim`.
    """
    name = str(name_or_path)
    where = _checked_place(name)
    try:
        config = read_config(where, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises whatever it stumbles over in a damaged file
        raise _not_opened(name, error) from error
    if config.model_type not in OUR_MODELS and not trust_remote_code:
        raise ValueError(
            f"{name} holds a model of type {config.model_type}, but place descriptors come from "
            f"{' or '.join(OUR_MODELS)} alone. Name another checkpoint."
        )
    chosen = _chosen_dim(name, config, dim, usual_dim)
    try:
        model = AutoModel.from_pretrained(where, trust_remote_code=trust_remote_code, **chosen).eval()
        if problems := impossible_numbers(model.state_dict()):
            raise ValueError(f"its weights hold {first_few(problems, 3)}. Restore the file.")
        return model, AutoImageProcessor.from_pretrained(where, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise _not_opened(name, error) from error


def read_config(name_or_path: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of any checkpoint of transformers.

    Raises: OSError or ValueError as `AutoConfig`; ValueError if it names code on the Hub that computes attention.
    """
    config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    if not trust_remote_code and "/" in str(config._attn_implementation):
        raise ValueError(
            f"The configuration of {name_or_path} asks for the attention {config._attn_implementation!r}, which is "
            "code on the Hub and isn't loaded. Take that out of its config.json."
        )
    return config


def impossible_numbers(state: Mapping[str, torch.Tensor]) -> list[str]:
    """What no trained model holds, one line a tensor: numbers that float32 can't hold, variances below 0."""
    problems = []
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            problems.append(f"NaN or infinite float32 numbers: {name}")
        elif name.endswith("running_var") and (tensor < 0).any():
            problems.append(f"a variance below 0: {name}")
    return problems


def pretrained_names() -> list[str]:
    """Names of the checkpoints that this installation carries, sorted."""
    return sorted(path.parent.name for path in _PRETRAINED.glob("*/config.json"))


def pretrained_path(name: str = DEFAULT_PRETRAINED) -> Path:
    """Folder of a checkpoint that comes with the package; `AutoModel` and `AutoImageProcessor` open it.

    It also holds its evaluations and how it was trained, but no code: a copy that is to open without the package is
    written by `save_pretrained`.

    Raises: ValueError if no checkpoint of that name comes with the package.
    """
    if name not in (known := pretrained_names()):
        raise ValueError(
            f"The package has no checkpoint {name!r}; it has {', '.join(known) or 'none'}. Give one of these names, or "
            "the folder of a checkpoint of your own to `AutoModel.from_pretrained`."
        )
    return _PRETRAINED / name


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
        write_checkpoint(draft, model, processor)
    return folder


def write_checkpoint(folder: Path, model: PreTrainedModel, processor: BaseImageProcessor) -> None:
    """The files of `save_checkpoint`, into a folder that becomes whole by what its caller adds."""
    processor.save_pretrained(folder)
    model.save_pretrained(folder, state_dict=_as_float16(model))


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


def _checked_place(name: str) -> str:
    """What transformers opens the name by; what no checkpoint can be is refused before the network is asked for it."""
    folder = Path(name)
    if folder.is_dir():
        config = folder / "config.json"
        if not config.is_file():
            raise ValueError(
                f"{name} is a folder without config.json, so it holds no checkpoint. Name a checkpoint folder, or make "
                "one: `d2vpr convert original.pth out/`."
            )
        try:
            settings = json.loads(config.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{config} isn't JSON ({error}). Restore the file, or name another checkpoint.") from error
        if not isinstance(settings, dict):
            raise ValueError(
                f"{config} holds a JSON {type(settings).__name__}, but must hold an object. Restore the file, or name "
                "another checkpoint."
            )
        architectures, model_type = settings.get("architectures"), settings.get("model_type")
        for ours, architecture in OUR_MODELS.items():
            if architectures == [architecture] and model_type != ours and str(model_type) in OUR_MODELS:
                raise ValueError(
                    f"{config} says model_type {model_type!r}, but its architecture is {architecture}, which goes with "
                    f"{ours!r}. Restore the file, or name another checkpoint."
                )
        return name
    if folder.exists():
        hint = f" `d2vpr convert {name} out/` makes a folder of it." if folder.suffix in (".pth", ".pt") else ""
        raise ValueError(f"{name} is a file, but a checkpoint is a folder.{hint}")
    if name in (shipped := pretrained_names()):
        return str(pretrained_path(name))
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        left = " `d2vpr demo` leaves its model there;" if name == "d2vpr" else ""
        raise ValueError(
            f"there is no model {name!r} here: no such folder, and a name on the Hub has the form owner/name.{left} "
            f"the package brings {', '.join(shipped) or 'none'}."
        )
    return name


def _chosen_dim(name: str, config: PreTrainedConfig, dim: int | None, usual_dim: int | None) -> dict[str, int]:
    """The argument of `from_pretrained` that gives descriptors of so many numbers; none where they have as many."""
    nested = getattr(config, "nested_dims", None) or ()
    if dim is None and usual_dim in nested:
        dim = usual_dim
    own = getattr(config, "descriptor_dim", None)
    if dim in (None, own):
        return {}
    if dim in nested:
        return {"descriptor_dim": dim}
    if nested:
        raise ValueError(
            f"dim is {dim}, but the descriptors of {name} may have {' or '.join(map(str, nested))} numbers. Give one "
            "of these, or leave it out."
        )
    raise ValueError(
        f"dim is {dim}, but the descriptors of {name} have {own} numbers and no other choice: it has no nested head. "
        "Leave it out; `d2vpr reduce`, or `d2vpr train` with nested_dims, makes a checkpoint with fewer."
    )


def _not_opened(name: str, error: Exception) -> ValueError:
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, (OSError, ValueError, RuntimeError)):
        text = f"{text} ({type(error).__name__})"
    text = text if len(text) < 300 else f"{text[:300]} ..."
    return ValueError(f"the checkpoint {name} can't be opened: {text}{'' if text.endswith('.') else '.'}")
