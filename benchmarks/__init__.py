"""Benchmarks: ratios within one run, never seconds to be compared between machines."""
