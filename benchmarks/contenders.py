"""Contenders of a GPU check: backends that compute a two-stage and a dense network."""

from __future__ import annotations

import itertools
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.engines.machine import this_machine
from sacvit_deploy.engines.session import Rows, SessionOptions, check_feeds, sharing_memory
from sacvit_deploy.errors import EngineError, MissingDependencyError
from sacvit_deploy.families.config import graph_specs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from benchmarks.power import PowerMeter
    from sacvit_deploy.engines.registry import OpenedSessions
    from sacvit_deploy.engines.session import Session, Tensor
    from sacvit_deploy.families.config import ModelConfig
    from sacvit_deploy.spec import EngineBackend, GraphSpec, Precision, Role


class Skipped(Exception):  # noqa: N818  it is no error
    """A contender is not installed, or does not apply here."""


@dataclass(frozen=True)
class Settings:
    """Settings of a GPU check.

    Attributes:
        device: `cuda` or `cpu`.
        two_stage: Network to measure.
        dense: Network to compare it with.
        batches: Batch sizes.
        fraction: Share of the pictures that are refined.
        seconds: Time to measure one row.
        folder: Folder for bundles and engines.
        given: Two bundles to use instead of exporting the networks.
        power: Meter of a Jetson; None elsewhere.
    """

    device: str
    two_stage: ModelConfig
    dense: ModelConfig
    batches: tuple[int, ...]
    fraction: float
    seconds: float
    folder: Path
    given: tuple[Path, ...] = ()
    power: PowerMeter | None = None


@dataclass(frozen=True)
class Contender:
    """Both networks in one backend and precision; the graph selects the tokens."""

    runtime: str
    precision: str
    sessions: Mapping[Role, Session]
    dense: Session
    cuda_graphs: bool | None = None

    @property
    def hands_over_on_device(self) -> bool:
        """Whether the second stage takes the tensors that the first left on the device."""
        return sharing_memory(self.sessions["early_exit"], self.sessions["refine"]) is not None


