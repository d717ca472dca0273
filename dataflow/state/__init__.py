"""Keyed state and timers: a store for each task, what it changed since the last commit, and its changelog. Pure."""

from dataflow.state.api import BEFORE_ALL_MS, KeyedState, Timer, TimerClock

__all__ = ["BEFORE_ALL_MS", "KeyedState", "Timer", "TimerClock"]
