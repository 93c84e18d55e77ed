"""The page in a browser: what it shows (`page`, Gradio), what it asks (`answers`), who is there (`visits`, `door`).

`events`: what a browser may say. `temporary`: where all of it lies, until the page ends.
"""

import os
from pathlib import Path


def settle_gradio(folder: Path) -> None:
    """Tells Gradio, which is imported after this, to write into `folder` alone and to call nobody."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    os.environ["GRADIO_EXAMPLES_CACHE"] = str(folder / "examples")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    for name in ("GRADIO_SHARE", "GRADIO_SSR_MODE", "GRADIO_MCP_SERVER", "GRADIO_ALLOWED_PATHS", "GRADIO_ROOT_PATH"):
        os.environ.pop(name, None)