@dataclass(frozen=True)
class TorchTensor:
    """A handle to a torch tensor."""

    value: Any
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class TorchSession:
    """One graph of a network, computed by torch without an export."""

    def __init__(self, model: Any, spec: GraphSpec, device: str, precision: str) -> None:
        import torch

        from sacvit_deploy.model.views import view_for

        self.provider = f"torch {device}"
        self.memory = f"torch {device}"
        self.inputs, self._outputs = spec.inputs, spec.outputs
        self._torch, self._device = torch, device
        self._dtype = torch.float16 if precision == "fp16" else torch.float32
        self._view = view_for(model, spec)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """See `Session.run`."""
        return self.run_on_device(feeds, ())[0]

    def run_on_device(
        self, feeds: Mapping[str, Tensor], keep: Collection[str]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `DeviceSession.run_on_device`."""
        check_feeds(feeds, self.inputs)
        with self._torch.inference_mode():
            tensors = {spec.name: self._uploaded(feeds[spec.name]) for spec in self.inputs}
            floats = (self._torch.float16, self._torch.float32)
            given = [t.to(self._dtype) if t.dtype in floats else t for t in tensors.values()]
            outputs = self._view(*given)
            computed = {
                spec.name: value.to(getattr(self._torch, spec.dtype))
                for spec, value in zip(self._outputs, outputs, strict=True)
            }
            both = tensors | computed
            kept: dict[str, Tensor] = {name: self._handle(both[name]) for name in keep}
            fetched = {name: computed[name].cpu().numpy() for name in computed if name not in keep}
        return fetched, kept

    def close(self) -> None:
        """Release nothing: the model is the caller's."""

    def _uploaded(self, feed: Any) -> Any:
        if isinstance(feed, Rows):
            rows = self._torch.from_numpy(feed.numbers).to(self._device)
            return self._uploaded(feed.tensor)[rows]
        if isinstance(feed, TorchTensor):
            return feed.value
        return self._torch.from_numpy(np.ascontiguousarray(feed)).to(self._device)

    def _handle(self, value: Any) -> TorchTensor:
        name = str(value.dtype).removeprefix("torch.")
        return TorchTensor(value, np.dtype(name), tuple(value.shape))


class ThroughHost:
    """A session whose outputs always come to the host."""

    def __init__(self, session: Session) -> None:
        self.provider = session.provider
        self.run, self.close = session.run, session.close


def torch_models(settings: Settings) -> tuple[Any, Any]:
    """Make both networks with larger head weights, since fresh ones hardly tell pictures apart."""
    import torch

    from sacvit_deploy.model.build import random_model
    from sacvit_deploy.model.vit import Backbone

    models = [random_model(config, 0).eval() for config in (settings.two_stage, settings.dense)]
    with torch.no_grad():
        for model in models:
            assert isinstance(model, Backbone)
            model.head.weight.mul_(5)
    return models[0], models[1]


def torch_sessions(settings: Settings, device: str, precision: str) -> Contender:
    """Run both networks in torch."""
    if settings.given:
        raise Skipped("the bundles have weights of their own")
    import torch

    # On Hopper the default for products of float32 would be TF32 in some releases.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    models = [model.to(device) for model in torch_models(settings)]
    models = [model.half() if precision == "fp16" else model for model in models]
    specs = graph_specs(settings.two_stage, selection="graph")
    sessions = {s.role: TorchSession(models[0], s, device, precision) for s in specs}
    dense = TorchSession(models[1], graph_specs(settings.dense)[0], device, precision)
    return Contender(f"torch {device}", precision, sessions, dense)


def torch_contenders(settings: Settings) -> Iterator[Contender]:
    """Run torch on the device: in FP32, and on a GPU also in FP16."""
    precisions = ("fp32", "fp16") if settings.device == "cuda" else ("fp32",)
    for precision in precisions:
        yield torch_sessions(settings, settings.device, precision)


class Bundles:
    """Both networks as bundles, exported when first asked for."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: dict[str, Bundle] = {}

    def get(self, precision: Precision = "fp32") -> tuple[Bundle, Bundle]:
        """Return the two-stage and the dense bundle, with graphs of that precision."""
        if not self._made:
            self._made = self._copied() if self._settings.given else self._exported()
        for name, bundle in self._made.items():
            self._made[name] = self._with_precision(bundle, precision)
        return self._made["two-stage"], self._made["dense"]

    def _copied(self) -> dict[str, Bundle]:
        """Copy the given bundles; engines are built in the copies."""
        named = zip(("two-stage", "dense"), self._settings.given, strict=True)
        folder = self._settings.folder
        return {name: Bundle.open(shutil.copytree(path, folder / name)) for name, path in named}

    def _exported(self) -> dict[str, Bundle]:
        models = zip(("two-stage", "dense"), torch_models(self._settings), strict=True)
        return {name: self._export(name, model) for name, model in models}

    def _export(self, name: str, model: Any) -> Bundle:
        from sacvit_deploy.exporters.export import ExportOptions, export_bundle
        from sacvit_deploy.records import WeightsOrigin

        say(f"exporting the {name} network")
        options = ExportOptions(
            origin=WeightsOrigin("random", seed=0), selection="graph", parity_batches=(2,)
        )
        return export_bundle(model, self._settings.folder / name, options)

    def _with_precision(self, bundle: Bundle, precision: Precision) -> Bundle:
        if precision == "fp32" or any(g.precision == precision for g in bundle.manifest.graphs):
            return bundle
        from sacvit_deploy.exporters.precision.add_precision import add_precision
        from sacvit_deploy.exporters.precision.request import PrecisionRequest

        say(f"adding {precision} to {bundle.path.name}")
        return add_precision(bundle, PrecisionRequest(precision))


def onnxruntime_contenders(
    bundles: Bundles, provider: str, precisions: tuple[Precision, ...]
) -> Iterator[Contender]:
    """Run ONNX Runtime with one execution provider, with and without CUDA graphs on a GPU."""
    from sacvit_deploy.engines.registry import open_sessions

    check_offered(provider)
    records = provider in ("CUDA", "NvTensorRTRTX")
    for precision, cuda_graphs in itertools.product(
        precisions, (True, False) if records else (None,)
    ):
        options = SessionOptions(providers=(provider,), cuda_graphs=bool(cuda_graphs))
        opened = [
            open_sessions(bundle, backend="onnxruntime", precision=precision, options=options)
            for bundle in bundles.get(precision)
        ]
        for each in opened:
            if provider not in each.provider:
                raise EngineError(
                    f"{provider} is offered, and {each.provider} was obtained instead.",
                    "Install the libraries it needs; what it said stands on stderr.",
                )
        yield Contender(
            f"onnxruntime {provider}",
            precision,
            opened[0].sessions,
            opened[1].sessions["single"],
            cuda_graphs and all(map(is_recorded, opened)),
        )


def is_recorded(opened: OpenedSessions) -> bool:
    """Whether ONNX Runtime records every graph; a warning says why if it cannot."""
    return all(getattr(session, "records", False) for session in opened.sessions.values())


def check_offered(provider: str) -> None:
    """Check that an execution provider should work here.

    Raises:
        Skipped: It should not, with the reason.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    from sacvit_deploy.engines.onnxruntime_providers import (
        SUFFIX,
        available_providers,
        onnxruntime,
        unavailable_providers,
    )

    if provider == "Tensorrt":
        load_installed("tensorrt")  # which also brings its libraries to where the provider looks
    ort, name = onnxruntime(), f"{provider}{SUFFIX}"
    offered = available_providers(ort)
    if name not in offered:
        offers = f"this onnxruntime offers {', '.join(offered)}"
        raise Skipped(unavailable_providers(ort).get(name, offers))
    if provider != "CPU" and not this_machine().gpus:
        raise Skipped("there is no GPU")


def load_installed(runtime: EngineBackend) -> None:
    """Import TensorRT or TensorRT-RTX.

    Raises:
        Skipped: It is not installed.
        EngineError: It is installed but cannot be used.
    """
    from sacvit_deploy.engines.tensorrt_library import load_library

    try:
        load_library(runtime)
    except MissingDependencyError as error:
        raise Skipped(error.problem) from error


def engine_contenders(
    settings: Settings, bundles: Bundles, runtime: EngineBackend
) -> Iterator[Contender]:
    """Build TensorRT or TensorRT-RTX engines, and run them with and without CUDA graphs."""
    from sacvit_deploy.engines.build import build_engines
    from sacvit_deploy.engines.engine_request import BatchRange, EngineRequest
    from sacvit_deploy.engines.registry import open_sessions

    check_target(runtime)
    largest = max(settings.batches)
    batch = BatchRange(1, min(8, largest), largest)
    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    for precision in precisions:
        built = []
        for bundle in bundles.get(precision):
            say(f"building {runtime} engines of {bundle.path.name} in {precision}")
            request = EngineRequest(precision, runtime, batch)
            built.append(build_engines(bundle, request, lambda *_: None)[0])
        for cuda_graphs in (True, False):
            opened = [
                open_sessions(
                    bundle,
                    backend=runtime,
                    precision=precision,
                    options=SessionOptions(cuda_graphs=cuda_graphs),
                )
                for bundle in built
            ]
            yield Contender(
                opened[0].provider,
                precision,
                opened[0].sessions,
                opened[1].sessions["single"],
                cuda_graphs,
            )


def check_target(runtime: EngineBackend) -> None:
    """Check that there is a GPU that the library builds for.

    Raises:
        Skipped: There is none, or the library is not installed.
        EngineError: The library is installed but cannot be used.
    """
    from sacvit_deploy.engines.build import check_request
    from sacvit_deploy.engines.engine_request import EngineRequest
    from sacvit_deploy.engines.tensorrt_library import load_library

    try:
        load_library(runtime)
    except MissingDependencyError as error:
        raise Skipped(error.problem) from error
    if not this_machine().gpus:
        raise Skipped("there is no GPU to run an engine on")
    try:
        check_request(EngineRequest("fp32", runtime))
    except EngineError as error:
        raise Skipped(error.problem) from error


def say(line: str) -> None:
    """Print progress on stderr; the result goes elsewhere."""
    print(line, file=sys.stderr, flush=True)
