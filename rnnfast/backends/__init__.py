"""Adapters to other frameworks. Each module imports its host framework, which must be installed."""
