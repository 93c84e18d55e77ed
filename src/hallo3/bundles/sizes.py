"""How large a bundle is, read from the headers of its files before anything is loaded."""

import math
from pathlib import Path

from .index import read_index
from .parts import PARTS, read_header, weight_files


def parameter_count(folder: Path) -> int:
    """Numbers in all weights of a bundle. Raises UserError for a bundle that is damaged or half copied."""
    parts = [PARTS[name] for name in read_index(folder).parts if PARTS[name].weights is not None]
    files = [file for part in parts for file in weight_files(folder / part.name, str(part.weights))]
    return sum(math.prod(tensor["shape"]) for file in files for tensor in read_header(file).values())
