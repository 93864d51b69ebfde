from __future__ import annotations

import numpy as np
import pytest

from sacvit_deploy.benchmark.networks import Choice, open_network, with_floor
from sacvit_deploy.exporters.export import ExportOptions, export_bundle
from sacvit_deploy.families.config import graph_macs
from tests.tiny_models import GATED, strong_gated


@pytest.mark.parametrize(
    "fields",
    [{"mode": "exact"}, {"mode": "capacity", "capacity": (97,), "strict": True}],
    ids=["exact", "strict"],
)
def test_networks_with_gates_have_a_floor_for_each_graph(made_once, fields):
    """Also where no picture goes on to the second graph."""
    config = GATED.replace(**fields)
    bundle = made_once(
        f"floor_{fields['mode']}",
        lambda path: export_bundle(strong_gated(config), path, ExportOptions(parity_batches=(2,))),
    )
    network = with_floor(open_network(bundle, Choice("onnxruntime", "fp32", 1)))
    assert network.floor is not None
    assert network.profiles.keys() == graph_macs(config).keys()
    call = network.timed.run(network.random_images(3), 1.0)
    assert call.refined == 0
    assert np.isfinite(list(network.product_share.values())).all()
    network.close()
