"""Writes a model as an ONNX graph, and lets it take its place once ONNX Runtime gives the model's descriptors."""

import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..files import check_free, hash_file, replace_file, replacing_folder
from ..models.d2vpr.modeling_d2vpr import D2VprPreTrainedModel
from ..photos.folder import list_images
from ..photos.images import UnreadableImage, open_image
from ..retrieval.embedder import Embedder, processor_settings
from ..town.make import make_town
from ..version import __version__

if TYPE_CHECKING:
    import onnx

FORMAT, FORMAT_VERSION = "d2vpr_hf export", 1
GRAPH, PROCESSOR, RECORD = "model.onnx", "preprocessor_config.json", "export.json"
INPUT, OUTPUT = "pixel_values", "descriptor"
OPSET = 18
# Length of the difference of two descriptors, as a share of the model's descriptor's.
ERROR_LIMIT = 1e-5
# The graph beside the weights takes some hundred kilobytes, whatever their size.
SIZE_LIMIT, GRAPH_BYTES = 1.05, 1 << 20
# Photos on which the graph is compared, and how many of them at a time: the last batch is a smaller one.
MOST_PHOTOS, BATCH = 48, 5
NEEDED = ("onnx", "onnxscript", "onnxruntime")
# With 2.6 exporting fails; none between was tried.
TORCH_NEEDED = "2.13"


class _DescriptorAlone(nn.Module):
    """The model with its descriptor as the only output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).pooler_output


def export_model(
    embedder: Embedder, out: str | Path, *, size: int | None = None, calibration: str | Path | None = None
) -> dict[str, Any]:
    """Writes a folder with the model as an ONNX graph (float32), its processor's settings, and what it was made of.

        embedder = d2vpr_hf.Embedder.from_pretrained("d2vpr-small")
        d2vpr_hf.export_model(embedder, "small_onnx")

    The graph takes any number of images at a time, all of one size, and is compared with the model on photos before
    the folder takes its place.

    Args:
        embedder: the model, in float32, and its processor.
        out: the folder to make; it must not exist yet, or be empty.
        size: height and width of the images in pixels, a multiple of the patch size; by default the processor's.
        calibration: a folder of photos to compare on, of which at most 48 are taken; by default a town is drawn.

    Returns: what export.json holds.

    Raises: ImportError naming what isn't installed; FileExistsError if the folder exists and isn't empty; ValueError if
        the model can't be exported, or the graph isn't valid, too large, or not equal to the model within 1e-5.
    """
    check_installed()
    check_free(out)
    _check_model(embedder)
    processor = _sized(embedder.processor, size)
    height, width = processor.size["height"], processor.size["width"]
    # A copy: the model may be in training mode, or on another device.
    model = _DescriptorAlone(deepcopy(embedder.model).cpu()).eval()
    with torch.inference_mode():
        model(torch.zeros(1, 3, height, width))  # which says it plainly if it can't take this size
    with replacing_folder(out) as draft, _photos(calibration) as photos:
        import onnx

        graph = _graph(model, height, width)
        onnx.save(graph, draft / GRAPH)
        _check_graph(draft / GRAPH, model)
        measured = _compare(draft / GRAPH, model, _pixels(photos, processor))
        measured["photos_from"] = "a drawn town" if calibration is None else "a folder of photos"
        replace_file(draft / PROCESSOR, processor.to_json_string())
        record = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "graph": GRAPH,
            "graph_bytes": (draft / GRAPH).stat().st_size,
            "graph_sha256": hash_file(draft / GRAPH),
            "precision": "fp32",
            "opset": OPSET,
            "input": {"name": INPUT, "type": "float32", "shape": ["batch", 3, height, width]},
            "output": {"name": OUTPUT, "type": "float32", "shape": ["batch", embedder.descriptor_dim]},
            "size": {"height": height, "width": width},
            "model_name": embedder.name,
            "weight_hash": embedder.weight_hash,
            "processor": processor_settings(processor),
            "versions": {"d2vpr_hf": __version__, "torch": str(torch.__version__)}
            | {name: version(name) for name in NEEDED},
            "measured": measured,
        }
        replace_file(draft / RECORD, json.dumps(record, indent=2) + "\n")
    return record


def check_installed() -> None:
    """Raises: ImportError with the install command if a package that exporting needs isn't there, or is too old."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ImportError(
            f"exporting to ONNX needs {', '.join(missing)}, which isn't installed. Install it: "
            "pip install 'd2vpr-hf[onnx]'."
        )
    if torch.__version__ < TORCH_NEEDED:
        raise ImportError(
            f"exporting to ONNX needs torch {TORCH_NEEDED} or newer, and this is {torch.__version__}. Install it: pip "
            f"install 'torch>={TORCH_NEEDED}'."
        )


