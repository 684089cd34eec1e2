"""Taste, as small plugins behind the protocols of core/policy.py. They import the core only."""
