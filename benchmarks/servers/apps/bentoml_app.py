"""BentoML around the model, one worker: `bentoml serve benchmarks.servers.apps.bentoml_app:OnnxModel`."""

# No postponed annotations: BentoML reads those of `infer` as types.
from typing import Any

import bentoml  # type: ignore[import-not-found]

from benchmarks.servers.apps.session import answer, session, tensor


@bentoml.service(workers=1, traffic={"timeout": 30}, logging={"access": {"enabled": False}})
class OnnxModel:
    def __init__(self) -> None:
        self._session = session()

    @bentoml.api(route="/infer")  # type: ignore[untyped-decorator]
    async def infer(self, inputs: list[dict[str, Any]], id: str = "") -> dict[str, Any]:  # noqa: A002
        asked = {"inputs": inputs, "id": id}
        return answer(asked, self._session.run(None, {"x": tensor(asked)})[0])
