"""Docker, rootful, from a daemon of our own; its variants; and gVisor as its runtime."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.evaluation import workload
from benchmarks.evaluation.base import (
    CannotRun,
    Handle,
    Instances,
    Stage,
    cache_dir,
    comm,
    command,
    descendants,
    need,
    parent,
    unmount_below,
    wait_for,
)

__all__ = ["VARIANTS", "Docker", "Gvisor", "Variant"]

IMAGE = "osmosis-evaluation"


@dataclass(frozen=True)
class Variant:
    """Options of ``docker run`` for each container, and where the application finds Redis."""

    every: tuple[str, ...] = ()
    db: tuple[str, ...] = ()
    app: tuple[str, ...] = ()
    bystander: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()  # made first
    host_network: bool = False
    daemon: tuple[str, ...] = ()  # options of dockerd
    reason: str = ""
    volume: str = ""  # made first; the database keeps its log of changes there, in /shared


VARIANTS: dict[str, Variant] = {
    "docker": Variant(),
    "docker-pid-host": Variant(app=("--pid=host",)),
    "docker-network-host": Variant(every=("--network=host",), host_network=True),
    "docker-ipc-container": Variant(db=("--ipc=shareable",), app=("--ipc=container:db",)),
    "docker-volume": Variant(
        db=("--volume=shared:/shared",), app=("--volume=shared:/shared",), volume="shared"
    ),
    "docker-socket": Variant(app=("--volume={socket}:/var/run/docker.sock",)),
    "docker-privileged": Variant(app=("--privileged",)),
    "docker-cap-drop-all": Variant(every=("--cap-drop=ALL",)),
    "docker-two-networks": Variant(
        db=("--network=one",),
        app=("--network=one",),
        bystander=("--network=two",),
        networks=("one", "two"),
    ),
    "docker-userns": Variant(daemon=("--userns-remap=default",)),
}


class Docker:
    """Three containers of a daemon with its own data, socket and pid file."""

    def __init__(self, name: str = "docker", variant: Variant | None = None) -> None:
        self.name = name
        self.variant = variant or VARIANTS[name]
        self._stage: Stage | None = None
        self._host: tuple[str, ...] = ()
        self.note = ""

    def up(self, work: Path) -> Instances:
        """Start dockerd, import the image, run the containers, wait for writes."""
        need("dockerd", "docker", "containerd", "runc", package="docker.io")
        need("iptables", package="iptables")
        if Path("/var/run/docker.pid").exists():
            raise CannotRun("a Docker daemon runs on this machine: it would share its bridge")
        tar = workload.rootfs_tar(cache_dir())
        stage = self._stage = Stage(work)
        self._daemon(stage)
        self._docker("import", tar, IMAGE, timeout=300)
        v = self._possible()
        for network in v.networks:
            self._docker("network", "create", network)
        if v.volume:
            self._docker("volume", "create", v.volume)
        port = workload.free_port() if v.host_network else 6379
        address = "127.0.0.1"
        keep = "/shared" if v.volume else ""
        self._run("db", v.db, workload.database(port, keep=keep))
        if not v.host_network:
            address = self._inspect(
                "db", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
            )
        self._run("app", v.app, workload.application(address, port))
        self._run("bystander", v.bystander, workload.bystander())
        self._writes(address, port)
        return self.pids()

    def pids(self) -> Instances:
        """Return each container's first process, the daemons and the shims."""
        db, app, bystander = (
            int(self._inspect(c, "{{.State.Pid}}")) for c in ("db", "app", "bystander")
        )
        daemons = [p for p in descendants(self._pid) if comm(p) in ("dockerd", "containerd")]
        shims = sorted({parent(p) for p in (db, app, bystander)})
        names = {self._inspect(c, "{{.Id}}"): c for c in ("db", "app", "bystander")}
        return Instances(db, app, bystander, {"daemon": daemons, "shim": shims}, names)

    def _writes(self, address: str, port: int) -> None:
        workload.writes(host=address, port=port)

    def _possible(self) -> Variant:
        """Return the variant, or as near to it as this machine's capabilities let."""
        if "--privileged" not in self.variant.app or not _lacking():
            return self.variant
        self.note = (
            "root lacks capabilities here, so --privileged fails: all that root has are given, "
            "without seccomp and AppArmor; devices and /sys stay as in any container"
        )
        given = ["--cap-drop=ALL", *(f"--cap-add={c}" for c in _held_names())]
        options = ("--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined")
        return replace(self.variant, app=(*given, *options))

    def down(self) -> None:
        """Remove the containers, stop the daemon, unmount, put the network back."""
        if self._stage:
            self._stage.close()

    def _daemon(self, stage: Stage) -> None:
        stage.keep_network("docker0")
        stage.keep_cgroups("docker")
        data, run = stage.folder("docker"), stage.folder("docker-run")
        stage.on_close("mounts", lambda: unmount_below(data, run))
        self._host = ("--host", f"unix://{run}/docker.sock")
        config = run / "daemon.json"
        config.write_text(json.dumps(self.config()))
        argv: tuple[str | Path, ...] = (
            "dockerd",
            "--config-file",
            config,
            "--data-root",
            data,
            "--exec-root",
            run,
        )
        argv += ("--pidfile", run / "docker.pid", *self._host, *self.variant.daemon)
        remap = "--userns-remap=default" in self.variant.daemon
        if remap and "dockremap" not in Path("/etc/passwd").read_text():
            stage.on_close("user dockremap", _forget_remap)
        self._await(stage, stage.spawn(*argv, log="dockerd"))

    def _await(self, stage: Stage, daemon: Handle) -> None:
        """Wait until the daemon answers; its containers are removed before it is stopped."""
        self._pid = daemon.pid
        stage.on_close("containers", self._remove)

        def ready() -> bool:
            if not daemon.alive():
                raise CannotRun(f"dockerd ended: {stage.log('dockerd')[-400:]}")
            return bool(self._docker("version", timeout=5))

        wait_for("dockerd", ready, 60)

    def config(self) -> dict[str, object]:
        """Return daemon.json."""
        return {}

    def _docker(self, *argv: str | Path, timeout: float = 60) -> str:
        return command("docker", *self._host, *argv, timeout=timeout).strip()

    def _run(self, name: str, options: tuple[str, ...], argv: list[str]) -> None:
        socket = self._host[1].removeprefix("unix://")
        own = [o.format(socket=socket) for o in (*self.variant.every, *options)]
        self._docker("run", "--detach", f"--name={name}", *own, IMAGE, *argv)

    def _inspect(self, name: str, form: str) -> str:
        return self._docker("inspect", "--format", form, name)

    def _remove(self) -> None:
        try:
            names = self._docker("ps", "--all", "--quiet").split()
            if names:
                self._docker("rm", "--force", *names)
            for network in self.variant.networks:
                self._docker("network", "rm", network)
        except (RuntimeError, subprocess.TimeoutExpired):
            # The daemon is gone: what it left is stopped by what we know, the shims' exec root.
            pass


