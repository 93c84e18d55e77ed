"""Devices, dtypes and memory: one adapter over what diffusers offers."""
