"""Tasks of asyncio and trio: work in a thread, and work that a cancellation does not cut short."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


def on_trio() -> bool:
    """Is this a task of trio?"""
    if "trio" not in sys.modules:
        return False
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


async def in_thread(work: Callable[[], T]) -> T:
    """Call `work` in a thread, and await its result."""
    if on_trio():
        import anyio.to_thread

        return await anyio.to_thread.run_sync(work)
    import asyncio

    return await asyncio.to_thread(work)


async def to_the_end(work: Awaitable[T]) -> T:
    """Await `work` to its end; a cancellation that comes meanwhile is raised by whatever is awaited next."""
    if on_trio():
        import anyio

        with anyio.CancelScope(shield=True):
            return await work
    import asyncio

    inner = asyncio.ensure_future(work)
    cancelled = False
    while not inner.done():
        try:
            await asyncio.shield(inner)
        except asyncio.CancelledError:
            cancelled = not inner.cancelled()
        except Exception:  # raised again below, as the result
            break
    task = asyncio.current_task()
    if cancelled and task is not None:
        task.uncancel()  # or asyncio.timeout() would take it for two
        task.cancel()
    return inner.result()
