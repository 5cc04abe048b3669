"""What a model is compared with: models of transformers and torch.hub, networks, a thumbnail, random weights, scores.

A peer sees photos prepared by its own processor, in the size it was trained for. What it gives is ranked as it is: by
inner product where descriptors have length 1, else by distance.
"""

import hashlib
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils.generic import ModelOutput

from ..files import path_to_text
from ..retrieval.embedder import Embedder
from .networks import TeacherNetwork, call_factory, is_factory
from .protocol import Protocol, database_names
from .results import Evaluation
from .run import DEFAULT_KS, answers_ranked, checked_ks, scored

Pooling = Literal["pooler", "mean"]

NETWORK_SIDE = 224
GEM_POWER = 3
RANDOM_SEED = 0
THUMBNAIL_SIDE = 16


class Peer(typing.Protocol):
    """What the runner asks of a model; a `torch.nn.Module` that has these three is one.

    Attributes:
        name: for tables.
        processor: called as `processor(image, return_tensors="pt")` for a PIL image; gives `pixel_values`.
    """

    name: str
    processor: Callable[..., Any]

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Descriptors (images, dim) of prepared images (images, 3, height, width)."""


class PeerModel(torch.nn.Module):
    """A peer as the runner takes models: its descriptors are `pooler_output`.

    Of a peer that is a module, weights and device are the runner's to hash and to move. Of any other the name, and
    `version` if it has one, stand for its weights.
    """

    def __init__(self, peer: Peer) -> None:
        super().__init__()
        self.peer = peer
        self.name_or_path = peer.name
        told_apart_by = f"{peer.name} {getattr(peer, 'version', '')}".encode()
        digest = np.frombuffer(hashlib.sha256(told_apart_by).digest(), np.uint8).copy()
        self.register_buffer("peer_name_sha256", torch.from_numpy(digest))

    def forward(self, pixel_values: torch.Tensor) -> ModelOutput:
        return ModelOutput(pooler_output=self.peer.encode(pixel_values))


class TransformersPeer(torch.nn.Module):
    """An image model of transformers whose pooled output, divided by its length, is the descriptor.

    Args:
        name: for tables.
        model: any that takes `pixel_values`.
        processor: its image processor.
        pooling: "pooler" takes the model's own pooled output (DINOv2's and ViT's class token, ResNet's and ConvNeXt's
            mean, CLIP's and SigLIP's image features); "mean" averages the last hidden state over tokens or pixels.
    """

    def __init__(self, name: str, model: torch.nn.Module, processor: Callable[..., Any], pooling: Pooling) -> None:
        super().__init__()
        self.name = name
        self.model = model
        self.processor = processor
        self.pooling = pooling
        # With the weights, it decides the descriptors.
        self.version = pooling

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        if self.pooling == "pooler" and hasattr(self.model, "get_image_features"):
            output = self.model.get_image_features(pixel_values=images)
        else:
            # Models of images and texts hold the part for images by itself.
            output = getattr(self.model, "vision_model", self.model)(pixel_values=images)
        if isinstance(output, torch.Tensor):
            pooled = output
        elif self.pooling == "mean":
            hidden = output.last_hidden_state
            pooled = hidden.mean(dim=1) if hidden.ndim == 3 else hidden.flatten(2).mean(dim=2)
        else:
            pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            raise ValueError(
                f"{self.name} gives {', '.join(output.keys())}, but no pooler_output. Take pooling='mean', the mean of "
                "its last hidden state."
            )
        return F.normalize(pooled.flatten(1).float(), dim=-1)


class HubPeer(torch.nn.Module):
    """A model from torch.hub that turns images into descriptors, alone or as the first of a tuple.

    Args:
        name: for tables.
        model: the module.
        processor: prepares its images.
    """

    def __init__(self, name: str, model: torch.nn.Module, processor: Callable[..., Any]) -> None:
        super().__init__()
        self.name = name
        self.model = model
        self.processor = processor

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        output = self.model(images)
        return output[0] if isinstance(output, (tuple, list)) else output


class NetworkPeer(torch.nn.Module):
    """A network of any making, as a teacher is: the generalised mean (GeM, power 3) of its map, of length 1.

    Args:
        network: gives the map.
        side: pixels of the square that photos are squashed to.
    """

    def __init__(self, network: TeacherNetwork, side: int = NETWORK_SIDE) -> None:
        super().__init__()
        self.name = f"{network.name} GeM {side} px"
        self.network = network
        self.processor = SquashProcessor(side, side)
        self.version = f"GeM {GEM_POWER} {getattr(network, 'version', '')}"

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        local = self.network.feature_map(images).float().clamp(min=1e-6)  # (images, width, rows, columns)
        return F.normalize(local.pow(GEM_POWER).mean(dim=(2, 3)).pow(1 / GEM_POWER), dim=-1)


class SquashProcessor:
    """Squashes photos to one size, or keeps theirs, and normalises them by ImageNet's statistics.

    Args:
        height, width: pixels; None keeps each photo's own.
        resample: of PIL's filters, the one that resizes.
    """

    def __init__(
        self, height: int | None, width: int | None, resample: Image.Resampling = Image.Resampling.BILINEAR
    ) -> None:
        self.size = {"height": height, "width": width}
        self.resample = resample

    def __call__(self, image: Image.Image, return_tensors: str, do_resize: bool = True) -> dict[str, torch.Tensor]:
        height, width = self.size["height"], self.size["width"]
        if do_resize and height and width:
            image = image.resize((width, height), self.resample)
        pixels = np.array(image.convert("RGB"), np.float32) / 255
        pixels = (pixels - np.float32(IMAGENET_DEFAULT_MEAN)) / np.float32(IMAGENET_DEFAULT_STD)
        return {"pixel_values": torch.from_numpy(pixels).permute(2, 0, 1)[None]}

    def to_dict(self) -> dict[str, Any]:
        """The settings, by which descriptors kept on disk are told apart."""
        return {"processor": type(self).__name__, "size": self.size, "resample": int(self.resample)}


class ThumbnailProcessor:
    """Makes `pixel_values` (1, 1, 16, 16): grey, of mean 0 and length 1."""

    def __init__(self) -> None:
        self.size = {"height": THUMBNAIL_SIDE, "width": THUMBNAIL_SIDE}

    def __call__(self, image: Image.Image, return_tensors: str, do_resize: bool = True) -> dict[str, torch.Tensor]:
        small = image.convert("L").resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
        pixels = np.asarray(small, np.float32)
        pixels = pixels - pixels.mean()
        length = np.linalg.norm(pixels)
        # A photo of one grey has length 1 too, and is at right angles to every other thumbnail.
        pixels = pixels / length if length > 1e-3 else np.full_like(pixels, 1 / THUMBNAIL_SIDE)
        return {"pixel_values": torch.from_numpy(pixels)[None, None]}

    def to_dict(self) -> dict[str, Any]:
        """The settings, by which descriptors kept on disk are told apart."""
        return {"processor": type(self).__name__, "size": self.size}


class ThumbnailPeer:
    """A grey thumbnail as a descriptor: what any place descriptor has to beat."""

    name = "thumbnail"

    def __init__(self) -> None:
        self.processor = ThumbnailProcessor()

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(images, 256) of thumbnails (images, 1, 16, 16)."""
        return images.flatten(1)


