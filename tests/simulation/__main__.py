"""python -m tests.simulation --seeds FROM:TO [--seconds N]"""

from __future__ import annotations

import logging
import sys
import time

import click

from tests.simulation.run import MOST_FAULTS, run_seeds


@click.command()
@click.option("--seeds", default="0:1000", help="FROM:TO, the last one not included.")
@click.option("--seconds", default=0.0, help="Stop after so long.")
@click.option("--faults", default=MOST_FAULTS, help="At most so many in a run.")
@click.option("--all", "all_", is_flag=True, help="Go on after the first that fails.")
def main(seeds: str, seconds: float, faults: int, *, all_: bool) -> None:
    """Run seeds; the first that fails is shown with its pipeline and its steps."""
    logging.disable(logging.CRITICAL)
    first, _, last = seeds.partition(":")
    started, count, failed = time.monotonic(), 0, 0
    for found in run_seeds(int(first), int(last or int(first) + 1), faults):
        count += 1
        if found is not None:
            failed += 1
            click.echo(str(found) if not all_ else str(found).partition("\n")[0][:400])
            if not all_:
                break
        if seconds and time.monotonic() - started > seconds:
            break
    took = time.monotonic() - started
    click.echo(f"{count} runs in {took:.1f} s, {count / took * 60:.0f} a minute, {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
