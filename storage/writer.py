"""Write a stream of shards, two at a time: one is hashed and copied while the disk makes the other durable.

A commit alone leaves the processor idle during four fsyncs and the disk idle during the hashing. Shards are independent, each keeps its own
order of write, fsync, link and record, so two may be under way at once. The price is the memory of one more shard; the caller must leave
the arrays of a submitted shard alone until its future is done.
"""

import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from .commit import Record
from .features import FeatureReader, TokenRows

IN_FLIGHT = 2


class ShardWriter:
    """Commits shards of one feature set in the background; a context manager that waits for all of them at its end."""

    def __init__(self, features: FeatureReader, in_flight: int = IN_FLIGHT) -> None:
        self._features = features
        self._pool = ThreadPoolExecutor(in_flight, thread_name_prefix="shard-writer")
        self._free = threading.Semaphore(in_flight)
        self._futures: list[Future[Record]] = []

    def submit(self, shard: int, tokens: TokenRows, failed: Mapping[str, str], views_record: str) -> Future[Record]:
        """Commit a shard as `FeatureReader.commit_shard` does, soon; waits while `in_flight` are under way.

        Raises what an earlier shard raised.
        """
        self._free.acquire()
        self._raise_earlier()
        future = self._pool.submit(self._features.commit_shard, shard, tokens, failed, views_record)
        future.add_done_callback(lambda _: self._free.release())
        self._futures.append(future)
        return future

    def close(self) -> None:
        """Wait for every shard; raises what the first failed one raised."""
        self._pool.shutdown(wait=True)
        self._raise_earlier()

    def _raise_earlier(self) -> None:
        done = [future for future in self._futures if future.done()]
        self._futures = [future for future in self._futures if not future.done()]
        for future in done:
            if future.exception() is not None:
                self._free.release()
                future.result()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._pool.shutdown(wait=True, cancel_futures=True)
