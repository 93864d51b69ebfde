"""Open a bundle for Python: classes, or the features of a backbone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, get_args

from sacvit_deploy.bundle import Bundle, from_bundle
from sacvit_deploy.decode import check_field
from sacvit_deploy.engines.registry import AUTO, open_sessions
from sacvit_deploy.engines.session import SessionOptions
from sacvit_deploy.families.config import number_of_classes
from sacvit_deploy.runtime.features import FeaturePipeline, without_classes
from sacvit_deploy.runtime.pipeline import Pipeline
from sacvit_deploy.spec import Decode, Precision, check_eta


def load(  # noqa: PLR0913  the one call of most users; all but the path have a good default
    path: str | os.PathLike[str],
    *,
    eta: float | None = None,
    backend: str = AUTO,
    precision: Precision | None = None,
    providers: Sequence[str] | str | None = None,
    threads: int | None = None,
    workers: int = 1,
    decode: Decode = "fast",
) -> Pipeline:
    """Open a bundle; torch is not needed.

    A bundle of a backbone gives features instead of classes. Then the result is a
    `FeaturePipeline` (see `sacvit_deploy.runtime.features`), and `eta` and `workers` have no
    effect.

    If another process replaces the bundle meanwhile, the pipeline is of the old one or of the new
    one, as a whole.

    Args:
        path: Folder of the bundle.
        eta: Exit threshold, in [0, 1]; None takes the one `sacvit-deploy calibrate` found for the
            precision and backend that are opened, or else the bundle's.
        backend: `auto` for the one that is known to be fast here; `fastest` to time all that can
            run this bundle, which takes seconds; or `onnxruntime`, `openvino`, `tensorrt`,
            `tensorrt-rtx`.
        precision: Graphs of the bundle to run: `fp32`, `fp16` or `int8`; None takes FP32, and
            among the engines FP16 before INT8 before FP32.
        providers: ONNX Runtime execution providers, or OpenVINO devices, in order of preference,
            for example `["CUDA"]` or `["GPU"]`; or one name. With `auto` they are ONNX Runtime's.
        threads: CPU threads of one operator; None leaves it to the backend, or divides the cores
            among the workers if there are several.
        workers: Batches that a stream computes side by side on a CPU, 1 to 64. With one for each
            core a stream has most pictures per second, and a single call uses one core only.
        decode: `fast` reduces large pictures by whole numbers before they are resampled: JPEG
            files of at least 5 times the size that the network needs while they are decoded, others
            of 6 times by averaging blocks. `exact` resamples every pixel.

    Raises:
        BundleError: The bundle cannot be read, is incomplete, changed, or from a newer release.
        ConfigError: `eta` is out of range, or `decode` is neither of both.
        EngineError: The backend is unknown or cannot run this bundle, or `providers`, `threads` or
            `workers` is of a wrong type or out of range.
        MissingDependencyError: The backend is not installed.
    """
    if eta is not None:
        check_eta(eta)
    known = isinstance(decode, str) and decode in get_args(Decode)  # an array has no one truth
    check_field(known, "decode", decode, " or ".join(get_args(Decode)))
    names: Any = tuple(providers) if isinstance(providers, Sequence) else providers
    names = (providers,) if isinstance(providers, str) else names
    options = SessionOptions(names, threads, workers)

    def make(bundle: Bundle) -> Any:
        opened = open_sessions(bundle, backend=backend, precision=precision, options=options)
        if not number_of_classes(bundle.manifest.config):
            return FeaturePipeline(bundle.manifest, opened, decode=decode)
        return Pipeline(bundle.manifest, opened, eta=eta, decode=decode)

    pipeline: Pipeline = from_bundle(path, make)
    return pipeline


def load_classifier(path: str | os.PathLike[str], **options: Any) -> Pipeline:
    """`load`, for what needs classes; `ConfigError` for a bundle of a backbone."""
    pipeline: Pipeline | FeaturePipeline = load(path, **options)
    if isinstance(pipeline, Pipeline):
        return pipeline
    pipeline.close()
    raise without_classes(path)
