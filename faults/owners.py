"""Who owns what in consumer groups, asked in a process of its own.

librdkafka's admin client may end its process when a group's coordinator moves while it is asked (its issue 5040), which
is what this suite makes happen: then the process is started again, and the question was not answered.

``python -m faults.owners BOOTSTRAP`` reads group names, a line each, and answers with a line of JSON: what each member
has and is to have, ``{MEMBER: {"has": [[topic, partition], ...], "wants": [...] or null}}``, or ``{"error": ...}``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import confluent_kafka as ck
from confluent_kafka.admin import AdminClient, MemberAssignment, MemberDescription

from faults.wire import QUIET

Place = tuple[str, int]
Members = dict[str, Any]
_REQUEST_S: Final = 5.0


class Owners:
    """The process, from outside. One thread."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._process: subprocess.Popen[str] | None = None
        self.crashes = 0

    def ask(self, group: str) -> Counter[Place]:
        """How many members own each partition. Raises KafkaException when there was no answer."""
        return counted(self.members(group))

    def members(self, group: str) -> Members:
        """What each member has, and what the group means it to have. Raises KafkaException when there was no answer."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "faults.owners", self._bootstrap],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(group + "\n")
            self._process.stdin.flush()
            said = self._process.stdout.readline()
        except OSError:
            said = ""
        if not said:
            self.crashes += 1
            self._process.kill()
            self._process.wait()
            raise ck.KafkaException(ck.KafkaError(ck.KafkaError._FAIL, "the asking process died"))
        found: Members = json.loads(said)
        if "error" in found:
            raise ck.KafkaException(ck.KafkaError(ck.KafkaError._FAIL, found["error"]))
        return found

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def counted(members: Members) -> Counter[Place]:
    """How many members have each partition."""
    return Counter((topic, partition) for m in members.values() for topic, partition in m["has"])


def described(members: Iterable[MemberDescription]) -> Members:
    """See the module. A member of the classic protocol is not meant to have anything but what it has: null."""

    def places(assignment: MemberAssignment | None) -> list[Place] | None:
        return assignment and [(p.topic, p.partition) for p in assignment.topic_partitions]

    return {
        f"{m.client_id} {m.member_id}": {"has": places(m.assignment), "wants": places(m.target_assignment)}
        for m in members
    }


def _answer(admin: AdminClient, group: str) -> Members:
    asked = admin.describe_consumer_groups([group], request_timeout=_REQUEST_S)[group]
    return described(asked.result(_REQUEST_S + 5).members)


def main(bootstrap: str) -> None:
    admin = AdminClient({**QUIET, "bootstrap.servers": bootstrap})
    for line in sys.stdin:
        said: object
        try:
            said = _answer(admin, line.strip())
        except (ck.KafkaException, TimeoutError) as error:
            said = {"error": str(error) or "timed out"}
            # One that knew a coordinator that is gone asks it for ever.
            admin = AdminClient({**QUIET, "bootstrap.servers": bootstrap})
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
