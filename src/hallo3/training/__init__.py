"""Training: the paper's phases, its comparisons, and the embedded model's recipe, from data to bundle."""

from ..errors import hush_libraries

hush_libraries()  # before the modules here read diffusers, which speaks of torchao when it is read
