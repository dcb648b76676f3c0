"""The limit on BLAS where calls of several threads overlap, against what threadpoolctl reports."""

from collections.abc import Iterator
from threading import Event, Thread

import pytest
import scipy.linalg  # noqa: F401 - brings a library of its own
from threadpoolctl import threadpool_info, threadpool_limits

from moe_optuna.laws.threads import one_thread


def numbers() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def aside(threads: int) -> None:
    """Set the number of threads from a thread that ends: one that lives on may keep the libraries to itself."""
    thread = Thread(target=threadpool_limits, args=(threads,))
    thread.start()
    thread.join()


@pytest.fixture
def two() -> Iterator[None]:
    before = max(numbers())
    aside(2)
    if numbers() != {2}:
        pytest.skip("BLAS has no second thread here")
    yield
    aside(before)


class Call:
    """A call in a thread of its own that lasts until it is ended; the thread itself lives on until `close`."""

    def __init__(self) -> None:
        self.begun, self.ending, self.ended, self.closing = Event(), Event(), Event(), Event()
        self.thread = Thread(target=self.run, daemon=True)
        self.thread.start()
        assert self.begun.wait(10)

    def run(self) -> None:
        with one_thread:
            self.begun.set()
            self.ending.wait(10)
        self.ended.set()
        self.closing.wait(10)

    def end(self) -> None:
        self.ending.set()
        assert self.ended.wait(10)

    def close(self) -> None:
        self.closing.set()
        self.thread.join()


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_calls_that_overlap_the_last_gives_blas_its_threads_back(order: tuple[int, int]) -> None:
    calls = [Call(), Call()]
    assert numbers() == {1}
    calls[order[0]].end()
    assert numbers() == {1}
    calls[order[1]].end()
    assert numbers() == {2}
    for call in calls:
        call.close()


@pytest.mark.usefixtures("two")
def test_it_may_be_nested_and_ends_with_an_error() -> None:
    @one_thread
    def inner() -> None:
        assert numbers() == {1}
        raise ValueError

    with one_thread:
        with pytest.raises(ValueError):  # noqa: PT011
            inner()
        assert numbers() == {1}
    assert numbers() == {2}


@pytest.mark.usefixtures("two")
def test_within_limits_of_ones_own_these_are_what_is_left() -> None:
    with threadpool_limits(1, user_api="blas"):
        with one_thread:
            assert numbers() == {1}
        assert numbers() == {1}
    assert numbers() == {2}
    with one_thread, threadpool_limits(1):
        other = Call()
        other.end()
        other.close()
        assert numbers() == {1}
    assert numbers() == {2}