@dataclass(frozen=True)
class HubEntry:
    """Where torch.hub finds a model, and how its authors prepare photos.

    Attributes:
        repository: owner/name on GitHub.
        entry: function in its hubconf.py.
        options: what the function is called with.
        side: pixels of the square that photos are squashed to; None keeps their size.
        resample: PIL's filter.
    """

    repository: str
    entry: str
    options: Mapping[str, Any] = field(default_factory=dict)
    side: int | None = None
    resample: Image.Resampling = Image.Resampling.BILINEAR


# Names, options and sizes as the authors' pages give them.
HUB_PEERS: dict[str, HubEntry] = {
    "salad": HubEntry("serizba/salad", "dinov2_salad", side=322),
    "boq-dinov2": HubEntry(
        "amaralibey/bag-of-queries",
        "get_trained_boq",
        {"backbone_name": "dinov2", "output_dim": 12288},
        322,
        Image.Resampling.BICUBIC,
    ),
    "boq-resnet50": HubEntry(
        "amaralibey/bag-of-queries",
        "get_trained_boq",
        {"backbone_name": "resnet50", "output_dim": 16384},
        384,
        Image.Resampling.BICUBIC,
    ),
    "megaloc": HubEntry("gmberton/MegaLoc", "get_trained_model", side=322),
    "cosplace": HubEntry("gmberton/cosplace", "get_trained_model", {"backbone": "ResNet50", "fc_output_dim": 2048}),
    "eigenplaces": HubEntry(
        "gmberton/eigenplaces", "get_trained_model", {"backbone": "ResNet50", "fc_output_dim": 2048}
    ),
}


