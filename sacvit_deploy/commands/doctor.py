"""sacvit-deploy doctor."""

from __future__ import annotations

import click

from sacvit_deploy.commands import options
from sacvit_deploy.engines.doctor import examine


@click.command("doctor")
@options.json_option
def command(as_json: bool) -> None:
    """Say what this machine can do, and how to get what is missing.

    \b
    Example:
      sacvit-deploy doctor
    """
    findings = examine()
    if as_json:
        options.echo_json({finding.name: finding.to_dict() for finding in findings})
        return
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        click.echo(f"{finding.name:<{width}}  {finding.found}")
        if finding.fix:
            click.echo(f"{'':<{width}}  -> {finding.fix}")
