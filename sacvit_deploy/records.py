"""The records of `bundle.json`: graphs, engines, weights, measurements."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath

from sacvit_deploy.decode import OPTIONAL, encode
from sacvit_deploy.errors import BundleError
from sacvit_deploy.spec import (
    Backend,
    EngineBackend,
    Precision,
    Role,
    TensorSpec,
    WeightStorage,
    check_count,
    check_eta,
    check_temperature,
)

HISTOGRAM_BINS = 20
PROBABILITIES = "probabilities"
BUILD_AGAIN = "Build the engines again: sacvit-deploy build-engine BUNDLE."
CALIBRATE_AGAIN = "Calibrate again: sacvit-deploy calibrate BUNDLE DATA."


@dataclass(frozen=True)
class CalibrationPoint:
    """Accuracy and cost of both stages together at one exit threshold.

    Attributes:
        eta: Exit threshold, in [0, 1].
        top1: Share of correct answers, in [0, 1].
        early_exit_fraction: Share of pictures that exit early, in [0, 1].
        macs_mean_g: Mean cost of a picture, in 10^9 multiply-accumulates.
        latency_ms_mean: Mean latency of a picture in ms; in a batch its share of the time.
        latency_ms_p95: Its 95th percentile.
    """

    eta: float
    top1: float
    early_exit_fraction: float
    macs_mean_g: float
    latency_ms_mean: float
    latency_ms_p95: float


@dataclass(frozen=True)
class ExitCalibration:
    """Exit threshold found for one precision and backend, and the measurements behind it.

    Attributes:
        precision: Precision of the measured graphs.
        runtime: Backend that computed them.
        eta: Chosen threshold, in [0, 1].
        temperature: Divisor of the first stage's logits before their confidence is compared with
            `eta`; above 0.
        goal: Goal of the calibration, for example `max_accuracy_drop=0.005`.
        images: Number of pictures measured.
        data_sha256: Digest of their names, labels and bytes.
        top1: Share of correct answers at `eta`, in [0, 1].
        top1_interval: Lower and upper end of its 95 % interval.
        macs_mean_g: Mean cost of a picture at `eta`, in 10^9 multiply-accumulates.
        early_exit_fraction: Share of pictures that exit early at `eta`, in [0, 1].
        confidence_histogram: Share of pictures in each of 20 equal bins of the first stage's
            confidence over [0, 1]; adds up to 1.
        curve: Measurements at other thresholds, by ascending `eta`.
        batch_size: Pictures that were computed together when the latencies were measured.

    Raises:
        ConfigError: `eta`, `temperature` or `batch_size` is out of range.
        BundleError: Another value is impossible.
    """

    precision: Precision
    runtime: Backend
    eta: float
    temperature: float
    goal: str
    images: int
    data_sha256: str
    top1: float
    top1_interval: tuple[float, float]
    macs_mean_g: float
    early_exit_fraction: float
    confidence_histogram: tuple[float, ...]
    curve: tuple[CalibrationPoint, ...]
    batch_size: int = 1

    def __post_init__(self) -> None:
        check_eta(self.eta)
        check_temperature(self.temperature)
        check_count("batch_size", self.batch_size)
        shares = self.confidence_histogram
        if len(shares) != HISTOGRAM_BINS or abs(sum(shares) - 1) > 1e-6 or min(shares) < 0:
            raise BundleError(
                f"The confidence histogram has {len(shares)} bins that add up to {sum(shares):g}; "
                f"{HISTOGRAM_BINS} shares that add up to 1 are needed.",
                CALIBRATE_AGAIN,
            )
        if self.top1_interval[0] > self.top1_interval[1]:
            raise BundleError(f"The top-1 interval is {self.top1_interval}.", CALIBRATE_AGAIN)
        if self.images < 1 or not all(0 <= s <= 1 for s in (self.top1, self.early_exit_fraction)):
            raise BundleError(
                f"The calibration says that of {self.images} pictures {self.top1:.1%} are correct "
                f"and {self.early_exit_fraction:.1%} exit early.",
                CALIBRATE_AGAIN,
            )
        etas = [check_eta(point.eta) for point in self.curve]
        if etas != sorted(etas):
            raise BundleError("The curve is not sorted by eta.", CALIBRATE_AGAIN)


@dataclass(frozen=True)
class GraphEntry:
    """One ONNX graph of a bundle.

    Attributes:
        role: Place in the pipeline.
        precision: Precision of its weights and arithmetic.
        file: Name relative to the bundle folder, with forward slashes.
        inputs: Input tensors.
        outputs: Output tensors.
        engine_file: File that engines are built from, if another. Beside INT8 it computes in half,
            which is fast on a GPU and slow on a CPU.
    """

    role: Role
    precision: Precision
    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    engine_file: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all its files, that for engines last."""
        return (self.file,) if self.engine_file is None else (self.file, self.engine_file)


