"""Benchmarks: both sides in one run, medians and ratios; never part of the tests."""
