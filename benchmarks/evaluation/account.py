"""An ordinary user who runs containers: with subordinate ids, a runtime directory and tun."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.evaluation.base import CannotRun, Stage, need

__all__ = ["USER", "Account", "ordinary_user"]

USER = "osmosis-eval"


@dataclass(frozen=True)
class Account:
    """Who a rootless runtime runs as: its uid, and what starts a command as this user."""

    uid: int
    home: Path
    run: Path  # XDG_RUNTIME_DIR
    prefix: tuple[str, ...]
    env: dict[str, str]


def ordinary_user(stage: Stage) -> Account:
    """Make the user, gone when *stage* closes; CannotRun if a rootless runtime cannot work."""
    need("newuidmap", package="uidmap")
    need("slirp4netns", package="slirp4netns")
    need("runuser", package="util-linux")
    if not Path("/dev/net/tun").exists():
        raise CannotRun("slirp4netns needs /dev/net/tun")
    uid = stage.user(USER)
    stage.mode("/dev/net/tun", 0o666)
    home, run = stage.work / f"home-{USER}", Path(f"/run/user/{uid}")
    env = {"HOME": str(home), "XDG_RUNTIME_DIR": str(run), "USER": USER, "LOGNAME": USER}
    env |= {"XDG_CONFIG_HOME": "", "XDG_DATA_HOME": "", "XDG_CACHE_HOME": ""}
    return Account(uid, home, run, ("runuser", "-u", USER, "--"), env)
