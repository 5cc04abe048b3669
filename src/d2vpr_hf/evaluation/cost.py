"""What a model costs: parameters, multiply-accumulates, bytes and milliseconds, counted and measured alike for all."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ..models.cricavpr.modeling_cricavpr import CricaVprModel
from ..models.d2vpr.modeling_d2vpr import D2VprModel
from ..models.d2vpr.shortening_d2vpr import D2VprHead
from ..retrieval.embedder import DTYPES, default_device

# What a batch of one is timed on in each round: short runs scatter more than long ones.
_SHORT_RUNS = 4
# The original makes its offset map anew for each region.
ORIGINAL_OFFSET_PASSES = 13


@dataclass(frozen=True)
class ModelCost:
    """What one photo costs a model, counted.

    Attributes:
        parameters: numbers that training may change; buffers such as a PCA are none.
        gmacs: billions of multiply-accumulates of all matrix products and convolutions, attention's included.
        height, width: pixels of the photo that this is for.
        descriptor_dim: numbers in a descriptor.
        descriptor_bytes: of one descriptor in float32.
        weight_bytes: of all that a checkpoint of the model holds, parameters and buffers, in their own precision.
    """

    parameters: int
    gmacs: float
    height: int
    width: int
    descriptor_dim: int
    descriptor_bytes: int
    weight_bytes: int

    def to_json(self) -> dict[str, int | float]:
        """All figures, unrounded."""
        return asdict(self)


@dataclass(frozen=True)
class OriginalCount:
    """Multiply-accumulates of a photo as the original code does and as two kinds of counter see them.

    Attributes:
        gmacs: of all matrix products and convolutions, attention's included.
        layer_gmacs: of linear and convolution layers alone. Counters that look at layers see neither the products
            within attention nor the projections that torch's `nn.MultiheadAttention` keeps to itself.
    """

    gmacs: float
    layer_gmacs: float


@dataclass
class _Count:
    """What a run without numbers shows: multiply-accumulates, those of layers, and the descriptor's length."""

    counter: FlopCounterMode
    layer_macs: int
    descriptor_dim: int

    @property
    def macs(self) -> int:
        return self.counter.get_total_flops() // 2

    def of_part(self, name: str) -> int:
        """Multiply-accumulates within a module, by its name in the model."""
        parts = self.counter.get_flop_counts()
        (found,) = [counts for part, counts in parts.items() if part.partition(".")[2] == name]
        return sum(found.values()) // 2


def model_cost(model: nn.Module, *, height: int = 224, width: int = 224) -> ModelCost:
    """What a photo costs a model, counted exactly and without computing: shapes alone run through it.

    Args:
        model: gives descriptors as `pooler_output`; on any device, the meta device too.
        height, width: pixels of the photo, multiples of the patch size.
    """
    count = _count(model, height, width)
    return ModelCost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        gmacs=count.macs / 1e9,
        height=height,
        width=width,
        descriptor_dim=count.descriptor_dim,
        descriptor_bytes=4 * count.descriptor_dim,
        weight_bytes=sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()),
    )


