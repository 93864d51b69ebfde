"""`python -m sacvit_deploy`: the command line."""

from sacvit_deploy.cli import main

main(prog_name="sacvit-deploy")