def open_peer(name: str, *, pooling: Pooling = "pooler", trust_remote_code: bool = False, **settings: Any) -> Embedder:
    """The embedder of a peer, by its name.

    Args:
        name: "hf:NAME" for an image model of transformers (a name on the Hub or a folder); "thumbnail"; one of
            `HUB_PEERS`; or "module.path:factory" for a function that returns a network as the trainer's teachers are
            (see `NetworkPeer`), at 224 px or, as "module.path:factory@160", at another size.
        pooling: of a model of transformers (see `TransformersPeer`).
        trust_remote_code: whether code that comes with the model may run here. Every model of torch.hub is such code.
        settings: how it runs, as `Embedder` takes them.

    Raises: ValueError for an unknown name, a function that can't be found or returns no network, or a torch.hub model
        without `trust_remote_code`.
    """
    if name.startswith("hf:"):
        peer = transformers_peer(name.removeprefix("hf:"), pooling=pooling, trust_remote_code=trust_remote_code)
    elif name == "thumbnail":
        peer = ThumbnailPeer()
    elif is_network(name):
        factory, _, side = name.partition("@")
        peer = NetworkPeer(call_factory(factory, "peer"), int(side or NETWORK_SIDE))
    elif name not in HUB_PEERS:
        raise ValueError(
            f"{name!r} isn't a known peer. Known are thumbnail, {', '.join(HUB_PEERS)}, hf:NAME for any image model of "
            "transformers, such as hf:facebook/dinov2-small, and module.path:factory for a network of your own."
        )
    elif not trust_remote_code:
        raise ValueError(
            f"{name} is code of github.com/{HUB_PEERS[name].repository} that torch.hub downloads and runs on this "
            "machine. Read it, then give trust_remote_code=True (--trust-remote-code)."
        )
    else:
        peer = hub_peer(name, HUB_PEERS[name])
    return peer_embedder(peer, **settings)


def peer_embedder(peer: Peer, **settings: Any) -> Embedder:
    """The embedder of a peer; `settings` say how it runs, as `Embedder` takes them."""
    return Embedder(PeerModel(peer), peer.processor, **settings)


def is_network(name: str) -> bool:
    """Whether a name has the form "module.path:factory" or "module.path:factory@SIDE"."""
    factory, at, side = name.partition("@")
    return is_factory(factory) and (not at or (side.isdecimal() and int(side) > 0))


def random_weights(model: PreTrainedModel, seed: int = RANDOM_SEED) -> PreTrainedModel:
    """A model of the same configuration with random weights, the same ones every time; without a PCA, which is fitted.

    Args:
        model: of this package; it stays as it is.
        seed: of the weights.
    """
    fields = model.config.to_dict()
    if fields.get("pca_source") is not None:
        fields |= {"pca_source": None, "descriptor_dim": None}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        twin = type(model)(type(model.config).from_dict(fields))
    twin.name_or_path = f"random weights (seed {seed})"
    return twin.eval()


