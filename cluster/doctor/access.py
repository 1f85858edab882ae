"""Checks of who can reach a Ray cluster. Whoever can, runs code as the user of its processes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ray._raylet import AuthenticationMode, get_authentication_mode  # type: ignore[attr-defined]

from cluster.doctor.checks import Check
from cluster.local import is_loopback_cluster

PORTS = "by default 6379 (GCS), 8265 (dashboard and jobs) and 10001 (Ray Client), and all that nodes open to each other"


def token_file() -> Check:
    """Check that other users of this machine cannot read Ray's token."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not path.is_file():
        return Check(
            "token", "ok", f"there is no {path}; a search on this machine makes a token of its own, in no file"
        )
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return Check("token", "warn", f"other users may read {path} (mode {mode:o})", f"chmod 600 {path}")
    return Check("token", "ok", f"only you can read {path}")


def cluster_access() -> Check:
    """Check that the joined cluster asks for a token."""
    if is_loopback_cluster():
        return Check("access", "ok", "Ray listens on this machine's loopback only")
    if get_authentication_mode() == AuthenticationMode.TOKEN:
        return Check("access", "ok", f"the cluster asks for a token; still shield Ray's ports ({PORTS})")
    fix = f"set RAY_AUTH_MODE=token on every node (docs/cluster.md), and shield Ray's ports ({PORTS})"
    return Check("access", "warn", "the cluster asks for no token: whoever reaches its ports runs code on it", fix)
