"""The command line: a list of verbs, each loaded when it is called."""

from __future__ import annotations

import importlib
from typing import Any

import click

import sacvit_deploy
from sacvit_deploy.errors import SacvitDeployError

# Line in --help by verb; the code is in sacvit_deploy.commands.<verb>.
VERBS = {
    "export": "Export a checkpoint to a bundle of ONNX graphs.",
    "run": "Classify pictures with a bundle.",
    "inspect": "Check a bundle and list its contents.",
    "evaluate": "Measure accuracy, cost and latency on labelled pictures.",
    "calibrate": "Choose the exit threshold for a goal.",
    "verify": "Compare a bundle with its model.",
    "visualize": "Show which tokens the network refined.",
    "bisect-precision": "Find the nodes that must stay in FP32.",
    "build-engine": "Build TensorRT or TensorRT-RTX engines from a bundle.",
    "train": "Train a network by the recipe of the paper.",
    "doctor": "List what this machine has and lacks.",
    "demo": "Classify the pictures of the package.",
}


class LazyGroup(click.Group):
    """A group whose verbs are imported when they are called, so that --help is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List all verbs, in the order of a first day's work."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one verb; None if there is none of that name."""
        if cmd_name not in VERBS:
            return None
        name = cmd_name.replace("-", "_")
        module = importlib.import_module(f"sacvit_deploy.commands.{name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb; an error of this package becomes one message and exit code 1."""
        try:
            return super().invoke(ctx)
        except SacvitDeployError as error:
            raise click.ClickException(f"{error.problem}\n{error.fix}") from error


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(sacvit_deploy.__version__, prog_name="sacvit-deploy")
def main() -> None:
    """Export and deploy input-adaptive Vision Transformers.

    A checkpoint becomes a bundle of ONNX graphs; a bundle classifies pictures without torch.

    \b
    Start here:
      sacvit-deploy demo
      sacvit-deploy export model.safetensors -o bundle --preset sac_deit_small_patch16_224
      sacvit-deploy run bundle cat.jpg
    """


if __name__ == "__main__":
    main()
