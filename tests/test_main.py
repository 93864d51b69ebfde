from __future__ import annotations

import subprocess
import sys

import sacvit_deploy


def test_the_package_is_the_command():
    command = [sys.executable, "-m", "sacvit_deploy", "--version"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout == f"sacvit-deploy, version {sacvit_deploy.__version__}\n"
