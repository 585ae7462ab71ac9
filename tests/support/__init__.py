"""Helpers of the tests: cells, random problems, comparisons, guarded buffers, and programs that run as processes."""
