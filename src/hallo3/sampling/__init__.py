"""The published schedule and solver, and guidance."""
