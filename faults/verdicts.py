"""Judging one edge, in arrays: what is lost, invented, there twice, out of order, or away from its key's partition."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from faults.evidence import Found
from faults.story import LOTS, PARTITIONS, PIECES, Edge, Integers, Story, lot, murmur2, silent, word


@dataclass
class Verdict:
    """What is wrong with one topic: numbers of records, a few of each kind of fault. `again`: how many came again."""

    topic: str
    lost: list[int] = field(default_factory=list)
    invented: list[int] = field(default_factory=list)
    again: int = 0
    other_ids: int = 0
    reordered: list[int] = field(default_factory=list)
    strayed: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)


def judge_edge(found: Found, edge: Edge, story: Story, count: int) -> Verdict:
    """Hold an edge against the first `count` records. Order per key is that of first occurrences, by code."""
    wanted = edge.wanted(story, count)
    verdict = Verdict(found.topic, strange=found.strange)
    code, partition, _, identity = found.arrays()
    known, first, counts = np.unique(code, return_index=True, return_counts=True)
    verdict.lost = np.setdiff1d(wanted, known).tolist()
    verdict.invented = np.setdiff1d(known, wanted).tolist()
    verdict.again = int((counts - 1).sum())
    by_code = np.lexsort((identity, code))
    same = code[by_code][1:] == code[by_code][:-1]
    verdict.other_ids = int((same & (identity[by_code][1:] != identity[by_code][:-1])).sum())
    # One id is one record: two codes under one id would be as wrong as two ids under one code.
    verdict.other_ids += len(known) - len(np.unique(identity[first]))
    verdict.reordered = _reordered(code[np.sort(first)], story, edge)
    verdict.strayed = _strayed(code, partition, story, edge)
    return verdict


def _reordered(code: Integers, story: Story, edge: Edge) -> list[int]:
    """Codes, in log order, that come after a later one of their key (of both keys, where there is a second)."""
    numbers = code // PIECES
    keys = story.keys[numbers] * LOTS + (numbers % LOTS if edge.by_lot else 0)
    order = np.argsort(keys, kind="stable")
    ordered, of = code[order], keys[order]
    back = (ordered[1:] < ordered[:-1]) & (of[1:] == of[:-1])
    return [int(c) for c in ordered[1:][back]]


def _strayed(code: Integers, partition: Integers, story: Story, edge: Edge) -> list[str]:
    numbers = code // PIECES
    if edge.by_lot:
        homes = np.array([murmur2(lot(n).encode()) % PARTITIONS for n in range(LOTS)])
        return sorted({lot(int(n)) for n in numbers[homes[numbers % LOTS] != partition]})
    keys = story.keys[numbers]
    return sorted({word(int(k)) for k in keys[story.homes[keys] != partition]})


def late_outputs(inputs: Found, outputs: Found, edge: Edge) -> dict[int, tuple[Integers, Integers]]:
    """By partition: offsets of inputs, and how far the output's log must reach once all before are finished.

    That is the running maximum, over inputs in log order, of the offset of the first output of each.
    """
    made = {}
    in_code, in_partition, in_offset, _ = inputs.arrays()
    out_code, _, out_offset, _ = outputs.arrays()
    if edge.which is silent:  # a timer is not part of the work of the record that set it
        out_code, out_offset = out_code[out_code % PIECES == 0], out_offset[out_code % PIECES == 0]
    numbers = out_code // PIECES
    # Of several pieces the last is the one that finishes the record; of doubles the first counts.
    known, first = np.unique(out_code, return_index=True)
    last = (
        np.zeros(int(max(in_code.max(initial=0) // PIECES, numbers.max(initial=0))) + 1, dtype=np.int64) - 1
    )
    np.maximum.at(last, known // PIECES, out_offset[first])
    for number in range(PARTITIONS):
        mine = in_partition == number
        offsets = in_offset[mine]
        needed = np.maximum.accumulate(last[in_code[mine] // PIECES]) if len(offsets) else offsets
        made[number] = (offsets, needed)
    return made
