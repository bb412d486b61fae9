"""Operations over several workers: each is carried out once, and one that dies is continued."""

import asyncio
import logging
from concurrent.futures import Future
from contextlib import suppress

import pytest

from agentcore.api._events import OperationReleased, OperationStarted
from agentcore.api._operations import Operations
from agentcore.api._worker import Worker
from agentcore.errors import JournalError, LMUnavailableError
from agentcore.journal import open_journal
from agentcore.settings import MLflowConfig


async def made(config: MLflowConfig) -> Operations:
    return Operations(await asyncio.to_thread(open_journal), config, ["colour"])


async def requested(operations: Operations, number: int = 0):
    return await operations.request("evaluation", "colour", {"dataset_name": f"colours{number}"}, "ci")


async def until(check, seconds: float = 20):
    async with asyncio.timeout(seconds):
        while not await check():
            await asyncio.sleep(0.02)


async def stopped(*tasks: asyncio.Task) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task


async def test_each_once_over_three_workers(config):
    operations = await made(config)
    done: list[str] = []

    async def carry_out(operation):
        done.append(operation.id)
        await asyncio.sleep(0.05)
        return None, {}

    wanted = {(await requested(operations, number)).id for number in range(12)}
    workers = [asyncio.create_task(Worker(operations, carry_out, 2).run()) for _ in range(3)]

    async def all_ended():
        return all([(await operations.get(item)).ended for item in wanted])

    await until(all_ended)
    await stopped(*workers)
    assert sorted(done) == sorted(wanted)


async def test_the_oldest_first_and_no_more_than_allowed(config):
    operations = await made(config)
    order, running = [], []

    async def carry_out(operation):
        order.append(operation.id)
        running.append(len(order) - len(ended))
        await asyncio.sleep(0.05)
        ended.append(operation.id)
        return None, {}

    ended: list[str] = []
    wanted = [(await requested(operations, number)).id for number in range(5)]
    worker = asyncio.create_task(Worker(operations, carry_out, 2).run())

    async def all_done():
        return len(ended) == 5

    await until(all_done)
    await stopped(worker)
    assert order[0] == wanted[0]
    assert max(running) <= 2


async def test_shut_down_leaves_it_to_another(config):
    operations = await made(config)
    began = asyncio.Event()

    async def never(operation):
        began.set()
        await asyncio.sleep(60)

    found = await requested(operations)
    first = asyncio.create_task(Worker(operations, never, 1).run())
    await began.wait()
    assert (await operations.get(found.id)).status == "running"
    await stopped(first)
    left = await operations.get(found.id)
    assert (left.status, left.starts) == ("queued", 0)

    async def quick(operation):
        return "run", {"answer": 42}

    second = asyncio.create_task(Worker(operations, quick, 1).run())

    async def over():
        return (await operations.get(found.id)).ended is not None

    await until(over)
    await stopped(second)
    assert (await operations.get(found.id)).ended.result == {"answer": 42}


async def test_what_kills_its_process_is_given_up(config):
    """As three processes that were killed leave it: started, and neither ended nor released."""
    operations = await made(config)
    found = await requested(operations)
    for name in ("one", "two"):
        await operations.journal.write(found.id, [OperationStarted(replica=name)])
    await operations.journal.write(
        found.id, [OperationStarted(replica="x"), OperationReleased(reason="update")]
    )
    assert (await operations.get(found.id)).starts == 2
    await operations.journal.write(found.id, [OperationStarted(replica="three")])
    calls = []

    async def carry_out(operation):
        calls.append(operation)
        return None, {}

    worker = asyncio.create_task(Worker(operations, carry_out, 1).run())

    async def over():
        return (await operations.get(found.id)).ended is not None

    await until(over)
    await stopped(worker)
    ended = (await operations.get(found.id)).ended
    assert (ended.status, calls) == ("failed", [])
    assert "3 processes died while working on it" in ended.error


