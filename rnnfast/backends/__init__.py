"""Adapters to other frameworks: each module imports its host, which must be installed."""
