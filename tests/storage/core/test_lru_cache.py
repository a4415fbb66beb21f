"""What was used longest ago goes first; a value is made once, whoever waits for it; a child made by fork is not held up."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from eupe_pipeline.storage.core.lru_cache import LruCache

from .test_forks import in_child


def test_the_value_used_longest_ago_goes_first() -> None:
    cache: LruCache[str, int] = LruCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert [cache.get(key) for key in "abc"] == [1, None, 3]
    cache.put("a", 4)
    assert (cache.get("a"), len(cache)) == (4, 2)
    assert (cache.pop("a"), cache.pop("a"), len(cache)) == (4, None, 1)


def test_a_limit_of_bytes_counts_each_value_and_the_last_one_stays_however_large() -> None:
    cache: LruCache[int, bytes] = LruCache(10, len)
    for key, size in enumerate((4, 6, 3)):
        cache.put(key, bytes(size))
    assert [cache.get(key) for key in range(3)] == [None, bytes(6), bytes(3)]
    cache.put(1, bytes(2))
    cache.put(3, bytes(5))
    assert len(cache) == 3
    cache.put(4, bytes(50))
    assert [cache.get(key) for key in range(5)] == [None] * 4 + [bytes(50)]
    cache.put(5, bytes(1))
    assert cache.get(5) == bytes(1)
    assert len(cache) == 1


def test_a_value_is_made_once_and_another_key_does_not_wait_for_it() -> None:
    cache: LruCache[str, int] = LruCache(4)
    begun, go_on, made = threading.Event(), threading.Event(), list[str]()

    def slow() -> int:
        made.append("slow")
        begun.set()
        assert go_on.wait(10)
        return 7

    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(cache.get_or_make, "slow", slow) for _ in range(3)]
        assert begun.wait(10)
        assert cache.get_or_make("other", lambda: 1) == 1
        assert cache.get("slow") is None
        go_on.set()
        assert [one.result(10) for one in waiting] == [7, 7, 7]
    assert (made, cache.get("slow")) == (["slow"], 7)


def test_an_error_is_raised_and_not_kept_and_what_was_dropped_while_it_was_made_is_not_kept_either() -> None:
    cache: LruCache[str, int] = LruCache(4)
    with pytest.raises(ZeroDivisionError):
        cache.get_or_make("a", lambda: 1 // 0)
    assert cache.get_or_make("a", lambda: 2) == 2

    def dropped() -> int:
        cache.pop("b")
        return 3

    assert cache.get_or_make("b", dropped) == 3
    assert cache.get("b") is None


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_neither_waits_for_a_lock_nor_for_a_value_that_its_parent_was_making() -> None:
    cache: LruCache[str, int] = LruCache(4)
    cache.put("kept", 5)
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> int:
        begun.set()
        go_on.wait(30)
        return 1

    thread = threading.Thread(target=cache.get_or_make, args=("slow", slow))
    thread.start()
    assert begun.wait(10)
    with cache._lock:
        assert in_child(lambda: cache.get("kept") == 5 and cache.get_or_make("slow", lambda: 9) == 9)
    go_on.set()
    thread.join()
    assert cache.get("slow") == 1