async def test_failures(config, caplog):
    operations = await made(config)
    errors = [LMUnavailableError("no model"), ZeroDivisionError("a bug"), JournalError("disk full")]

    async def carry_out(operation):
        if errors:
            raise errors.pop(0)
        return None, {}

    worker = Worker(operations, carry_out, 1)
    with caplog.at_level(logging.ERROR, "agentcore"):
        task = asyncio.create_task(worker.run())
        found = []
        for number in range(2):
            found.append(await requested(operations, number))
            worker.wake()

            async def over(item=found[-1]):
                return (await operations.get(item.id)).ended is not None

            await until(over)
    first, second = [(await operations.get(item.id)).ended for item in found]
    assert (first.status, first.error) == ("failed", "no model")
    assert (second.status, second.error) == ("failed", "ZeroDivisionError: a bug")
    assert "Traceback" in caplog.text  # for whoever runs the server
    third = await requested(operations, 3)
    worker.wake()

    async def released():
        now = await operations.get(third.id)
        return not errors and now.starts == 0 and not now.ended

    await until(released)  # it waits until the journal can be written again
    await stopped(task)


async def test_a_journal_that_fails_stops_no_worker(config, monkeypatch):
    operations = await made(config)
    monkeypatch.setattr("agentcore.api._worker._PAUSE", 0.05)
    pending, failures = operations.pending, [1, 2, 3]

    async def flaky():
        if failures:
            failures.pop()
            raise JournalError("the database is restarting")
        return await pending()

    operations.pending = flaky

    async def carry_out(operation):
        return None, {}

    found = await requested(operations)
    task = asyncio.create_task(Worker(operations, carry_out, 1).run())

    async def over():
        return (await operations.get(found.id)).ended is not None

    await until(over)
    await stopped(task)
    assert not failures


@pytest.mark.parametrize("kind", [LMUnavailableError, RuntimeError])
async def test_secrets_stay_out_of_the_journal_and_the_log(config, monkeypatch, caplog, kind):
    monkeypatch.setenv("SOME_API_KEY", "sk-0123456789abcdefghij")
    operations = await made(config)

    async def carry_out(operation):
        raise kind("refused: sk-0123456789abcdefghij")

    found = await requested(operations)
    task = asyncio.create_task(Worker(operations, carry_out, 1).run())

    async def over():
        return (await operations.get(found.id)).ended is not None

    await until(over)
    await stopped(task)
    assert "sk-0123" not in (await operations.get(found.id)).ended.error
    assert "sk-0123" not in caplog.text


async def test_an_error_that_nobody_expected_ends_no_worker(config, monkeypatch, caplog):
    """Not in looking for work, not in reading an operation, not in giving back its lease."""
    monkeypatch.setattr("agentcore.api._worker._PAUSE", 0.05)
    operations = await made(config)
    pending, get, abandon = operations.pending, operations.get, operations.journal.abandon
    failures = {"pending": 1, "get": 1, "abandon": 1}

    def failing(name, real, error):
        def call(*args):
            if failures[name]:
                failures[name] -= 1
                raise error
            return real(*args)

        return call

    def lost(lease):
        done = abandon(lease)
        if failures["abandon"]:
            failures["abandon"] -= 1
            done = Future()
            done.set_exception(JournalError("the database is restarting"))
        return done

    found = await requested(operations)
    operations.pending = failing("pending", pending, RecursionError("deep"))
    operations.get = failing("get", get, ValueError("odd"))
    operations.journal.abandon = lost

    async def carry_out(operation):
        return None, {}

    task = asyncio.create_task(Worker(operations, carry_out, 1).run())

    async def over():
        return failures["get"] == 0 and (await get(found.id)).ended is not None

    await until(over)
    await asyncio.sleep(0.1)
    assert not task.done()
    await stopped(task)
    assert failures == {"pending": 0, "get": 0, "abandon": 0}
    assert "RecursionError" in caplog.text
