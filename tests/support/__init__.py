"""Test helpers: cells, random problems, comparisons, guarded buffers and subprocesses."""
