"""The pair in simulation: two real monitors, thousands of failures, virtual time.

Two monitors that stop each other's machines are a distributed system.  Here both run unmodified, in one thread and on
one virtual clock, against an EC2 and a network in memory; a schedule of faults, drawn from a seed, happens to them.
The same schedule always gives the same run.

What is modelled

  Time (hub.py).  Each monitor is a process of greenlets: its loop, and each EC2 call that it makes in a "thread".  A
  process can be killed or suspended whenever it waits.  A call whose deadline has passed goes on and may still take
  effect.  Computing takes no time.  While both are well, and nothing is about to happen, pings are left out.

  EC2 (cloud.py).  A call travels to EC2, takes effect there, and its answer travels back; either way can be slow or
  lossy.  Writes take effect up to LATEST_EFFECT after they are sent.  Reads show what was true up to LATEST_READ
  earlier.  Instances are pending, running, stopping, stopped; a guest that hangs stays stopping until it is forced,
  one that lives but ignores the stop is cut off by EC2 after a while.  Status checks lag by minutes.  A route to a
  stopped instance is a blackhole.  Who loses the address is blind to EC2 for a while, and all connections made
  through it are dead.  Calls of one kind share a token bucket.

  The network and the faults (pair.py).  Crash, hang, reboot, stop, termination; ping blocked, lossy; an instance cut
  off from its peer, from EC2, from both; EC2 down, slow, lossy, throttled, forbidding an action, without capacity;
  metadata, credentials or forwarding late at boot; a monitor killed or suspended; route and address moved, deleted or
  given to others.  An operator steps in only after the last fault, and only where no monitor can: neither instance is
  on its feet.

What must hold (invariants.py)

  1. Never are both instances stopping or stopped through the monitors' doing.
  2. Nobody takes over from, or begins to stop, a peer that has just answered, or missed too few pings; claims of the
     primary's start, and claims that make a split whole, aside.
     Nobody stops a peer that keeps all tables before it had the time to be heard.
  3. Who is not answered by EC2, cannot send, or is not running in EC2's eyes, decides nothing.
  4. While a monitor is able to serve, route and address point to an instance that works, within a bound;
     once the pair had settled, within a tight one.
  5. Calls are few: nothing but looks in a settled pair, a stated number a minute at most, no busy loop, no contest
     for a part, stops far apart, no stop for ping loss up to 20 %.
  6. After the last fault the pair settles.
  7. Nothing unforeseen is raised.

  The order is that of importance: one that holds a route, answers pings and does not forward is left alone (2 before
  4), and so is one whose pings are blocked from the start and whose checks pass.

The window that remains: a stop that is under way while the other side decides is seen only once it has taken effect.
Invariant 1 holds for effects up to LATEST_EFFECT late; beyond, two monitors that cannot hear each other can both stop.
A request that the process was suspended in the middle of sending counts as sent: no monitor can call it back.

Run it: pytest tests/simulation (some thousands of schedules), python -m tests.simulation (the soak, then the
deliberate mistakes of mutations.py, each of which an invariant must catch).
"""
