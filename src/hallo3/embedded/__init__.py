"""The embedded bundle: data only."""