def transformers_peer(name_or_path: str, *, pooling: Pooling = "pooler", trust_remote_code: bool = False) -> Peer:
    """An image model of transformers with its processor, by its name on the Hub or its folder."""
    from transformers import AutoImageProcessor, AutoModel

    from ..models.checkpoint import read_config

    read_config(name_or_path, trust_remote_code=trust_remote_code)
    processor = AutoImageProcessor.from_pretrained(name_or_path, backend="pil", trust_remote_code=trust_remote_code)
    model = AutoModel.from_pretrained(name_or_path, trust_remote_code=trust_remote_code).eval()
    return TransformersPeer(name_or_path, model, processor, pooling)


def hub_peer(name: str, entry: HubEntry, *, source: Literal["github", "local"] = "github") -> Peer:
    """A model from torch.hub: its code is downloaded and run.

    Args:
        name: for tables.
        entry: where it is and how photos are prepared.
        source: "local" takes `entry.repository` as a folder with a hubconf.py.
    """
    trusted = {} if source == "local" else {"trust_repo": True}
    model = torch.hub.load(entry.repository, entry.entry, source=source, **trusted, **entry.options).eval()
    return HubPeer(name, model, SquashProcessor(entry.side, entry.side, entry.resample))


def read_scores(address: str) -> np.ndarray:
    """(queries, database) of an .npz or .npy file of numbers.

    Args:
        address: "FILE.npz#NAME" for one array of several, or the file alone where it holds one.

    Raises: FileNotFoundError; ValueError if the file holds no such array.
    """
    file, _, name = address.partition("#")
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path_to_text(path)} isn't there, but scores are read from it. Give them as FILE.npz#NAME or FILE.npy."
        )
    try:
        content = np.load(path, allow_pickle=False)
        arrays = content if isinstance(content, np.lib.npyio.NpzFile) else {name: content}
        wanted = name or (next(iter(arrays)) if len(arrays) == 1 else "")
        scores = arrays.get(wanted)
    except Exception as error:  # NumPy has a dozen kinds for what isn't an array
        raise ValueError(
            f"{path_to_text(path)} can't be read as numbers ({type(error).__name__}: {error}). Give a .npy or .npz "
            "file of scores (queries, database)."
        ) from error
    if not isinstance(scores, np.ndarray):
        raise ValueError(
            f"{path_to_text(path)} holds {', '.join(arrays)}, but {name or 'no name'} is asked for. Name one of them: "
            f"{path_to_text(path)}#{next(iter(arrays), 'NAME')}."
        )
    return scores


def evaluate_scores(protocol: Protocol, scores: np.ndarray, *, name: str, ks: Sequence[int] = DEFAULT_KS) -> Evaluation:
    """What a matrix of scores gives on a protocol, ranked as a model's scores are.

    Args:
        protocol: with labels or without.
        scores: (queries, database) in the protocol's order, the higher the more alike. Of equal scores the lower row
            comes first.
        name: for tables.
        ks: cut-offs of recall@k.

    Raises: ValueError if the matrix has another shape or holds something that isn't a finite number.
    """
    names, ks, scores = database_names(protocol.database), checked_ks(ks), np.asarray(scores)
    expected = (len(protocol.queries.paths), len(names))
    if scores.shape != expected or scores.dtype.kind not in "fiu" or not np.isfinite(scores).all():
        raise ValueError(
            f"{name} has scores of shape {scores.shape} and type {scores.dtype}, but {protocol.name} needs {expected} "
            "(queries, database) finite numbers. Give those of this protocol, in the order of its photos."
        )
    ranking = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, : answers_ranked(protocol, ks)]
    return scored(
        protocol,
        np.take_along_axis(scores, ranking, axis=1).astype(np.float32),
        ranking,
        model=(name, hashlib.sha256(np.ascontiguousarray(scores).tobytes()).hexdigest()),
        settings={
            "k": ks,
            "query_method": "given scores",
            "metric": "given scores",
            "batch_size": None,
            "batch_rule": "scores as given, from no photo",
            "dtype": str(scores.dtype),
            "device": None,
            "dim": None,
            "image_size": None,
        },
    )
