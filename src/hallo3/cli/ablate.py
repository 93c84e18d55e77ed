"""`hallo3 ablate`: the paper's comparisons, trained and measured on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from .train import say


def command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Settings in YAML; see configs/ablation.yaml.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME=VALUE …", help="Settings that win over the file: out=work/ablation seeds=[0]"),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show the trainings and what is left of them; train nothing.")
    ] = False,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Take trainings in `out` without an ablation.json as made with CONFIG.")
    ] = False,
) -> None:
    """Train every variant that the paper compares, on drawn people, and write a report with an answer to each claim.

    Ways of speech and of identity conditioning, motion frames, scales of guidance. Data, trainings, measurements and
    report/ go to `out`. Stopped, the same command goes on where it was.
    """
    from ..training.ablation import check_ablation, check_work, folder, read_ablation, runs, train_all
    from ..training.ablation_measures import measure_all
    from ..training.ablation_report import write_report

    ablation = read_ablation(config, settings or ())
    check_ablation(ablation)
    check_work(ablation, adopt, note=not plan)
    if plan:
        for run in runs(ablation):
            print(f"{run}: {'trained' if (folder(ablation, run) / 'bundle').exists() else 'to do'}")
        return
    train_all(ablation, say)
    measure_all(ablation, say)
    print(write_report(ablation, config, settings or ()))
