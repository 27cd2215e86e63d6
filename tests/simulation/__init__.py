"""The pair in simulation: two real monitors, every fault and every pair of faults, virtual time.

Two monitors that stop each other's machines are a distributed system.  Here both run unmodified, in one thread and on
one virtual clock, against an EC2 and a network in memory; a schedule of faults happens to them.  The same schedule
always gives the same run.

What is modelled

  Time (hub.py).  Each monitor is a process of greenlets: its loop, and each EC2 call or probe that it makes in a
  "thread".  A process can be killed or suspended whenever it waits.  A call whose deadline has passed goes on and may
  still take effect.  Computing takes no time.  While both are well, and nothing is about to happen, pings and probes
  are left out.

  EC2 (cloud.py).  A call travels to EC2, takes effect there, and its answer travels back; either way can be slow or
  lossy.  Writes take effect up to LATEST_EFFECT after they are sent.  Reads, of tags too, show what was true up to
  LATEST_READ earlier.  Instances are pending, running, stopping, stopped; a guest that hangs stays stopping until it is
  forced, one that lives but ignores the stop is cut off by EC2 after a while.  Status checks lag, for failing and for
  recovering apart.  A route to a stopped instance is a blackhole.  Who loses the address is blind to EC2 for a while,
  and all connections made through it are dead.  Calls of one kind share a token bucket.

  The network and the faults (pair.py).  Crash, hang, reboot, stop, termination, a new private address; ping blocked,
  lossy; an instance cut off from its peer, from EC2, from both; EC2 down, slow, late, lossy, throttled, without error
  codes, forbidding an action, telling no checks, or wrongly that they fail, leaving one out, without capacity;
  metadata, credentials or forwarding late at boot; a monitor killed or suspended; route and address moved, deleted or
  given to others; a table added; forwarding lost, noticed by the host itself or by nobody but a probe; the
  source/destination check on; the target of probes dead; an instance under maintenance.  An operator steps in only
  after the last fault, and only where no monitor can: neither instance is on its feet.

Which schedules (search.py): every single fault, each kind at each of the two and at both, for a grid of durations and
moments; every pair of faults on a coarser grid, in an order that is always the same; three faults and more, as
hypothesis draws them.

What must hold (invariants.py): each function there says it in its first sentence.

The window that remains is what EC2's reads cannot tell yet: a stop that is under way while the other side decides is
seen only once it has taken effect.  A tag counts from when EC2 has told it to the monitor that acts.  A request that
the process was suspended in the middle of sending counts as sent: no monitor can call it back.

Run it: pytest tests/simulation (every single fault, some pairs), python -m tests.simulation (the soak: every pair).
"""
