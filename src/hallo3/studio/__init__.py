"""Draws talking portraits with ground truth; only draws."""
