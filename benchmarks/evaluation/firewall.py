"""Firewall rules: take away what a runtime added, and nothing that others did meanwhile."""

from __future__ import annotations

import os
import re
import subprocess

__all__ = ["restored", "save", "take_away"]

# Chains and links of Docker and of CNI, as they stand in a rule.
OURS = re.compile(r"DOCKER|docker0|\bbr-[0-9a-f]{12}\b|CNI-|cni-podman|NETAVARK|podman\d")
BUILT_IN = ("INPUT", "FORWARD", "OUTPUT", "PREROUTING", "POSTROUTING")

Tables = dict[str, tuple[dict[str, str], list[str]]]  # table -> chain -> its line, rules


def save(tool: str, path: str) -> str:
    """Return the rules as ``iptables-save`` or ``ip6tables-save`` prints them, "" if it fails."""
    done = subprocess.run(
        [f"{tool}-save"], env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    return done.stdout if done.returncode == 0 else ""


def take_away(tool: str, path: str, before: str) -> None:
    """Load what ``restored`` says, if it is not what is there."""
    now = save(tool, path)
    text = restored(before, now)
    if _tables(text) != _tables(now):
        env = {**os.environ, "PATH": path}
        subprocess.run([f"{tool}-restore"], input=text, text=True, env=env, check=True)


def restored(before: str, now: str) -> str:
    """Return the rules of *now* without what a runtime added since *before*.

    A chain that was there keeps the policy it had; a rule that was there and went away stays
    away, since whoever took it away was not us.
    """
    had = _tables(before)
    lines = []
    for table, (chains, rules) in _tables(now).items():
        old_chains, old_rules = had.get(table, ({}, []))
        lines.append(f"*{table}")
        for chain, line in chains.items():
            if chain in old_chains:
                lines.append(old_chains[chain])
            elif chain in BUILT_IN:
                lines.append(f":{chain} ACCEPT [0:0]")
            elif not OURS.search(chain):
                lines.append(line)
        lines += [rule for rule in rules if rule in old_rules or not OURS.search(rule)]
        lines.append("COMMIT")
    return "\n".join([*lines, ""])


def _tables(text: str) -> Tables:
    tables: Tables = {}
    for line in text.splitlines():
        if line.startswith("*"):
            chains, rules = tables.setdefault(line[1:], ({}, []))
        elif line.startswith(":"):
            chains[line[1:].split(" ")[0]] = re.sub(r"\[\d+:\d+\]", "[0:0]", line)
        elif line.startswith("-"):
            rules.append(line)
    return tables
