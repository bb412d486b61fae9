"""An optimization as a process that can be killed: `python -m tests.support.job CALLS [RUN]`.

Starts an optimization, or goes on with RUN. Prints `event kind id` for each event, then `result` with a JSON
object. Each call of the model appends a line to the file CALLS: the digest of its prompt.
"""

import asyncio
import hashlib
import json
import os
import sys
from typing import Any

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.lm import offline_lm
from agentcore.tracking import program_state
from tests.support import AsyncClassifier, colours, request

LATENCY = float(os.environ.get("JOB_LATENCY", "0.02"))
CONCURRENCY = 4


def logged_lm(path: str) -> Any:
    lm = offline_lm(latency=LATENCY)
    real = lm.engine._finish

    def finish(call: Any, failing: bool) -> Any:
        told = repr([(message.role, message.text) for message in call.messages]).encode()
        with open(path, "a") as log:  # noqa: PTH123 - one atomic line
            log.write(hashlib.sha256(told).hexdigest()[:16] + "\n")
        return real(call, failing)

    lm.engine._finish = finish
    return lm


async def main() -> None:
    calls, *run = sys.argv[1:]

    def tell(event: Any) -> None:
        print("event", event.kind, event.optimization_id, flush=True)

    pipeline = OptimizationPipeline(
        AsyncClassifier(), lm=logged_lm(calls), seed=3, max_concurrency=CONCURRENCY, on_event=tell
    )
    if run:
        result = await pipeline.resume(run[0])
    else:
        constraints = {"max_lm_calls": int(os.environ["JOB_CAP"])} if "JOB_CAP" in os.environ else {}
        result = await pipeline.run_optimization(request(constraints=constraints), training_data=colours())
    summary = {
        "id": result.optimization_id,
        "status": result.status,
        "improvement": result.improvement_percentage,
        "p": result.statistical_significance,
        "interval": list(result.interval),
        "trials": result.optimization_details["trials"],
        "calls": result.spend.calls,
        "state": program_state(result.program),
    }
    print("result", json.dumps(summary), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