@dataclass(frozen=True)
class EngineFlags:
    """Options of the builder that were not left at their default.

    Attributes:
        workspace_mib: Upper limit of scratch memory.
        optimization_level: 0 (fast build) to 5 (fast engine).
        version_compatible: Whether later releases load the engine.
        hardware_compatibility: Other GPUs that the engine runs on, such as `ampere-plus`.
    """

    workspace_mib: int | None = field(default=None, metadata=OPTIONAL)
    optimization_level: int | None = field(default=None, metadata=OPTIONAL)
    version_compatible: bool | None = field(default=None, metadata=OPTIONAL)
    hardware_compatibility: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class EngineEntry:
    """One engine of a bundle, and the machines that can load it.

    Attributes:
        role: Place in the pipeline.
        precision: Precision that was asked for and proven by the build.
        file: Name relative to the bundle folder, with forward slashes.
        runtime: Backend that built it; no other can load it.
        runtime_version: Version of the backend, for example `10.3.0`.
        cuda_version: Version of CUDA at the build, for example `12.6`; empty if not known.
        compute_capabilities: GPUs it was built for, for example `("8.6", "8.9")`.
        os: System of the build, for example `linux-x86_64`.
        batch: Smallest, best and largest batch that it was asked for. The profile of a second
            stage is best at a quarter of that, see `BatchRange.survivors`.
        precision_share: Share of the weight bytes in `half`, `int8` and `float`; adds up to 1.
        flags: Other options of the builder.
        build_s: Duration of the build in seconds.
        bytes: Size of the file.
        linear_share: `precision_share` of the weights of linear layers and convolutions.
        layer_share: `precision_share` of the number of layers that compute.
        gpu: Name of the GPU it was built on; empty if the build needed none.
        multiprocessors: Number of its multiprocessors; 0 if the build needed none. Boards of one
            family have one name and compute capability, and differ in this.

    Raises:
        BundleError: The batches are not ascending.
    """

    role: Role
    precision: Precision
    file: str
    runtime: EngineBackend
    runtime_version: str
    cuda_version: str
    compute_capabilities: tuple[str, ...]
    os: str
    batch: tuple[int, int, int]
    precision_share: dict[str, float]
    flags: EngineFlags
    build_s: float
    bytes: int
    linear_share: dict[str, float] = field(default_factory=dict)
    layer_share: dict[str, float] = field(default_factory=dict)
    gpu: str = ""
    multiprocessors: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2] <= 1 << 20:
            raise BundleError(f"The batch range of an engine is {self.batch}.", BUILD_AGAIN)

    @property
    def files(self) -> tuple[str, str]:
        """Names of the engine and of the log of its build."""
        return self.file, str(PurePosixPath(self.file).with_suffix(".log"))


@dataclass(frozen=True)
class WeightsOrigin:
    """Origin of the weights of a bundle.

    Attributes:
        origin: `random`, `checkpoint`, or `model` for one in memory.
        seed: Seed of random weights.
        file: Name of the checkpoint.
        sha256: Digest of the checkpoint.
        storage: `fp16` if they were rounded to half; the oldest bundles do not say.
    """

    origin: str
    seed: int | None = field(default=None, metadata=OPTIONAL)
    file: str | None = field(default=None, metadata=OPTIONAL)
    sha256: str | None = field(default=None, metadata=OPTIONAL)
    storage: WeightStorage | None = field(default=None, metadata=OPTIONAL)

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in encode(self).items())

    @property
    def is_random(self) -> bool:
        """Whether the weights were never trained."""
        return self.origin == "random"


@dataclass(frozen=True)
class TensorParity:
    """Error of one output of one graph at one batch size.

    Attributes:
        role: Role of the graph.
        tensor: Name of the output; `probabilities` is the softmax of the logits.
        batch: Images in the batch.
        max_abs_error: Largest absolute difference; infinite if a value is not finite.
        relative_error: The same over the largest absolute value of the reference; where gates
            decided otherwise in every picture, the mean error over the mean absolute value.
    """

    role: str
    tensor: str
    batch: int
    max_abs_error: float
    relative_error: float


@dataclass(frozen=True)
class Agreement:
    """Agreement of a candidate with its reference, decision by decision.

    Attributes:
        images: Pictures compared.
        exit_flip_rate: Share of pictures that exit early in one and not in the other, in [0, 1].
        target_overlap: Mean share of the reference's targets, or of the tokens that its gates keep,
            that the candidate has too, in [0, 1].
        label_agreement: Share of pictures with the same final class, each at its own exit, in
            [0, 1].
        max_probability_error: Largest difference of a probability in either stage, in [0, 1].
        max_tensor_error: Largest error of a feature over its largest value, or with gates its mean
            error over its mean value; None for a network with classes.
    """

    images: int
    exit_flip_rate: float
    target_overlap: float
    label_agreement: float
    max_probability_error: float
    max_tensor_error: float | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class PrecisionRecord:
    """How the graphs of a lower precision were made.

    Attributes:
        method: Calibration method of INT8.
        smoothing: Strength of INT8's smoothing by place; one for all in older bundles.
        data: Name of the pictures used.
        data_sha256: Digest of their bytes; empty for those of the package.
        pictures: Number of pictures used.
        seed: Seed of their choice.
        kept_in_fp32: Nodes left in FP32, by role.
        agreement: Agreement with FP32 on these pictures at `eta`.
        eta: Exit threshold of that comparison.
        weight_shares: Share of the weight bytes in `half`, `int8` and `float`, by role.
        linear_weight_shares: The same for linear layers and convolutions only.
        tools: Versions of the libraries used.
    """

    method: str | None = field(default=None, metadata=OPTIONAL)
    smoothing: dict[str, float] | float | None = field(default=None, metadata=OPTIONAL)
    data: str
    data_sha256: str
    pictures: int
    seed: int
    kept_in_fp32: dict[Role, tuple[str, ...]]
    agreement: Agreement
    eta: float
    weight_shares: dict[Role, dict[str, float]]
    linear_weight_shares: dict[Role, dict[str, float]]
    tools: dict[str, str]
