from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from sacvit_deploy.exporters.shared_weights import WEIGHTS_FILE, save_with_shared_weights
from tests.exporters.graphs import read_graph, session

SMALLEST = 1024
PAGE = 4096


def references(bundle) -> dict[str, dict[int, int]]:
    """Offset to length in the weights file, by graph file."""
    found: dict[str, dict[int, int]] = {}
    for entry in bundle.manifest.graphs:
        model = onnx.load(bundle.graph_path(entry), load_external_data=False)
        blobs = found.setdefault(entry.file, {})
        for tensor in model.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                where = {item.key: item.value for item in tensor.external_data}
                assert where["location"] == WEIGHTS_FILE
                assert not tensor.raw_data
                blobs[int(where["offset"])] = int(where["length"])
            else:
                assert numpy_helper.to_array(tensor).nbytes < SMALLEST
    return found


def test_each_parameter_is_stored_once(sac_host, sac_model):
    blobs: dict[int, int] = {}
    for part in references(sac_host).values():
        blobs |= part
    content = (sac_host.path / WEIGHTS_FILE).read_bytes()
    # A weight may be stored transposed, so the values are compared without their order.
    stored = [
        np.sort(np.frombuffer(content, np.float32, length // 4, offset)).tobytes()
        for offset, length in blobs.items()
    ]
    assert len(set(stored)) == len(stored)
    for name, parameter in sac_model.folded().state_dict().items():
        table = name.startswith("pos_embed")
        values = (parameter[:, 1:] if table else parameter).numpy().ravel()
        if values.nbytes >= SMALLEST:
            assert stored.count(np.sort(values).tobytes()) == 1, name


def test_both_stages_refer_to_the_same_bytes(sac_host, sac_model):
    first, second = (set(part.items()) for part in references(sac_host).values())
    parameters = sum(p.numel() * 4 for p in sac_model.blocks.parameters())
    assert sum(length for _, length in first & second) > 0.9 * parameters


def test_the_file_holds_the_parameters_and_little_else(sac_host, sac_model):
    parameters = sum(value.numel() * 4 for value in sac_model.folded().state_dict().values())
    blobs = {k: v for part in references(sac_host).values() for k, v in part.items()}
    size = (sac_host.path / WEIGHTS_FILE).stat().st_size
    assert size < sum(blobs.values()) + PAGE * len(blobs)
    # Beyond the parameters: the cluster mask, 73 x 73 floats here.
    assert sum(blobs.values()) < parameters + 24_000


def test_every_tensor_starts_on_a_page(sac_graph):
    for part in references(sac_graph).values():
        assert part
        assert all(offset % PAGE == 0 for offset in part)


@pytest.mark.parametrize("role", ["early_exit", "refine"])
def test_every_graph_loads_by_itself(sac_host, role):
    found = {spec.name for spec in session(sac_host, role).inputs}
    assert found == {spec.name for spec in sac_host.graph(role).inputs}


def constant_graph(values: np.ndarray, name: str, *, raw: bool) -> onnx.ModelProto:
    dtype = helper.np_dtype_to_tensor_dtype(values.dtype)
    tensor = (
        numpy_helper.from_array(values, name)
        if raw
        else helper.make_tensor(name, dtype, values.shape, values)
    )
    out = helper.make_tensor_value_info("y", tensor.data_type, values.shape)
    node = helper.make_node("Identity", [name], ["y"])
    graph = helper.make_graph([node], "constant", [], [out], [tensor])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_equal_content_is_found_under_any_name_and_field(tmp_path):
    values = np.linspace(0, 1, 512, dtype=np.float32)
    graphs = {
        "a.onnx": constant_graph(values, "weight", raw=True),
        "b.onnx": constant_graph(values, "copy", raw=False),
        "c.onnx": constant_graph(values + 1, "weight", raw=True),
    }
    save_with_shared_weights(graphs, tmp_path)
    assert (tmp_path / WEIGHTS_FILE).stat().st_size == PAGE + values.nbytes
    for file, wanted in (("a.onnx", values), ("b.onnx", values), ("c.onnx", values + 1)):
        loaded = onnx.load(tmp_path / file)
        np.testing.assert_array_equal(numpy_helper.to_array(loaded.graph.initializer[0]), wanted)


def test_small_tensors_stay_readable_in_the_graph(tmp_path):
    values = np.arange(SMALLEST // 4 - 1, dtype=np.float32)
    save_with_shared_weights({"a.onnx": constant_graph(values, "bias", raw=True)}, tmp_path)
    assert (tmp_path / WEIGHTS_FILE).stat().st_size == 0
    alone = onnx.load(tmp_path / "a.onnx", load_external_data=False)
    np.testing.assert_array_equal(numpy_helper.to_array(alone.graph.initializer[0]), values)


def test_the_same_graphs_give_the_same_bytes(sac_host, tmp_path):
    written = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        graphs = {e.file: read_graph(sac_host, e.role) for e in sac_host.manifest.graphs}
        save_with_shared_weights(graphs, folder)
        written.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert written[0] == written[1]
