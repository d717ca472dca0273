"""The faults themselves: each does its harm to a `World`, waits as long as it lasts, and says what it did."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import confluent_kafka as ck

from dataflow.broker import Node
from faults.agent import POINTS
from faults.holes import make_holes
from faults.processes import WORKING, shown
from faults.project import FACTORS, write_model
from faults.schedule import Fault
from faults.world import FIRST_STAGE, World

SESSION_S: Final = 6.0
TRANSACTION_S: Final = 10.0
# How long a process that is to kill itself at a point is given to come there.
_REACH_S: Final = 30.0
# Longer than the session: who is alive and busy must not be taken for dead.
_SLOW_S: Final = 8.0


def inject(world: World, fault: Fault) -> str:
    """Do it; what was done, for the record. `World.settle` undoes what lasts."""
    return _INJECTORS[fault.kind](world, fault.choice, fault.random)


def _kill_worker(world: World, crew: str, chance: random.Random) -> str:
    victim = chance.choice(world.crews[crew].members)
    time.sleep(chance.uniform(0, 2))
    world.crews[crew].end(victim)
    return f"kill -9 of a worker of '{crew}'"


def _kill_worker_at(world: World, point: str, chance: random.Random) -> str:
    """Let a worker kill itself at a point of a transaction; what it takes over comes from another that is killed."""
    crew = world.crews["flow"]
    victim = chance.choice(crew.members)
    crew.ordered.add(victim.pid)
    victim.order("crash", point)
    _, what = POINTS[point]
    if what in {"taking over", "restoring"} or point.startswith("first"):
        others = [a for a in crew.members if a is not victim]
        for other in others:
            crew.end(other)
    reached = victim.wait(_REACH_S)
    crew.end(victim)
    return f"kill -9 {point}" + ("" if reached else ": not reached in time, killed where it was")


def _kill_plain_worker_at(world: World, point: str, chance: random.Random) -> str:
    crew = world.crews["plain"]
    victim = chance.choice(crew.members)
    crew.ordered.add(victim.pid)
    victim.order("crash", point)
    reached = victim.wait(_REACH_S)
    crew.end(victim)
    return f"kill -9 {point}, at least once" + (
        "" if reached else ": not reached in time, killed where it was"
    )


def _lose_state_files(world: World, _choice: str, chance: random.Random) -> str:
    """A machine is gone with its disk: what its worker kept is in the changelog alone."""
    crew = world.crews.get("kept", world.crews["flow"])
    victim = chance.choice(crew.members)
    crew.end(victim)
    size = sum(f.stat().st_size for f in victim.state.rglob("*") if f.is_file())
    shutil.rmtree(victim.state, ignore_errors=True)
    return f"kill -9 of a worker and its {size / 1024:.0f} kB of state files deleted"


def _holes(world: World, _choice: str, chance: random.Random) -> str:
    del chance
    return make_holes(world)


def _freeze_worker(world: World, how: str, chance: random.Random) -> str:
    """SIGSTOP a worker, with a transaction open if one can be caught, and let it go on after its work has moved."""
    victim = chance.choice(world.crews["flow"].members)
    opened = 0
    for _ in range(20):
        victim.signal(signal.SIGSTOP)
        with suppress(ck.KafkaException):
            opened = world.watch.stuck_records(FIRST_STAGE)
        if opened:
            break
        victim.signal(signal.SIGCONT)
    else:
        victim.signal(signal.SIGSTOP)
    began_s = time.monotonic()
    if how == "past its session":
        _await_taken_over(world)
    elif how == "within its session":
        time.sleep(chance.uniform(1, SESSION_S - 2))
    else:
        time.sleep(chance.uniform(TRANSACTION_S + 3, TRANSACTION_S + 6))
    victim.signal(signal.SIGCONT)
    return f"SIGSTOP for {time.monotonic() - began_s:.1f} s with {opened} records in open transactions"


def _await_taken_over(world: World) -> None:
    """Wait until a frozen member's session is over and others have worked on every partition of 'flow', its own too.

    Who goes on before finds that nothing was taken from it; how long a group takes is the machine's affair.
    """
    group, until_s = "dataflow.flow.sane", time.monotonic() + _REACH_S
    still = world.watch.committed(group)
    time.sleep(SESSION_S + 0.5)
    while still and time.monotonic() < until_s:
        with suppress(ck.KafkaException):
            now, ends = world.watch.committed(group), world.watch.ends(world.watch.inputs(group))
            still = {p: offset for p, offset in still.items() if now[p] == offset < ends[p]}
        time.sleep(0.1)


def _storm(world: World, _choice: str, chance: random.Random) -> str:
    """Members come and go faster than a group settles."""
    crew = world.crews["flow"]
    done = []
    for _ in range(6):
        if len(crew.members) <= 1 or (len(crew.members) < crew.size + 2 and chance.random() < 0.5):
            crew.add()
            done.append("+1")
        else:
            crew.end(chance.choice(crew.members), chance.choice([signal.SIGKILL, signal.SIGTERM]))
            done.append("-1")
        time.sleep(chance.uniform(0.2, 2))
    return "members " + " ".join(done)


def _stop_worker(world: World, _choice: str, chance: random.Random) -> str:
    crew = world.crews["flow"]
    # One that works: before it does, the signal ends it as it ends any process.
    victim = chance.choice([a for a in crew.members if a.working] or crew.members)
    shown(victim, WORKING, _REACH_S)
    ended = crew.end(victim, signal.SIGTERM)
    status = victim.process.returncode
    if not ended or status != 0:
        world.wrong.append(
            f"a worker did not end in order on SIGTERM (status {status}):\n{victim.output()[-800:]}"
        )
    return f"SIGTERM, status {status}"


def _kill_broker(world: World, which: str, chance: random.Random) -> str:
    node = _node(world, which, chance)
    node.kill()
    down_s = chance.uniform(1, 6)
    time.sleep(down_s)
    node.start()
    return (
        f"kill -9 of node {node.address.node_id} of {len(world.brokers.nodes)} ({which}), down {down_s:.1f} s"
    )


def _node(world: World, which: str, chance: random.Random) -> Node:
    brokers = world.brokers
    if which == "controller":
        return brokers.controller()
    internal = {"group coordinator": "__consumer_offsets", "transaction coordinator": "__transaction_state"}
    if which in internal:
        topic = internal[which]
        return brokers.leader(topic, chance.randrange(brokers.internal_partitions(topic)))
    return chance.choice(list(brokers.nodes))


def _cut_network(world: World, how: str, chance: random.Random) -> str:
    crew = chance.choice(["flow", "flow", "plain"])
    victim = chance.choice(world.crews[crew].members)
    held_s = chance.uniform(3, 13)
    world.brokers.proxy.cut(victim.pid, how)
    try:
        time.sleep(held_s)
    finally:
        world.brokers.proxy.heal(victim.pid)
    return f"{how} between a worker of '{crew}' and all brokers for {held_s:.1f} s"


def _full_disk(world: World, _choice: str, chance: random.Random) -> str:
    node = chance.choice(list(world.brokers.nodes))
    world.brokers.fill_disk(node)
    deadline = time.monotonic() + _REACH_S
    while node.pid and time.monotonic() < deadline:
        time.sleep(0.1)
    ended = not node.pid
    node.kill()
    node.start()
    return f"node {node.address.node_id} could write no file any more" + (
        " and ended" if ended else ": killed"
    )


def _slow_node(world: World, _choice: str, chance: random.Random) -> str:
    """A batch takes longer than the session: members stay, partitions are paused, memory is bounded."""
    del chance
    before = {name: [a.pid for a in crew.members] for name, crew in world.crews.items()}
    (world.project / "slow").write_text(str(_SLOW_S))
    owned = 0
    until = time.monotonic() + 1.5 * _SLOW_S
    while time.monotonic() < until:
        time.sleep(1)
        with suppress(ck.KafkaException):
            counts = world.watch.owners("dataflow.flow.sane")
            owned += 1
            if any(count != 1 for count in counts.values()):
                world.wrong.append(f"a slow node cost the group membership: {counts}")
    (world.project / "slow").unlink(missing_ok=True)
    after = {name: [a.pid for a in crew.members if a.running] for name, crew in world.crews.items()}
    if after != before:
        world.wrong.append(f"workers ended while a node was slow: {before} became {after}")
    return f"{_SLOW_S:.0f} s a batch; {owned} looks at the group meanwhile"


def _kill_gateway(world: World, _choice: str, chance: random.Random) -> str:
    place = chance.randrange(len(world.gateways))
    agent, _ = world.gateways[place]
    deadline = time.monotonic() + 5
    while not world.callers.waiting and time.monotonic() < deadline:
        time.sleep(0.001)
    waiting = world.callers.waiting
    agent.kill()
    world.fill_gateways()
    return f"kill -9 of a gateway with {waiting} callers waiting"


def _freeze_gateway(world: World, _choice: str, chance: random.Random) -> str:
    """SIGSTOP a process that requests are handed to, until its partitions are another's; then it goes on, and knows nothing."""
    agent, _ = chance.choice(world.gateways)
    held_s = chance.uniform(SESSION_S + 0.5, SESSION_S + 4)
    agent.signal(signal.SIGSTOP)
    time.sleep(held_s)
    agent.signal(signal.SIGCONT)
    return f"SIGSTOP of a gateway that works, for {held_s:.1f} s"


