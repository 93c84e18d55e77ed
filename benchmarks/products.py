"""Linear layers by MKL and by oneDNN on this processor: `python benchmarks/products.py [--threads 2]`.

Medians of both in turn, in one run; the shapes are those of the embedded and of the published denoiser. `hallo3` goes
by a rule (`networks/products.py`), which the last line repeats. Last figures: docs/speed.md.
"""

from typing import Annotated

import torch
import typer
from torch.nn import functional as F

from hallo3.networks import products
from hallo3.runtime.devices import device_name
from hallo3.runtime.measured import seconds_of

SHAPES = [(16, 192, 192), (products.ROWS, 192, 192), (1000, 192, 768), (1000, 768, 192), (1000, 3072, 3072)]


@torch.no_grad()
def main(threads: Annotated[int, typer.Option(min=1)] = 2, rounds: Annotated[int, typer.Option(min=1)] = 15) -> None:
    """Print milliseconds and the ratio for every shape."""
    torch.set_num_threads(threads)
    rule, rows_needed, products.ROWS = products.onednn_is_faster(), products.ROWS, 1
    print(f"{device_name(torch.device('cpu'))}, {threads} threads\nrows × in → out        MKL ms  oneDNN ms   ratio")
    for rows, columns, made in SHAPES:
        x, weight, bias = torch.randn(rows, columns), torch.randn(made, columns), torch.randn(made)
        products.onednn_is_faster = lambda: True
        torch.testing.assert_close(products.product(x, weight, bias), F.linear(x, weight, bias), rtol=1e-4, atol=1e-3)
        ways = {"MKL": lambda: F.linear(x, weight, bias), "oneDNN": lambda: products.product(x, weight, bias)}  # noqa: B023
        found = seconds_of(ways, torch.device("cpu"), rounds)
        shape = f"{rows} × {columns} → {made}"
        print(
            f"{shape:<20} {found['MKL'] * 1e3:8.3f} {found['oneDNN'] * 1e3:11.3f} {found['MKL'] / found['oneDNN']:7.2f}"
        )
    print(f"by the rule, float32 products of {rows_needed} rows and more go to {'oneDNN' if rule else 'MKL'}")


if __name__ == "__main__":
    typer.run(main)
