"""Meters and metrics as plain functions over arrays."""
