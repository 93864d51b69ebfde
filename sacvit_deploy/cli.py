"""The command line: a list of verbs, each loaded when it is called."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
from typing import Any

import click

import sacvit_deploy
from sacvit_deploy.errors import SacvitDeployError, interrupt_in
from sacvit_deploy.files import terminated_like_ctrl_c

# Line in --help by verb; the code is in sacvit_deploy.commands.<verb>.
VERBS = {
    "export": "Export a checkpoint to a bundle of ONNX graphs.",
    "run": "Classify pictures or videos (also called predict).",
    "inspect": "Check a bundle and list its contents.",
    "labels": "Name the classes of a bundle.",
    "evaluate": "Measure accuracy, cost and latency on labelled pictures.",
    "calibrate": "Choose the exit threshold for a goal.",
    "benchmark": "Measure speed, and how near the machine's limit it is.",
    "verify": "Compare a bundle with its model.",
    "visualize": "Show which tokens the network refined.",
    "bisect-precision": "Find the nodes that must stay in FP32.",
    "build-engine": "Build TensorRT or TensorRT-RTX engines from a bundle.",
    "train": "Train a network by the recipe of the paper.",
    "doctor": "List what this machine has and lacks.",
    "demo": "Classify the pictures of the package.",
}


# Other names of verbs; --help lists the first one.
ALIASES = {"predict": "run"}


class LazyGroup(click.Group):
    """A group whose verbs are imported when they are called, so that --help is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List all verbs, in the order of a first day's work."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one verb; None if there is none of that name."""
        verb = ALIASES.get(cmd_name, cmd_name)
        if verb not in VERBS:
            return None
        name = verb.replace("-", "_")
        module = importlib.import_module(f"sacvit_deploy.commands.{name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb; an error of this package becomes one message and exit code 1.

        Ctrl-C and SIGTERM become one word, and the exit codes of shells: 130 and 143.
        """
        try:
            return super().invoke(ctx)
        except BaseException as error:
            if (interrupt := interrupt_in(error)) is not None:
                click.echo("Aborted!", err=True)
                number = signal.SIGTERM if signal.SIGTERM in interrupt.args else signal.SIGINT
                raise click.exceptions.Exit(128 + number) from error
            if isinstance(error, SacvitDeployError):
                raise click.ClickException(str(error)) from error
            raise

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line; a stdout that takes nothing becomes one message and exit code 1.

        click itself ends silently, with the same code, where the reader of a pipe has gone.
        """
        try:
            _check_stdout()
            with terminated_like_ctrl_c():
                return super().main(*args, **extra)
        except OSError as error:
            if error.filename is not None:  # not a stream
                raise
            _discard_stdout()
            click.echo(
                f"Error: The output cannot be written: {error.strerror or error}.\n"
                "Check where stdout goes, and the space left there.",
                err=True,
            )
            sys.exit(1)


def _check_stdout() -> None:
    if sys.stdout is None:  # it was closed before the start
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def _discard_stdout() -> None:
    """Send what is left to nowhere; Python would try to write it again at its end."""
    with contextlib.suppress(OSError, AttributeError):  # no stdout, or not a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(sacvit_deploy.__version__, prog_name="sacvit-deploy")
def main() -> None:
    """Export and deploy input-adaptive Vision Transformers.

    A checkpoint becomes a bundle of ONNX graphs; a bundle classifies pictures without torch.

    \b
    Start here:
      sacvit-deploy demo
      sacvit-deploy export model.safetensors -o bundle
      sacvit-deploy run bundle cat.jpg photos/
    """


if __name__ == "__main__":
    main()