class Gvisor(Docker):
    """The same under runsc: each container's kernel is a process, the sentry."""

    def __init__(self) -> None:
        super().__init__(
            "gvisor", Variant(every=("--runtime=runsc", "--network=host"), host_network=True)
        )

    def up(self, work: Path) -> Instances:
        """Find runsc first."""
        self._binary = _runsc(cache_dir())
        return super().up(work)

    def config(self) -> dict[str, object]:
        """Cgroups and its own network stack need more than these machines give.

        Debian's later builds (20240729) panic in assertTaskGoroutine on a task's first sleep;
        the one of bookworm does not, and has ptrace in place of systrap.
        """
        args = ["--ignore-cgroups", "--network=host", "--platform=ptrace"]
        return {"runtimes": {"runsc": {"path": str(self._binary), "runtimeArgs": args}}}

    def pids(self) -> Instances:
        """Add the sentries: the only processes of the containers that the host sees."""
        found = super().pids()
        found.others["sentry"] = [found.db, found.app, found.bystander]
        return found


def _forget_remap() -> None:
    """Remove the user that dockerd makes for --userns-remap, and its group."""
    # --force: others may use ids of the range that was its subordinate one.
    command("userdel", "--force", "dockremap")
    command("groupdel", "dockremap", check=False)  # gone with the user, on most systems


def _held_names() -> list[str]:
    """Return the names of the capabilities that root has here, as docker spells them."""
    status = Path("/proc/self/status").read_text()
    held = int(status.partition("CapBnd:")[2].split()[0], 16)
    return [c for bit, c in enumerate(_CAPABILITIES[:_KNOWN]) if held >> bit & 1]


# include/uapi/linux/capability.h, in order
_CAPABILITIES = tuple(
    words
    for line in (
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP",
        "LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER",
        "SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE",
        "SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP",
        "MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ",
    )
    for words in line.split()
)
_KNOWN = len(_CAPABILITIES)  # Docker 20.10 knows no later one


def _lacking() -> bool:
    """Whether root lacks a capability here: runc cannot give what it has not."""
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    status = Path("/proc/self/status").read_text()
    held = int(status.partition("CapBnd:")[2].split()[0], 16)
    return held != (2 << last) - 1


def _runsc(cache: Path) -> Path:
    binary = cache / "runsc" / "usr" / "bin" / "runsc"
    if not binary.exists():
        folder = cache / "runsc"
        folder.mkdir(parents=True, exist_ok=True)
        command("apt-get", "download", "runsc", cwd=folder, timeout=300)
        command("dpkg", "-x", max(folder.glob("runsc_*.deb")), folder)
    return binary
