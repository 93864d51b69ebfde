"""Reading and running exported graphs in tests."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime

from sacvit_deploy.engines.onnxruntime_session import OnnxRuntimeSession
from sacvit_deploy.engines.session import SessionOptions

if TYPE_CHECKING:
    from sacvit_deploy.bundle import Bundle
    from sacvit_deploy.spec import Role


def read_graph(bundle: Bundle, role: Role) -> onnx.ModelProto:
    """With its weights, which makes it independent of the bundle's folder."""
    return onnx.load(bundle.graph_path(bundle.graph(role)))


def session(bundle: Bundle, role: Role) -> OnnxRuntimeSession:
    return OnnxRuntimeSession(bundle.graph_path(bundle.graph(role)), SessionOptions(threads=1))


def op_counts(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def run_model(model: onnx.ModelProto, **feeds: np.ndarray) -> list[Any]:
    """All outputs of a graph in memory."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    made = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return list(made.run(None, feeds))


def normalised(bundle: Bundle, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random pictures as (uint8 pixels, normalised floats), both (count, 3, H, W)."""
    spec = bundle.manifest.preprocessing
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, *spec.crop), dtype=np.uint8)
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (spec.mean, spec.std))
    return pixels, (pixels.astype(np.float32) / np.float32(255) - mean) / std
