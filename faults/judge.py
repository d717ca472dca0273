"""The 14 invariants, each by name: what was tried that could have broken it, and what was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from faults import conduct
from faults.callers import PIPELINES
from faults.case import TITLES, Case, Finding, some, tally
from faults.evidence import Letter, uncommitted
from faults.expired import unexplained
from faults.project import HANDED_DEADLINE_S
from faults.story import EDGES, EXACTLY_ONCE, FAILING, FATAL, LARGE, PIECES
from faults.verdicts import Verdict, judge_edge, late_outputs

# An open transaction: its timeout, the coordinator's next look for such, and ours.
MAX_STALL_S: Final = 10.0 + 1.0 + 4.0 + 5.0


@dataclass
class Judgement:
    findings: list[Finding]
    verdicts: dict[str, Verdict]
    lost: int
    duplicated: int
    reordered: int
    records: int
    faults: int

    @property
    def held(self) -> int:
        return sum(f.held for f in self.findings)

    @property
    def sound(self) -> bool:
        return not any(f.wrong for f in self.findings)


def judge(case: Case) -> Judgement:
    verdicts = {
        edge.topic: judge_edge(
            case.evidence.edges[edge.topic], edge, case.story, case.written[f"{pipeline}.events"]
        )
        for pipeline, edges in EDGES.items()
        for edge in edges
    }
    findings = {number: Finding(number) for number in TITLES}
    if case.incidents:
        _no_loss(case, verdicts, findings[1])
        _no_doubles(case, verdicts, findings[2])
        _order(case, verdicts, findings[3])
    _contiguous(case, findings[4])
    _fencing(case, verdicts, findings[5])
    _together(case, verdicts, findings[6])
    _aborted(case, findings[7])
    _poison(case, findings[8])
    conduct.backpressure(case, findings[9])
    conduct.rebalance(case, findings[10])
    conduct.versions(case, findings[11])
    conduct.holes(case, findings[12])
    _homes(verdicts, findings[13])
    conduct.flat(case, findings[14])
    lost, duplicated, reordered = totals(verdicts)
    written = sum(case.written.values()) + sum(map(len, case.evidence.requests.values()))
    return Judgement(
        [*findings.values()], verdicts, lost, duplicated, reordered, written, len(case.incidents)
    )


def exactly_once(topic: str) -> bool:
    return topic.partition(".")[0] in EXACTLY_ONCE


def totals(verdicts: Mapping[str, Verdict]) -> tuple[int, int, int]:
    """Lost, duplicated where that is forbidden, reordered."""
    exactly = [v for v in verdicts.values() if exactly_once(v.topic)]
    return (
        sum(len(v.lost) for v in verdicts.values()),
        sum(v.again for v in exactly) + sum(v.other_ids for v in verdicts.values()),
        sum(len(v.reordered) for v in verdicts.values()),
    )


def _no_loss(case: Case, verdicts: Mapping[str, Verdict], finding: Finding) -> None:
    finding.tried = f"{sum(case.written.values()):,} records under {tally(case)}"
    for verdict in verdicts.values():
        finding.wrong += some(verdict.lost, f"codes missing on {verdict.topic}")
        finding.wrong += some(verdict.invented, f"codes on {verdict.topic} that nothing makes")
        finding.wrong += some(verdict.strange, f"records on {verdict.topic} that are not what they should be")
    for topic, count in case.written.items():
        code, *_ = case.evidence.inputs[topic].arrays()
        if len(code) != count or len(np.unique(code)) != count:
            finding.wrong.append(
                f"{topic} holds {len(code)} records, {count} were written: the input itself is wrong"
            )
        finding.wrong += some(case.evidence.inputs[topic].strange, f"records on {topic} that nobody wrote")
        _buried(case, topic, finding)
    finding.wrong += some(list(case.refused), "input records refused by the broker")
    for pipeline in PIPELINES:
        _asked(case, pipeline, finding)
    _same_story(case, finding)
    kinds = Counter(letter.error for letter in case.evidence.letters)
    finding.found = (
        f"{len(case.evidence.letters)} dead letters ({', '.join(f'{n} {e}' for e, n in kinds.items())})"
    )


def _buried(case: Case, topic: str, finding: Finding) -> None:
    """Dead letters of an input: exactly those that must be, once each where that is promised."""
    pipeline = topic.partition(".")[0]
    kinds = case.story.kinds[: case.written[topic]]
    wanted = set(np.flatnonzero(np.isin(kinds, FATAL[pipeline])).tolist())
    known = [x for x in case.evidence.letters if x.code >= 0 and x.topic == topic]
    letters = Counter(letter.code // PIECES for letter in known)
    finding.wrong += some(sorted(wanted - letters.keys()), f"records of {topic} missing in the dead letters")
    finding.wrong += some(sorted(letters.keys() - wanted), f"records of {topic} wrongly in the dead letters")
    if exactly_once(topic):
        twice = [n for n, count in letters.items() if count > 1]
        finding.wrong += some(twice, f"records of {topic} buried more than once")
    others = [
        x for x in case.evidence.letters if x.topic not in case.written and x.topic.startswith(pipeline)
    ]
    finding.wrong += some([(x.topic, x.offset, x.error) for x in others], "unexpected dead letters")


def _asked(case: Case, pipeline: str, finding: Finding) -> None:
    """Every answer that a caller had is the committed record of its id; every request has its record, exactly once one.

    Strangers' records on the lanes of `handed` are requests like the others. Where a clock went past the deadline of a
    request to it, its caller was told so instead: see `faults.expired`.
    """
    answers = case.evidence.answers[pipeline]
    committed = {record_id: (n, answer) for record_id, n, answer in answers}
    requests = Counter(request.record_id for request in case.evidence.requests[pipeline])
    records = Counter(record_id for record_id, *_ in answers)
    asked = [told for told in case.answers if told.pipeline == pipeline]
    answered = [told for told in asked if told.status == 200]
    if len(answered) * 2 < len(asked):
        finding.wrong.append(f"of {len(asked)} callers of {pipeline} only {len(answered)} had an answer")
    for told in answered:
        if committed.get(told.record_id) != (told.n, told.answer):
            finding.wrong.append(
                f"caller {told.n} of {pipeline} was told {told.answer} as {told.record_id}; committed: {committed.get(told.record_id)}"
            )
    wrong = [n for n, answer in committed.values() if answer != n * 3 + 1]
    finding.wrong += some(wrong, f"wrong answers of {pipeline}")
    if pipeline == "asked":
        finding.wrong += some(sorted(records - requests), "answers without a request, or more than it has")
    else:
        missing = [r for r in case.evidence.requests[pipeline] if r.record_id not in records]
        lost = unexplained(missing, asked, case.steps, HANDED_DEADLINE_S)
        finding.wrong += some(lost, f"requests to {pipeline} that nothing came of")
        # What Kafka refused was told its caller, and may have left its answer.
        nowhere = {told.record_id for told in answered} - requests.keys()
        finding.wrong += some(sorted(nowhere), f"answered requests of {pipeline} that are nowhere")


def _same_story(case: Case, finding: Finding) -> None:
    """The reader beside the run saw what a late one sees, in the same order."""
    for (topic, partition), (offsets, digests) in case.evidence.seen.items():
        place = f"{topic}/{partition}"
        nothing = np.zeros(0, dtype=np.int64)
        then = (case.seen.get(f"{place}/offset", nothing), case.seen.get(f"{place}/digest", nothing))
        now = (np.asarray(offsets), np.asarray(digests))
        if not all(np.array_equal(a, b) for a, b in zip(then, now, strict=True)):
            finding.wrong.append(
                f"{place}: the concurrent reader saw {len(then[0])} records, a later one {len(now[0])}, or others"
            )


def _no_doubles(case: Case, verdicts: Mapping[str, Verdict], finding: Finding) -> None:
    finding.tried = finding.tried or tally(case)
    again = 0
    for verdict in verdicts.values():
        if exactly_once(verdict.topic) and verdict.again:
            finding.wrong.append(f"{verdict.again} records twice on {verdict.topic}, which is exactly once")
        if verdict.other_ids:
            finding.wrong.append(
                f"{verdict.other_ids} records of {verdict.topic} have another id or share one"
            )
        if not exactly_once(verdict.topic):
            again += verdict.again
    finding.found = f"{again} records came again at least once, with the ids they had"


def _order(case: Case, verdicts: Mapping[str, Verdict], finding: Finding) -> None:
    late = int((case.story.kinds[: case.written["flow.events"]] == 6).sum())
    finding.tried = f"{tally(case)}; {late} records that were tried again"
    for verdict in verdicts.values():
        finding.wrong += some(verdict.reordered, f"codes out of order on {verdict.topic}")


def _contiguous(case: Case, finding: Finding) -> None:
    """At each look: all before the committed offsets has its outputs in the log, as it was right after."""
    compared = 0
    for group in case.watch.groups.values():
        for topic in group.reads:
            inputs = case.evidence.inputs.get(topic) or case.evidence.edges.get(topic)
            for written in group.writes if inputs is not None else ():
                compared += _compare_looks(case, group.name, topic, written, finding)
    if compared:
        finding.tried = (
            f"{len(case.watch.looks)} looks, {compared:,} comparisons ({case.watch.missed} looks failed)"
        )


# What comes by timers, or on other partitions than what it comes of.
_LATE: Final = ("kept.loud", "kept.window", "kept.lots")


def _compare_looks(case: Case, group: str, topic: str, written: str, finding: Finding) -> int:
    evidence = case.evidence
    inputs = evidence.inputs.get(topic) or evidence.edges[topic]
    edge = next((e for edges in EDGES.values() for e in edges if e.topic == written), None)
    if edge is None or written in _LATE:
        return 0
    needed = late_outputs(inputs, evidence.edges[written], edge)
    compared = 0
    for look in case.watch.looks:
        for (name, partition), offset in look.committed[group].items():
            offsets, reach = needed.get(partition, (np.zeros(0), np.zeros(0)))
            before = int(np.searchsorted(offsets, offset))
            if name != topic or not before:
                continue
            compared += 1
            end = look.ends[written, partition]
            if reach[before - 1] >= end and len(finding.wrong) < 5:
                finding.wrong.append(
                    f"{group} had committed {topic}[{partition}]@{offset} after {look.at_s:.1f} s, and {written} ended "
                    f"at {end}: an output came at {int(reach[before - 1])}"
                )
    return compared


def _fencing(case: Case, verdicts: Mapping[str, Verdict], finding: Finding) -> None:
    held = [i for i in case.incidents if i.fault.kind == "freeze worker" and "past" in i.fault.choice]
    cuts = [i for i in case.incidents if i.fault.kind == "cut network"]
    if held:
        finding.tried = "; ".join(i.did for i in held) + (f"; {len(cuts)} x cut network" if cuts else "")
    # A zombie's work would be there twice, and its offsets would go back or over what is not done.
    for name in case.watch.groups:
        looks = [look.committed[name] for look in case.watch.looks]
        for earlier, later in pairwise(looks):
            back = [p for p in earlier if later.get(p, 0) < earlier[p]]
            finding.wrong += some(back, f"offsets of {name} that went back")
    if held:
        finding.wrong += [
            f"{v.again} doubles on {v.topic}" for v in verdicts.values() if v.again and "flow" in v.topic
        ]


def _together(case: Case, verdicts: Mapping[str, Verdict], finding: Finding) -> None:
    kinds = ("kill worker at", "kill worker", "lose state files", "freeze worker")
    points = Counter(i.did for i in case.incidents if i.fault.kind in kinds)
    if points:
        finding.tried = ", ".join(f"{n} x {did}" for did, n in points.items())
        counts = {name: len(case.evidence.edges[f"kept.{name}"].code) for name in ("tally", "loud", "window")}
        finding.found = (
            f"{counts['tally']:,} counts of keys, {counts['loud']:,} timers, {counts['window']:,} windows are those "
            "of the input"
        )
    torn = [
        v
        for v in verdicts.values()
        if exactly_once(v.topic) and (v.lost or v.invented or v.again or v.strange)
    ]
    finding.wrong += [
        f"{v.topic}: {len(v.lost)} lost, {len(v.invented)} invented, {v.again} doubled, {v.strange[:1]}"
        for v in torn
    ]


def _aborted(case: Case, finding: Finding) -> None:
    topics = [e.topic for e in EDGES["flow"]]
    every = uncommitted(case.bootstrap, topics)
    hidden = sum(every[t] - len(case.evidence.edges[t].code) for t in topics)
    longest = max(case.watch.stalls_s.values(), default=0.0)
    if hidden:
        finding.tried = f"{hidden:,} records of aborted transactions lie in the logs"
    finding.found = f"longest stall of a partition's readers by one transaction: {longest:.1f} s"
    if longest > MAX_STALL_S:
        finding.wrong.append(f"{finding.found}, more than {MAX_STALL_S:.0f} s")


def _poison(case: Case, finding: Finding) -> None:
    sent = {topic: Counter(value for _, value in records) for topic, records in case.poison.items()}
    count = sum(sum(c.values()) for c in sent.values())
    fails = sum(x.code >= 0 for x in case.evidence.letters)
    if not count:
        return
    finding.tried = f"{count} records of garbage, {fails} that a node fails or that become too large"
    for topic, wanted in sent.items():
        letters = [x for x in case.evidence.letters if x.topic == topic and x.code < 0]
        places = {(p, o): value for p, o, value in case.evidence.poison[topic]}
        found = Counter(x.value for x in letters)
        finding.wrong += some([v for v in wanted if v not in found], f"of {topic} not in the dead letters")
        finding.wrong += some(
            [v for v in found if v not in wanted], f"of {topic} in the dead letters changed"
        )
        if exactly_once(topic):
            finding.wrong += some([v for v, n in found.items() if n > 1], f"of {topic} buried twice")
        finding.wrong += some(
            [x for x in letters if places.get((x.partition, x.offset)) != x.value], "misplaced"
        )
        finding.wrong += some([x for x in letters if not x.error], "without a cause")
    finding.wrong += _causes(case)


def _causes(case: Case) -> list[str]:
    """The cause of what a node failed is that node's; of what was too large, that."""
    wrong: list[Letter] = []
    for letter in case.evidence.letters:
        kind = int(case.story.kinds[letter.code // PIECES]) if letter.code >= 0 else -1
        if (kind == LARGE) != (letter.error == "RecordTooLargeError") or (
            kind == FAILING and not letter.error
        ):
            wrong.append(letter)
    return some([(x.topic, x.offset, x.error) for x in wrong], "dead letters with another cause")


def _homes(verdicts: Mapping[str, Verdict], finding: Finding) -> None:
    finding.tried = f"{len(verdicts)} topics against murmur2 of every key"
    for verdict in verdicts.values():
        finding.wrong += some(verdict.strayed, f"keys of {verdict.topic} elsewhere than murmur2 says")
