"""`python -m sacvit_deploy`: the command line."""

from sacvit_deploy.cli import main

if __name__ == "__main__":
    main(prog_name="sacvit-deploy")
