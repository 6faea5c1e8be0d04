"""``python -m osmosis`` is the command ``osmosis``."""

from osmosis.cli.app import main

if __name__ == "__main__":
    main()
