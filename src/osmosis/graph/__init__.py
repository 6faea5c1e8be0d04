"""The OSmosis graph of any system: data only, no operating system and no questions."""
