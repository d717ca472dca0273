"""Attacks on the gateway: more than 100,000 cases of what strangers may send, against doors in a process of their own.

``python -m attacks [--quick] [--seed N] [--cases N]``; `docs/how-to/doors.md` says what the doors withstand.
"""
