"""The description of a bundle: what `bundle.json` says, read and checked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath

from sacvit_deploy.decode import decode, encode, parse_json, shown
from sacvit_deploy.errors import BundleError, BundleIntegrityError, BundleVersionError, ConfigError
from sacvit_deploy.families.config import ModelConfig, graph_specs, number_of_classes
from sacvit_deploy.files import FileRecord
from sacvit_deploy.records import (
    BUILD_AGAIN,
    CALIBRATE_AGAIN,
    EngineEntry,
    ExitCalibration,
    GraphEntry,
    PrecisionRecord,
    TensorParity,
    WeightsOrigin,
)
from sacvit_deploy.spec import InputKind, Precision, Preprocessing, Selection, check_eta

FORMAT = "sacvit-deploy bundle"
FORMAT_VERSION = 2
MANIFEST = "bundle.json"
# In place of its own digits, `digest` is computed with these.
_NO_DIGEST = "0" * 64
_LONGEST_NAME = 255

_EXPORT_AGAIN = "Export the bundle again."


@dataclass(frozen=True, repr=False)
class Manifest:
    """Content of `bundle.json`.

    Attributes:
        config: Configuration of the network.
        preprocessing: Steps from a picture to the input tensor.
        selection: Where target tokens are chosen: on the `host`, or in the refine `graph`.
        input_kind: `float` (normalised) or `uint8` (normalisation folded into the graphs).
        eta: Default exit threshold, in [0, 1].
        labels: One name per class, in class order; none if the graphs give features.
        graphs: One entry per role and precision.
        weights: Origin of the weights.
        parity: Measured errors of the graphs against the torch model.
        tools: Versions of the libraries that wrote the bundle.
        files: Records of all other files by relative name; `write_manifest` fills it in.
        engines: One entry per role, precision and backend.
        precisions: How the graphs of each lower precision were made.
        exit_calibrations: At most one per precision and backend.

    Raises:
        BundleError: The parts do not fit together.
        ConfigError: `eta` is out of range.
    """

    config: ModelConfig
    preprocessing: Preprocessing
    selection: Selection
    input_kind: InputKind
    eta: float
    labels: tuple[str, ...]
    graphs: tuple[GraphEntry, ...]
    weights: WeightsOrigin
    parity: tuple[TensorParity, ...] = ()
    tools: dict[str, str] = field(default_factory=dict)
    files: dict[str, FileRecord] = field(default_factory=dict)
    engines: tuple[EngineEntry, ...] = ()
    precisions: dict[Precision, PrecisionRecord] = field(default_factory=dict)
    exit_calibrations: tuple[ExitCalibration, ...] = ()

    def __repr__(self) -> str:
        return f"<Manifest: {self.network}; {len(self.graphs)} graphs, {len(self.engines)} engines>"

    @property
    def network(self) -> str:
        """The network in a few words."""
        height, width = self.config.image_size
        gives = f"{len(self.labels)} classes" if self.labels else "features"
        return f"{self.config.family}, {height}x{width} px, {gives}"

    def __post_init__(self) -> None:
        check_eta(self.eta)
        classes = number_of_classes(self.config)
        if len(self.labels) != classes:
            raise BundleError(
                f"There are {len(self.labels)} labels for {classes} classes.",
                "Give one label per class, in class order.",
            )
        if self.preprocessing.crop != self.config.image_size:
            raise BundleError(
                f"Pictures are cropped to {self.preprocessing.crop} (height, width) for a network "
                f"that takes {self.config.image_size}.",
                "Make the crop the image size of the network.",
            )
        graphs = (name for graph in self.graphs for name in graph.files)
        engines = (engine.file for engine in self.engines)
        for name in (*self.files, *graphs, *engines):
            _check_inside(name)
        self._check_roles()
        self._check_tensors()
        self._check_engines()
        self._check_calibrations()

    def _check_roles(self) -> None:
        specs = graph_specs(self.config, selection=self.selection, input_kind=self.input_kind)
        wanted = {spec.role for spec in specs}
        found = [(graph.role, graph.precision) for graph in self.graphs]
        if {role for role, _ in found} != wanted or len(set(found)) != len(found):
            raise BundleIntegrityError(
                f"The graphs are {found or 'none'}; this network of the family "
                f"{self.config.family!r} needs {' and '.join(sorted(wanted))}, each once per "
                "precision.",
                _EXPORT_AGAIN,
            )

    def _check_tensors(self) -> None:
        specs = graph_specs(self.config, selection=self.selection, input_kind=self.input_kind)
        wanted = {spec.role: (spec.inputs, spec.outputs) for spec in specs}
        for graph in self.graphs:
            if (graph.inputs, graph.outputs) != wanted[graph.role]:
                raise BundleIntegrityError(
                    f"The inputs and outputs of its {graph.role} graph are not those of the "
                    "network that it describes.",
                    _EXPORT_AGAIN,
                )

    def _check_engines(self) -> None:
        found = [(engine.role, engine.precision, engine.runtime) for engine in self.engines]
        roles = {graph.role for graph in self.graphs}
        if len(set(found)) != len(found) or not {role for role, _, _ in found} <= roles:
            raise BundleIntegrityError(
                f"The engines are {found}; the graphs are {' and '.join(sorted(roles))}, and each "
                "has at most one engine per precision and runtime.",
                BUILD_AGAIN,
            )

    def _check_calibrations(self) -> None:
        found = [(record.precision, record.runtime) for record in self.exit_calibrations]
        there = {g.precision for g in self.graphs} | {e.precision for e in self.engines}
        wanted = there if self.config.two_stage else set()
        if len(set(found)) != len(found) or not {precision for precision, _ in found} <= wanted:
            raise BundleIntegrityError(
                f"The exit calibrations are {found}; each precision of a two-stage network has at "
                f"most one per runtime, and the precisions here are {sorted(wanted) or 'none'}.",
                CALIBRATE_AGAIN,
            )

    def exit_calibration(self, precision: Precision, runtime: str) -> ExitCalibration | None:
        """Find the calibration of a precision and backend; None if there is none."""
        key = (precision, runtime)
        return next((r for r in self.exit_calibrations if (r.precision, r.runtime) == key), None)

    def usual_exit(self, precision: Precision, runtime: str) -> tuple[float, float]:
        """Default threshold and temperature: those calibrated, or else `eta` and 1."""
        record = self.exit_calibration(precision, runtime)
        return (record.eta, record.temperature) if record else (self.eta, 1.0)

    def with_calibration(self, record: ExitCalibration) -> Manifest:
        """Add a calibration, or replace that of the same precision and backend.

        FP32 in ONNX Runtime runs everywhere, so its threshold becomes the bundle's default. That is
        for temperature 1, so a threshold with another temperature does not.
        """
        key = (record.precision, record.runtime)
        others = (r for r in self.exit_calibrations if (r.precision, r.runtime) != key)
        is_default = key == ("fp32", "onnxruntime") and record.temperature == 1
        return dataclasses.replace(
            self,
            eta=record.eta if is_default else self.eta,
            exit_calibrations=(*others, record),
        )

    def without_engines(self, gone: Collection[EngineEntry]) -> Manifest:
        """Leave out some engines, their files too."""
        names = {name for engine in gone for name in engine.files}
        return dataclasses.replace(
            self,
            files={name: record for name, record in self.files.items() if name not in names},
            engines=tuple(engine for engine in self.engines if engine not in gone),
        )

    def to_json(self) -> str:
        """Text of `bundle.json`, which `from_json` reads back."""
        values = {"format": FORMAT, "format_version": FORMAT_VERSION, "digest": _NO_DIGEST}
        values |= {**encode(self), "eta": float(self.eta)}
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        return text.replace(_NO_DIGEST, hashlib.sha256(text.encode()).hexdigest(), 1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read the text of a `bundle.json`.

        Raises:
            BundleError: It is not JSON, or a value is missing, wrong, or does not fit the others.
            BundleVersionError: It was written by a newer release.
            BundleIntegrityError: It is not as it was written.
        """
        # An unknown key of these would change what the network computes.
        strict = {"config": ModelConfig, "preprocessing": Preprocessing}
        try:
            values = parse_json(text, f"Its {MANIFEST}")
            if _checked_version(values) > 1:
                content = text.encode() if isinstance(text, str) else text
                _check_digest(content, values.get("digest"))
            for name, kind in strict.items():
                if name in values:
                    values[name] = decode(kind, values[name], name, refuse_unknown=True)
            return decode(cls, values)
        except ConfigError as error:
            raise BundleError(error.problem, f"{error.fix} Or export the bundle again.") from error


