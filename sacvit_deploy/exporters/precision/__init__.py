"""FP16 and INT8 graphs beside the FP32 ones, with the decisions of the network intact.

The graph itself says its precision (Casts for FP16, explicit Q/DQ for INT8), so that all backends
read the same. TensorRT 11 has no other way to ask for it.
"""

from sacvit_deploy.exporters.precision.add_precision import add_precision
from sacvit_deploy.exporters.precision.request import PrecisionRequest

__all__ = ["PrecisionRequest", "add_precision"]
