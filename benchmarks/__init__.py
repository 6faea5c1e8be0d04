"""Benchmarks with fair peers; ``make bench`` prints one table of ratios at the end."""