def _checked_version(values: object) -> int:
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise BundleError(
            f"Its {MANIFEST} is not the description of a {FORMAT}.",
            "Give a folder written by: sacvit-deploy export.",
        )
    version = values.get("format_version")
    if type(version) is not int or version < 1:
        raise BundleError(f"Its format_version is {shown(version)}.", _EXPORT_AGAIN)
    if version > FORMAT_VERSION:
        raise BundleVersionError(
            f"It has format version {version}; this release reads up to {FORMAT_VERSION}.",
            "Upgrade with: pip install --upgrade sacvit-deploy",
        )
    return version


def _check_digest(content: bytes, digest: object) -> None:
    """Refuse a text whose digest is missing or is not that of the rest."""
    rest = content.replace(str(digest).encode(), _NO_DIGEST.encode(), 1)
    if hashlib.sha256(rest).hexdigest() != digest:
        raise BundleIntegrityError(
            f"Its {MANIFEST} is not the one that was written (its digest is missing or differs).",
            "Copy the whole folder again, or export again.",
        )


def _check_inside(name: str) -> None:
    """Refuse a name from `bundle.json` that leads out of the folder."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    leads_out = ".." in windows.parts or windows.drive or windows.root or posix.is_absolute()
    if leads_out or "\0" in name or not posix.parts or len(name) > _LONGEST_NAME:
        raise BundleError(
            f"The file name {shown(name)} leads out of the bundle folder, or is too long.",
            "Do not use this bundle unless you trust where it comes from.",
        )
