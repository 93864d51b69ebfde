"""Where compiled kernels are kept between runs of the program."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sacvit_deploy.bundle import Bundle


def cache_folder(bundle: Bundle) -> Path:
    """A folder that belongs to exactly the files of this bundle; it may not exist yet.

    A runtime tells its caches apart by the structure of a graph, so that two bundles with the same
    network and other weights would otherwise share one. The bundle's own folder may be read-only,
    and every file in it is covered by a hash.
    """
    files = bundle.manifest.files
    digest = hashlib.sha256("".join(files[name].sha256 for name in sorted(files)).encode())
    return _user_caches() / "sacvit-deploy" / digest.hexdigest()[:24]


def _user_caches() -> Path:
    chosen = os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen)
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # no HOME and no such user, as in a container with a user id of its own
        return Path(tempfile.gettempdir())
