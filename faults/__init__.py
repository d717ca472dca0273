"""The fault suite: real processes on a real broker, faults chosen by a seed, and a judge that shares nothing with them.

``python -m faults [--quick] [--seed N] [--records N]``; `docs/how-to/faults.md` says how to read what it prints.
"""
