"""One traceable view of the model for each graph; the model itself knows nothing of ONNX."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sacvit_deploy.families import family_named
from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.model.two_stage import (
    EarlyExitOutput,
    TokenSelection,
    TwoStageViT,
    select_tokens,
)
from sacvit_deploy.model.vision_model import VisionModel
from sacvit_deploy.spec import FINE_INDEX, TARGET_INDEX, GraphSpec, TensorSpec

# Not 1, which tracing could take for a constant.
EXAMPLE_SIZES = {"batch": 3}


class SingleView(nn.Module):
    """A network of one stage: image to logits."""

    def __init__(self, model: VisionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Outputs in the order of the graph's contract."""
        return (self.model(image),)


class FeaturesView(SingleView):
    """A backbone: image to the features of each stage."""

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Outputs in the order of the graph's contract."""
        features: tuple[Tensor, ...] = self.model(image)
        return features


class _StageView(nn.Module):
    """One of two stages; the outputs of `forward` are in the order of the graph's contract."""

    def __init__(self, model: TwoStageViT) -> None:
        super().__init__()
        self.model = model


class EarlyExitView(_StageView):
    """First stage: image to logits, score and the tensors the second stage reuses."""

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Outputs: logits, score, embeddings if they are reused, features."""
        out = self.model.early_exit(image)
        embeddings = (out.embeddings,) if _reuses_embeddings(self.model.config) else ()
        return (out.logits, out.score, *embeddings, out.features)


class RefineView(_StageView):
    """Second stage; the host chooses the tokens."""

    def forward(self, image: Tensor, *tensors: Tensor) -> tuple[Tensor]:
        """`tensors`: hand-off without the score, then target, non-target and fine indices."""
        *handed, target, non_target, fine = tensors
        coarse = _early_exit_output(self.model.config, None, handed)
        selection = TokenSelection(target, non_target, fine)
        return (self.model.refine(image, coarse, selection),)


class RefineFromScoreView(_StageView):
    """Second stage that chooses the tokens itself."""

    def forward(self, image: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """`tensors`: hand-off, score first."""
        score, *handed = tensors
        coarse = _early_exit_output(self.model.config, score, handed)
        selection = select_tokens(score, self.model.config)
        return self.model.refine(image, coarse, selection), selection.target


def _reuses_embeddings(config: ModelConfig) -> bool:
    return config.stages.non_target_source == "embedding"


def _early_exit_output(
    config: ModelConfig, score: Tensor | None, handed: list[Tensor]
) -> EarlyExitOutput:
    """The hand-off as the model takes it; tensors that are not reused are empty."""
    features = handed[-1]
    embeddings = handed[0] if _reuses_embeddings(config) else features[:0]
    absent = features[:0]
    return EarlyExitOutput(absent, absent if score is None else score, embeddings, features)


def single_view(model: VisionModel, spec: GraphSpec) -> nn.Module:
    """The view of a network that has one graph."""
    return FeaturesView(model) if spec.role == "backbone" else SingleView(model)


def two_stage_view(model: TwoStageViT, spec: GraphSpec) -> nn.Module:
    """The view of one of two stages."""
    if spec.role == "early_exit":
        return EarlyExitView(model)
    by_host = any(tensor.name == TARGET_INDEX for tensor in spec.inputs)
    return RefineView(model) if by_host else RefineFromScoreView(model)


def view_for(model: VisionModel, spec: GraphSpec) -> nn.Module:
    """Build the view with the inputs and outputs of `spec`, in evaluation mode."""
    view: nn.Module = family_named(model.config.family).load("view")(model, spec)
    return view.eval()


def example_inputs(spec: GraphSpec, config: ModelConfig) -> tuple[Tensor, ...]:
    """Make tensors of valid shapes and values to trace a view with."""
    generator = torch.Generator().manual_seed(0)
    return tuple(_example(tensor, config, generator) for tensor in spec.inputs)


def _example(spec: TensorSpec, config: ModelConfig, generator: torch.Generator) -> Tensor:
    shape = [EXAMPLE_SIZES[axis] if isinstance(axis, str) else axis for axis in spec.shape]
    if spec.dtype != "int64":
        return torch.rand(shape, generator=generator)
    fine = spec.name == FINE_INDEX
    high = config.num_fine_tokens if fine else config.num_coarse_tokens
    return torch.randint(high, shape, generator=generator)