def _foreign_writer(world: World, _choice: str, chance: random.Random) -> str:
    """Write to the lanes of `handed` while requests are handed to them."""
    count = chance.randrange(100, 300)
    world.feeder.send_foreign("handed.requests", 2, count, chance)
    return f"{count} records of a stranger on the lanes of a gateway"


def _step_clock(world: World, _choice: str, chance: random.Random) -> str:
    steps = [chance.choice([-3600.0, -30.0, -1.0, 1.0, 30.0, 3600.0]) for _ in range(3)]
    for step in steps:
        world.set_clock(step)
        time.sleep(chance.uniform(1, 3))
    return "wall clock of all processes off by " + ", ".join(f"{s:+.0f} s" for s in steps)


def _poison(world: World, _choice: str, chance: random.Random) -> str:
    count = chance.randrange(20, 60)
    world.feeder.send_poison(count)
    return f"{count} records of garbage on every input"


def _change_model(world: World, _choice: str, chance: random.Random) -> str:
    del chance
    world.version += 1
    world.factors.append(FACTORS[world.version % len(FACTORS)])
    write_model(world.project, world.version % len(FACTORS))
    world.deploy()
    return f"deployed with a model that multiplies by {world.factors[-1]:.0f}"


_INJECTORS: Final[Mapping[str, Callable[[World, str, random.Random], str]]] = {
    "kill worker": _kill_worker,
    "kill worker at": _kill_worker_at,
    "kill plain worker at": _kill_plain_worker_at,
    "lose state files": _lose_state_files,
    "holes in the log": _holes,
    "freeze worker": _freeze_worker,
    "storm": _storm,
    "stop worker": _stop_worker,
    "kill broker": _kill_broker,
    "cut network": _cut_network,
    "full disk": _full_disk,
    "slow node": _slow_node,
    "kill gateway": _kill_gateway,
    "freeze gateway": _freeze_gateway,
    "foreign writer": _foreign_writer,
    "step clock": _step_clock,
    "poison": _poison,
    "change model": _change_model,
}
