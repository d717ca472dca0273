"""``python -m faults``: run the suite, say per invariant what was tried and found, exit with 1 if anything is wrong."""

from __future__ import annotations

import secrets
import sys
import time
from collections import Counter
from dataclasses import replace

import click

from faults.run import report, run, settings, summary


@click.command()
@click.option("--quick", is_flag=True, help="One broker, few records, each sort of fault about once.")
@click.option(
    "--seed", type=int, default=None, help="Chooses input, faults and their order. Default: a new one."
)
@click.option("--records", type=int, default=0, help="Records of the exactly-once pipeline.")
@click.option("--only", multiple=True, help='Just this fault, as "KIND" or "KIND:CHOICE"; may be repeated.')
@click.option(
    "--mutant", multiple=True, help='Break the workers of a pipeline, as "PIPELINE:NAME": see faults.mutants.'
)
@click.option("--keep", is_flag=True, help="Leave the folder with all logs.")
def main(
    quick: bool, seed: int | None, records: int, only: tuple[str, ...], mutant: tuple[str, ...], keep: bool
) -> None:
    """Kill, freeze, cut and overfill a running engine, and judge what it leaves."""
    began = time.monotonic()
    chosen = settings(secrets.randbelow(1 << 31) if seed is None else seed, records, quick=quick)

    if only:
        chosen = replace(chosen, faults=Counter(_pair(fault) for fault in only))

    def tell(line: str) -> None:
        click.echo(line, err=True)

    judged = run(chosen, tell, mutants=dict(_pair(m) for m in mutant), keep=keep)
    report(judged, tell)
    tell(f"\n{time.monotonic() - began:.0f} s in all")
    click.echo(summary(judged, chosen.seed))
    sys.exit(0 if judged.sound else 1)


def _pair(text: str) -> tuple[str, str]:
    first, _, second = text.partition(":")
    return first, second


if __name__ == "__main__":
    main()
