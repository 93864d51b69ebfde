from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from sacvit_deploy.errors import ExportError
from sacvit_deploy.exporters.passes import run_passes
from sacvit_deploy.exporters.passes.fold_normalisation import fold_normalisation
from sacvit_deploy.spec import Preprocessing
from tests.exporters.graphs import FLOAT, X, Y, contract, doubled, run_model, small_model

if TYPE_CHECKING:
    import onnx

    from sacvit_deploy.spec import GraphSpec


PREPROCESSING = Preprocessing((8, 8), mean=(0.1, 0.5, 0.7), std=(0.2, 0.3, 0.9))


def convolved(
    *, bias: bool, count: int = 1, padding: int = 0
) -> tuple[onnx.ModelProto, GraphSpec, GraphSpec]:
    """Patches of 4x4; the weight is read a second time, as a renamed copy may be."""
    side = (8 + 2 * padding) // 4
    image = {"image": (FLOAT, ("batch", 3, 8, 8))}
    pixels = {"image": (TensorProto.UINT8, ("batch", 3, 8, 8))}
    outputs = {"patches": (FLOAT, ("batch", 6, side, side)), "weight_sum": (FLOAT, ())}
    generator = np.random.default_rng(0)
    constants = {"weight": generator.normal(size=(6, 3, 4, 4)).astype(np.float32)}
    if bias:
        constants["bias"] = generator.normal(size=6).astype(np.float32)
    names = [f"part{i}" for i in range(count)]
    shape: dict[str, Any] = {"strides": [4, 4], "pads": [padding] * 4}
    nodes = [
        helper.make_node("Conv", ["image", *constants], [name], name=name, **shape)
        for name in names
    ]
    nodes += [
        helper.make_node("Sum", names, ["patches"]),
        helper.make_node("ReduceSum", ["weight"], ["weight_sum"], keepdims=0),
    ]
    made = small_model(nodes, image, outputs, constants)
    return made, contract(image, outputs), contract(pixels, outputs)


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_pixels_give_what_the_normalised_picture_gave(bias, padding):
    before, _, spec = convolved(bias=bias, padding=padding)
    after, changed = run_passes(before, spec, [fold_normalisation(PREPROCESSING)])
    assert changed == {"fold_normalisation": 1}
    pixels = np.random.default_rng(1).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)
    mean, std = (np.reshape(v, (3, 1, 1)) for v in (PREPROCESSING.mean, PREPROCESSING.std))
    image = ((pixels / 255 - mean) / std).astype(np.float32)
    found, wanted = run_model(after, image=pixels), run_model(before, image=image)
    np.testing.assert_allclose(found[0], wanted[0], rtol=0, atol=2e-5)
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-6)


@pytest.mark.parametrize("count", [0, 2])
def test_pixels_need_exactly_one_convolution(count):
    if count:
        before, spec, _ = convolved(bias=True, count=count)
    else:
        before, spec = doubled(), contract(X, Y)
    with pytest.raises(ExportError, match=f"has {count}\\."):
        run_passes(before, spec, [fold_normalisation(PREPROCESSING)])