def _check_model(embedder: Embedder) -> None:
    model, name = embedder.model, embedder.name
    if not isinstance(model, D2VprPreTrainedModel):
        raise ValueError(
            f"{name} is a {type(model).__name__}, but a D2VprModel or CricaVprModel alone can be exported. Give the "
            "model inside, before it is compiled; merge an adapter of peft by merge_and_unload()."
        )
    if model.config.cross_image_encoder:
        raise ValueError(
            f"{name} has a cross-image encoder, with which a photo's descriptor depends on the others of its batch, so "
            "it can't be exported. Load the model without it, by AutoModel.from_pretrained(..., "
            "cross_image_encoder=False), save it by save_pretrained beside its processor, and export that."
        )
    if others := {tensor.dtype for tensor in model.parameters()} - {torch.float32}:
        raise ValueError(
            f"{name} has weights of type {', '.join(sorted(map(str, others)))}, but float32 alone can be exported. "
            "Load it with dtype=torch.float32."
        )


def _sized(processor: Any, size: int | None) -> Any:
    """The processor, or one as it is for another size."""
    settings = processor.to_dict()
    own = settings.get("size") or {}
    if not settings.get("do_resize") or not {"height", "width"} <= {key for key, value in own.items() if value}:
        raise ValueError(
            f"the processor (do_resize {settings.get('do_resize')}, size {own}) doesn't bring photos to one height and "
            "width, which the graph needs. Export with a D2VprImageProcessor that has a size."
        )
    chosen = own if size is None else {"height": size, "width": size}
    return type(processor).from_dict({**settings, "size": chosen})


def _graph(model: nn.Module, height: int, width: int) -> "onnx.ModelProto":
    """The ONNX graph, without what tells where and how it was made: paths of this machine are among that."""
    with _quiet():
        program = torch.onnx.export(
            model,
            (torch.zeros(2, 3, height, width),),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch", min=1, max=1024)}},
            opset_version=OPSET,
            verbose=False,
        )
    proto = program.model_proto
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Drops torch's remarks that torchvision isn't there, and its use of what is deprecated in torch itself."""
    remarks = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = remarks.level
    remarks.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        remarks.setLevel(level)


def _check_graph(path: Path, model: nn.Module) -> None:
    import onnx

    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(f"the graph isn't valid ONNX: {error}") from error
    weights = sum(4 * tensor.numel() for tensor in model.state_dict().values() if tensor.is_floating_point())
    if (found := path.stat().st_size) > SIZE_LIMIT * weights + GRAPH_BYTES:
        raise ValueError(
            f"the graph takes {found:,} bytes, more than {SIZE_LIMIT} times the {weights:,} of the weights, so it "
            "holds something besides the model. Please report this."
        )


@contextmanager
def _photos(folder: str | Path | None) -> Iterator[list[Path]]:
    """Paths of the photos to compare on, spread over the folder, or of a small drawn town."""
    if folder is None:
        with tempfile.TemporaryDirectory() as made:
            make_town(made, places=4, views=2, queries=4, easy_queries=0)
            yield list_images(Path(made))
        return
    found = list_images(Path(folder))
    yield found[:: max(1, len(found) // MOST_PHOTOS)]


def _pixels(photos: Iterable[Path], processor: Callable[..., Any]) -> Iterator[torch.Tensor]:
    """Batches of pixel values of the photos that can be read."""

    def readable() -> Iterator[torch.Tensor]:
        for path in photos:
            try:
                image = open_image(path)
            except UnreadableImage:
                continue
            yield processor(image, return_tensors="pt")["pixel_values"][0]

    rows = islice(readable(), MOST_PHOTOS)
    while batch := list(islice(rows, BATCH)):
        yield torch.stack(batch)


def _compare(graph: Path, model: nn.Module, batches: Iterable[torch.Tensor]) -> dict[str, Any]:
    """What the descriptors of ONNX Runtime differ by from the model's.

    Raises: ValueError if no photo could be compared, or the difference is above the limit.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    relative, largest = [], 0.0
    for pixels in batches:
        with torch.inference_mode():
            expected = model(pixels).double().numpy()
        found = session.run([OUTPUT], {INPUT: pixels.numpy()})[0].astype(np.float64)
        difference = found - expected
        relative += (np.linalg.norm(difference, axis=1) / np.linalg.norm(expected, axis=1)).tolist()
        largest = max(largest, float(np.abs(difference).max()))
    if not relative:
        raise ValueError(
            "there is no photo that can be read to compare the graph with the model on. Name a folder of photos, or "
            "leave calibration out."
        )
    error = max(relative)
    if not error <= ERROR_LIMIT:  # so that NaN is too much as well
        raise ValueError(
            f"ONNX Runtime's descriptors differ from the model's by {error:.1e} of their length on photos (limit "
            f"{ERROR_LIMIT:.0e}), so nothing was written. Update onnxruntime and onnxscript, or report this."
        )
    return {"photos": len(relative), "relative_error": error, "largest_difference": largest, "limit": ERROR_LIMIT}
