"""The command line: ``osmosis``, of the extra ``osmosis-isolation[cli]``."""

from osmosis.cli.app import main

__all__ = ["main"]
