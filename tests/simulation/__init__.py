"""The engine's real parts under a simulated log, clock and processes, driven by one seed; checked against a plain model."""