def original_count(model: D2VprModel | CricaVprModel, *, height: int = 224, width: int = 224) -> OriginalCount:
    """What a photo costs the original code of a model, counted.

    D2-VPR's makes the whole offset map once for each of its 13 regions, where this one makes the part that is read,
    once. Both originals pool by means, where these do by products. All else is the same.

    Args:
        model: without a PCA; on any device, the meta device too.
        height, width: pixels of the photo, multiples of the patch size.
    """
    count = _count(model, height, width)
    macs, layer_macs = count.macs, count.layer_macs
    if isinstance(model, D2VprModel):
        sampler, patch = model.aggregator.regions, model.config.backbone_config.patch_size
        weights = sampler.offset_in.weight.numel() + sampler.offset_out.weight.numel()
        offset_maps = ORIGINAL_OFFSET_PASSES * (height // patch) * (width // patch) * weights
        macs += offset_maps - count.of_part("aggregator.regions")
        layer_macs += offset_maps - count.of_part("aggregator.regions.offset_out")
    else:
        macs -= count.of_part("pool")
    return OriginalCount(macs / 1e9, layer_macs / 1e9)


def time_models(
    models: Mapping[str, nn.Module],
    batch_sizes: Sequence[int] = (1, 32),
    *,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    rounds: int = 4,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    progress: bool = True,
) -> dict[str, dict[int, float]]:
    """Median milliseconds a photo takes each model, from ready pixels to descriptors in memory.

    All models are measured in turns within each round, so that a machine that gets slower does so for all of them. The
    first round warms up and isn't counted. Pixels are noise: neither they nor the weights decide the time.

    Args:
        models: {name: model}, each gives descriptors as `pooler_output`. Modes and devices are put back afterwards.
        batch_sizes: photos at a time.
        sizes: {name: (height, width)} in pixels; 224 x 224 for a model without.
        rounds: how many count.
        device: where the models run; by default where the first is, or the first GPU for a model on the CPU.
        dtype: "float32", "bfloat16" or "float16", as in `embed_images`.
        progress: whether to show a bar on stderr.

    Returns: {name: {batch size: milliseconds a photo}}.
    """
    first = next(iter(models.values()))
    where = torch.device(device) if device is not None else default_device(next(first.parameters()).device)
    sizes = {name: (sizes or {}).get(name, (224, 224)) for name in models}
    cells = [(name, batch) for name in models for batch in batch_sizes]
    found: dict[tuple[str, int], list[float]] = {cell: [] for cell in cells}
    bar = tqdm(total=(rounds + 1) * len(cells), desc="timing", unit="run", disable=not progress)
    with bar, _evaluating(models.values(), where):
        for number in range(rounds + 1):
            for name, batch in cells:
                pixels = torch.randn(batch, 3, *sizes[name], generator=torch.Generator().manual_seed(0)).to(where)
                for _ in range(max(1, _SHORT_RUNS // batch)):
                    milliseconds = 1000 * _seconds(models[name], pixels, dtype) / batch
                    if number:
                        found[name, batch].append(milliseconds)
                bar.update()
    return {name: {batch: median(found[name, batch]) for batch in batch_sizes} for name in models}


def _seconds(model: nn.Module, pixels: torch.Tensor, dtype: str) -> float:
    started = time.perf_counter()
    with torch.inference_mode(), torch.autocast(pixels.device.type, DTYPES[dtype], enabled=dtype != "float32"):
        model(pixels).pooler_output.cpu()  # which waits for a device of its own
    return time.perf_counter() - started


@contextmanager
def _evaluating(models: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """The models in evaluation mode on the device; their modes and devices are put back afterwards."""
    before = [(model, next(model.parameters()).device) for model in models]
    training = [module for model in models for module in model.modules() if module.training]
    try:
        for model, _ in before:
            model.eval().to(device)
        yield
    finally:
        for model, place in before:
            model.to(place)
        for module in training:
            module.training = True


def _count(model: nn.Module, height: int, width: int) -> _Count:
    """Runs one photo's shapes through the model."""
    layer_macs = 0

    def add(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        nonlocal layer_macs
        layer_macs += output.numel() * module.weight[0].numel()

    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d | D2VprHead)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    try:
        # Tensors that say they are on the CPU and hold nothing: autocast and the like know no meta device.
        with FakeTensorMode(allow_non_fake_inputs=True):
            state = {
                name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                for name, tensor in [*model.named_parameters(), *model.named_buffers()]
            }
            weights = next(model.parameters())
            pixels = torch.empty(1, 3, height, width, dtype=weights.dtype, device="cpu")
            # Fused attention counts as nothing, so the count runs on the plain one.
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                descriptor = functional_call(model, state, (pixels,)).pooler_output
    finally:
        for hook in hooks:
            hook.remove()
    return _Count(counter, layer_macs, descriptor.shape[-1])
