"""The voice of a node, as far as it needs no etcd."""

from __future__ import annotations

import asyncio
from typing import Any

from bulkhead.registry.announcing import Keys, Voice
from bulkhead.registry.records import Records


def test_a_voice_that_is_stirred_and_cancelled_at_once_ends() -> None:
    async def main() -> None:
        voice, nobody_asked = Voice(Keys("/bulkhead/"), 600, lambda: None), Any
        task = asyncio.create_task(voice.speak(nobody_asked, lambda: Records("")))
        for _ in range(5):  # until it waits
            await asyncio.sleep(0)
        voice.stir()
        await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=2)
        task.cancel()
        assert done and task.cancelled()

    asyncio.run(main())
