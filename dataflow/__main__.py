"""``python -m dataflow``: the command line."""

from dataflow.cli.main import main

main()
