"""A process that classifies has not loaded what only the export needs, and starts at once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sacvit_deploy.samples import sample_pictures

# CPU time of the process, which does not depend on what else the machine does. It is about one
# second; threads that wait busily count, too.
MOST_CPU_S = 5

_FIRST_RESULT = """
import json, sys, time
start = time.process_time()
import sacvit_deploy
pipeline = sacvit_deploy.load(sys.argv[1], eta=1)
results = [pipeline(sys.argv[2]).stage]
seconds = time.process_time() - start
results += [result.stage for result in pipeline(sys.argv[2:], eta=0)]
results += [result.stage for result in pipeline.stream(sys.argv[2:])]
offline = ("torch", "onnx", "onnxscript", "onnx_ir", "onnx_graphsurgeon", "safetensors")
ours = ("sacvit_deploy.model", "sacvit_deploy.exporters", "sacvit_deploy.training")
loaded = [name for name in (*offline, *ours) if name in sys.modules]
print(json.dumps({"stage": results[0], "loaded": loaded, "seconds": seconds}))
"""


@pytest.mark.parametrize("name", ["sac_host", "sac_graph"])
def test_the_pipeline_needs_neither_torch_nor_onnx(name, request, record_property):
    bundle = request.getfixturevalue(name)
    pictures = [str(picture) for picture in sample_pictures()]
    command = [sys.executable, "-c", _FIRST_RESULT, str(bundle.path), *pictures]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["loaded"] == []
    assert found["stage"] == "refine"
    record_property("import_to_first_result_cpu_s", found["seconds"])
    assert found["seconds"] < MOST_CPU_S
