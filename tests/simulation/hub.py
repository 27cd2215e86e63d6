"""Virtual time: greenlets that run one after the other, in an order that depends on nothing but the schedule."""
from __future__ import annotations

import heapq
import math
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

import greenlet


class Process:
    """A running monitor: the greenlet of its loop, and one for each call under way."""

    def __init__(self) -> None:
        self.threads: Set[Thread] = set()
        self.suspended_until = 0.0


class Thread(greenlet.greenlet):  # type: ignore[misc]
    """A thread of a process; `ticket` counts its waits, so that a late wake-up finds nobody."""

    def __init__(self, process: Process, function: Callable[[], Any], parent: greenlet.greenlet) -> None:
        super().__init__(function, parent)
        self.process, self.ticket = process, 0


class Hub:
    """The clock and the queue of what is to come."""

    def __init__(self) -> None:
        self.now, self.count = 0.0, 0
        self.queue: List[Tuple[float, int, Callable[..., None], Tuple[Any, ...]]] = []
        self.main = greenlet.getcurrent()
        self.processes: List[Process] = []
        self.changed: Callable[[], None] = lambda: None

    def at(self, delay: float, function: Callable[..., None], *arguments: Any) -> None:
        """Call the function `delay` seconds from now."""
        self.count += 1
        heapq.heappush(self.queue, (self.now + delay, self.count, function, arguments))

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> bool:
        """Let things happen until then, or until `done`, which is asked after each event; tell whether it was."""
        while self.queue and self.queue[0][0] < until:
            self.now, _, function, arguments = heapq.heappop(self.queue)
            function(*arguments)
            if function != self.resume:
                self.changed()
            if done():
                return True
        self.now = until
        return False

    def spawn(self, process: Process, function: Callable[[], Any]) -> None:
        def body() -> None:
            try:
                function()
            finally:
                process.threads.discard(thread)
        thread = Thread(process, body, self.main)
        process.threads.add(thread)
        self.at(0.0, self.resume, thread, 0)

    def resume(self, thread: Thread, ticket: int) -> None:
        """Let a thread go on that still waits with this ticket; one of a suspended process has to wait."""
        if self.now < thread.process.suspended_until:
            self.at(thread.process.suspended_until - self.now, self.resume, thread, ticket)
        elif not thread.dead and thread.ticket == ticket:
            thread.switch()

    def ticket(self) -> Tuple[Thread, int]:
        """Return this thread and the ticket of its next wait."""
        thread = greenlet.getcurrent()
        assert isinstance(thread, Thread)
        thread.ticket += 1
        return thread, thread.ticket

    def wait(self) -> None:
        """Switch to other threads until somebody resumes this one."""
        self.main.switch()

    def sleep(self, delay: float) -> None:
        self.at(delay, self.resume, *self.ticket())
        self.wait()

    def run_together(self, calls: Dict[str, Callable[[], Any]], timeout: float,
                     meanwhile: Optional[Callable[[], float]], at_once: int, no_answer: Exception) -> Dict[str, Any]:
        """Do what the monitor's run_together does with threads: a late call goes on, and its result is dropped."""
        done: Dict[str, Any] = {}
        deadline, left = self.now + timeout, iter(tuple(calls.items()))  # one iterator for all threads
        waiting: List[Tuple[Thread, int]] = []

        def make_some() -> None:
            for name, call in left:
                if self.now > deadline:
                    break
                try:
                    result = call()
                except Exception as error:
                    result = error
                if self.now <= deadline:
                    done[name] = result
                if waiting and len(done) == len(calls):
                    self.at(0.0, self.resume, *waiting[0])

        process = self.ticket()[0].process
        for _ in range(min(len(calls), at_once)):
            self.spawn(process, make_some)
        self.sleep(0.0)  # the calls are sent before anything else
        while len(done) < len(calls) and self.now < deadline:
            pause = meanwhile() if meanwhile else math.inf
            if pause > 0.0 and len(done) < len(calls) and self.now < deadline:
                waiting[:] = [self.ticket()]
                self.at(min(pause, deadline - self.now), self.resume, *waiting[0])
                self.wait()
                waiting.clear()
        return {name: done.get(name, no_answer) for name in calls}

    def kill(self, process: Process) -> None:
        """End a process at whatever point it is, as SIGKILL does; what it has sent is under way all the same."""
        self.processes.remove(process)
        for thread in list(process.threads):
            if greenlet.getcurrent() is not thread:
                thread.throw()
