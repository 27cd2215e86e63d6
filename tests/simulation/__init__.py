"""The pair in simulation: two real monitors, thousands of failures, virtual time.

Two monitors that stop each other's machines are a distributed system.  Here both run unmodified, in one thread and on
one virtual clock, against an EC2 and a network in memory; a schedule of faults, drawn from a seed, happens to them.
The same schedule always gives the same run.

What is modelled

  Time (hub.py).  Each monitor is a process of greenlets: its loop, and each EC2 call or probe that it makes in a
  "thread".  A process can be killed or suspended whenever it waits.  A call whose deadline has passed goes on and may
  still take effect.  Computing takes no time.  While both are well, and nothing is about to happen, pings and probes
  are left out.

  EC2 (cloud.py).  A call travels to EC2, takes effect there, and its answer travels back; either way can be slow or
  lossy.  Writes take effect up to LATEST_EFFECT after they are sent.  Reads, of tags too, show what was true up to
  LATEST_READ earlier.  Instances are pending, running, stopping, stopped; a guest that hangs stays stopping until it is
  forced, one that lives but ignores the stop is cut off by EC2 after a while.  Status checks lag by minutes.  A route
  to a stopped instance is a blackhole.  Who loses the address is blind to EC2 for a while, and all connections made
  through it are dead.  Calls of one kind share a token bucket.

  The network and the faults (pair.py).  Crash, hang, reboot, stop, termination, a new private address; ping blocked,
  lossy; an instance cut off from its peer, from EC2, from both; EC2 down, slow, late, lossy, throttled, without error
  codes, forbidding an action, telling no checks, or wrongly that they fail, leaving one out, without capacity;
  metadata, credentials or forwarding late at boot; a monitor killed or suspended; route and address moved, deleted or
  given to others; a table added.  Forwarding is lost for a while, noticed by the host itself or by nobody but a
  probe; the target of probes dies; frames for what lies beyond are carried to a neighbour, or lost, or there is no
  neighbour.  An instance is under maintenance. An operator steps in only after the last fault, and only where no
  monitor can: neither instance is on its feet.

  The settings (pair.py, search.py).  How quick the monitors are, whether the primary fails back, whether they probe.

What must hold (invariants.py)

  1. Never are both instances stopping or stopped through the monitors' doing.
  2. Nobody takes over from, or begins to stop, a peer that has just answered, or missed too few pings.  Exempt are
     claims of the primary's start, those that make a split whole, and those that relieve a peer which is under
     maintenance or does not forward (8 and 9 say when).  Nobody stops a peer that keeps all tables before it had the
     time to be heard, nor one that is up, or whose checks do not fail, before it was unreachable for
     WAIT_FOR_INSTANCE_STOP; who holds nothing never stops one that holds everything and works.  A peer that was never
     heard and whose checks pass is left alone, unless EC2 has not told so for WAIT_FOR_INSTANCE_START, or has told for
     WAIT_FOR_INSTANCE_STOP (twice that, before a stop) that they fail.  Who fails its own checks, or is under
     maintenance, never stops a peer that passes them.  Misses before a suspension, or before a ping that could not
     leave, do not count.
  3. Who is not answered by EC2, cannot send, or is not running in EC2's eyes, decides nothing.
  4. While a monitor is able to serve, route and address point to an instance that works, within a bound; once the
     pair had settled, within a tight one.  Who knows that it cannot NAT takes nothing, nor does one whose checks fail
     while its peer's pass.
  5. Calls are few: nothing but looks in a settled pair, a stated number a minute at most, no busy loop, no contest for
     a part, steps of a restart a minute apart and stops later and later, no stop for ping loss up to 20 %.  What lies
     outside the pair stays there, and what somebody loses, deletes or adds moves nothing else.
  6. After the last fault the pair settles, everything at the primary where that has started and is to fail back.
     A peer that is stopped is started soon, also where EC2 refuses every claim.
  7. Nothing unforeseen is raised.
  8. One that holds, answers pings and does not forward is replaced within a bound, where a probe had come back through
     it and its peer is able to, also after EC2 has refused that for a while; at most once an hour, later and later; not
     for a target that is dead.
  9. Nobody stops, starts or forces an instance of which EC2 has told that it is under maintenance; that one hands over
     within a look and claims nothing, unless its peer is silent and dead; nothing moves where both are.

  The order of 1 to 4 is that of importance: one that holds a route, answers pings and does not forward is left alone
  where no probe tells (2 before 4), and so is one whose pings are blocked from the start and whose checks pass.

The window that remains is what EC2's reads cannot tell yet.  A stop that is under way while the other side decides is
seen only once it has taken effect: 1 holds for effects up to LATEST_EFFECT late; beyond, two monitors that cannot hear
each other can both stop.  A tag counts from when EC2 has told it to the monitor that acts.  A request that the process
was suspended in the middle of sending counts as sent: no monitor can call it back.

Run it: pytest tests/simulation (some thousands of schedules), python -m tests.simulation (the soak, then the
deliberate mistakes of mutations.py, each of which an invariant must catch).
"""
