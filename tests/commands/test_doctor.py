from __future__ import annotations

import json


def test_it_prints_a_line_for_each_thing(invoke):
    ran = invoke("doctor")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0].startswith("python ")
    for name in ("cuda-driver", "gpu", "jetpack", "tensorrt", "tensorrt-rtx", "onnxruntime"):
        assert any(line.startswith(name) for line in lines)


def test_json_has_the_same(invoke):
    document = json.loads(invoke("doctor", "--json").out)
    assert "CPUExecutionProvider" in document["onnxruntime"]["providers"]
    assert {"found", "fix", "free_bytes"} == set(document["memory"])
