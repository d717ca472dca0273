"""``python -m attacks``: the last line is one JSON object; exit status 1 when the door did not withstand."""

from __future__ import annotations

import json
import secrets
import sys

import click

from attacks.mutants import MUTANTS
from attacks.run import FULL_CASES, QUICK_CASES, Settings, run
from attacks.target import Options


@click.command()
@click.option("--quick", is_flag=True, help=f"{QUICK_CASES:,} cases and 300 idle connections.")
@click.option("--seed", type=int, default=None, help="Chooses the cases. Default: a new one.")
@click.option("--cases", type=int, default=None, help=f"Cases made by chance. Default: {FULL_CASES:,}.")
@click.option("--crowd", type=int, default=None, help="Idle connections. Default: 10,000.")
@click.option("--broker", is_flag=True, help="A real broker behind the door, in place of a log in memory.")
@click.option(
    "--mutant",
    type=click.Choice(sorted(MUTANTS)),
    multiple=True,
    help="Break the door: the verdict must say so.",
)
def main(
    quick: bool, seed: int | None, cases: int | None, crowd: int | None, broker: bool, mutant: tuple[str, ...]
) -> None:
    """Throw at a gateway what strangers may send."""
    chosen = Settings(
        seed=secrets.randbelow(1 << 31) if seed is None else seed,
        cases=cases if cases is not None else QUICK_CASES if quick else FULL_CASES,
        crowd=crowd if crowd is not None else 300 if quick else Settings.crowd,
        options=Options(mutants=mutant, broker=broker),
    )
    verdict = run(chosen, lambda line: click.echo(line, err=True))
    click.echo(json.dumps(verdict))
    sys.exit(0 if verdict["ok"] else 1)


if __name__ == "__main__":
    main()
