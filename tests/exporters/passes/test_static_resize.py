from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import helper

from sacvit_deploy.exporters.passes import run_passes
from sacvit_deploy.exporters.passes.static_resize import static_resize
from tests.exporters.graphs import FLOAT, contract, op_counts, run_model, small_model

if TYPE_CHECKING:
    import onnx

    from sacvit_deploy.spec import GraphSpec


def resized(height: int, width: int) -> tuple[onnx.ModelProto, GraphSpec]:
    """Half size, the sizes built at run time as the exporter does it."""
    image = {"image": (FLOAT, ("batch", 3, height, width))}
    half = {"half": (FLOAT, ("batch", 3, height // 2, width // 2))}
    nodes = [
        helper.make_node("Shape", ["image"], ["shape"], end=2),
        helper.make_node("Concat", ["shape", "half_size"], ["sizes"], axis=0),
        helper.make_node(
            "Resize",
            ["image", "", "", "sizes"],
            ["half"],
            name="resize",
            mode="linear",
            coordinate_transformation_mode="align_corners",
        ),
    ]
    made = small_model(nodes, image, half, {"half_size": np.array([height // 2, width // 2])})
    return made, contract(image, half)


@pytest.mark.parametrize("size", [(8, 12), (64, 64), (14, 18)])
def test_resize_by_scales_gives_what_resize_by_sizes_gave(size):
    before, spec = resized(*size)
    after, changed = run_passes(before, spec, [static_resize])
    assert changed == {"static_resize": 1}
    assert op_counts(after) == {"Resize": 1}
    image = np.random.default_rng(0).normal(size=(3, 3, *size)).astype(np.float32)
    wanted, found = run_model(before, image=image)[0], run_model(after, image=image)[0]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    assert run_passes(after, spec, [static_resize])[1] == {"static_resize": 0}
