"""The pair in simulation: two real monitors, every fault and every pair of faults, in virtual time.

Both run unmodified, in one thread and on one virtual clock, against an EC2 and a network in memory.  A schedule of
faults happens to them, and each time it gives the same run.

hub.py        Time.  A monitor is a process of greenlets: its loop, and each call that it makes in a "thread".  It can
              be killed or suspended whenever it waits.  A call whose deadline has passed may still take effect.
cloud.py      EC2.  Writes come late, reads and checks lag, for failing and for recovering apart; calls of one kind
              share a bucket; who loses the address is blind to EC2 for a while, and its connections are dead.
pair.py       The pair, the network between, what each fault does.  An operator steps in only after the last one, and
              only where no monitor can: neither instance is on its feet.
faults.py     Which faults there are, and which schedules are made of them.
invariants.py What must hold.
search.py     Lives through schedules; python -m tests.simulation is the soak.
account.py    500 pairs at once.

The window that remains is what EC2's reads cannot tell yet: a stop that is under way while the other side decides is
seen only once it has taken effect.  A tag counts from when EC2 has told it to the monitor that acts.  A request that
the process was suspended in the middle of sending counts as sent: no monitor can call it back.
"""
