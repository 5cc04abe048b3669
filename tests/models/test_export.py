"""An exported model takes any batch, and any height and width where these are left open."""

import pytest
import torch
from made_models import model_of
from packaging.version import Version
from torch.export import Dim, export

from d2vpr_hf.models.d2vpr.backbone_d2vpr import cubic_taps

BATCH, ROWS, COLUMNS = Dim("batch", min=1, max=64), Dim("rows", min=3, max=60), Dim("columns", min=3, max=60)
ANY_SIZE = {"pixel_values": {0: BATCH, 2: 14 * ROWS, 3: 14 * COLUMNS}}
# The position table's own size among them, and sizes of which one side is the table's.
SIZES = [(2, 56, 56), (1, 84, 98), (3, 56, 140), (1, 154, 42)]
pytestmark = pytest.mark.filterwarnings("ignore:The cross-image encoder is on")


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.13"), reason="torch 2.6 fails in exporting, and none between was tried"
)
@pytest.mark.parametrize(("kind", "strict"), [("plain", True), ("teacher", False), ("encoder", False)])
def test_an_exported_model_takes_any_batch(kind, strict):
    model, images = model_of(kind), torch.randn(3, 3, 56, 84)
    exported = export(model, (images,), dynamic_shapes={"pixel_values": {0: BATCH}}, strict=strict)
    for count in (1, 2, 5):
        images = torch.randn(count, 3, 56, 84)
        torch.testing.assert_close(exported.module()(images).pooler_output, model(images).pooler_output)


@pytest.mark.parametrize("kind", ["plain", "centred"])
def test_an_exported_model_takes_any_size(kind):
    model = model_of(kind)
    exported = export(model, (torch.randn(2, 3, 84, 98),), dynamic_shapes=ANY_SIZE, strict=False)
    for size in SIZES:
        images = torch.randn(size[0], 3, *size[1:])
        torch.testing.assert_close(exported.module()(images).pooler_output, model(images).pooler_output)


def test_onnx_takes_any_batch_and_size(tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name}, which isn't a dependency, isn't installed")
    import onnxruntime

    model, file = model_of("centred"), tmp_path / "model.onnx"
    torch.onnx.export(model, (torch.randn(2, 3, 84, 98),), file, dynamo=True, dynamic_shapes=ANY_SIZE)
    session = onnxruntime.InferenceSession(file)
    for size in SIZES:
        images = torch.randn(size[0], 3, *size[1:])
        found = torch.from_numpy(session.run(None, {"pixel_values": images.numpy()})[1])
        torch.testing.assert_close(found, model(images).pooler_output.detach(), rtol=0, atol=1e-5)


def test_bicubic_taps_are_torchs():
    table = torch.randn(1, 1, 9, 1)
    for count in (3, 9, 14):
        factor = (count + 0.1) / 9
        expected = torch.nn.functional.interpolate(table, scale_factor=(factor, 1.0), mode="bicubic")[0, 0, :, 0]
        taps, weights = cubic_taps(torch.arange(count), torch.tensor(factor))
        torch.testing.assert_close((table[0, 0, taps.clamp(0, 8), 0] * weights).sum(dim=1), expected)
        assert len(expected) == count
