# Settings of nat_monitor.py.  The same file serves both instances.

PRIMARY_INSTANCE_ID = ''        # holds route and address while it is well
SECONDARY_INSTANCE_ID = ''      # takes over when the primary dies
ROUTE_TABLE_IDS = []            # tables of the private subnets, e.g. ['rtb-0123456789abcdef0']
ELASTIC_IP = None               # the egress address, e.g. '198.51.100.7'; None: there is none

NUM_PINGS = 3                   # misses in a row that make a peer silent; 2 to 100
PING_TIMEOUT = 1                # s without an answer: a miss; 0.05 to 20
WAIT_BETWEEN_PINGS = 0.25       # s, after an answer; 0.05 to 600
WAIT_FOR_INSTANCE_STOP = 60     # s, before a stop is forced; 20 to 3600
WAIT_FOR_INSTANCE_START = 300   # s, for a started peer to answer; 30 to 7200

FAIL_BACK = True                # primary claims all at its start: True, False, or 1 to 86400 s on
PROBE_ADDRESS = None            # answers pings, to prove that the peer forwards; None: no probes
NOTIFY_COMMAND = None           # told of warnings, e.g. ['/usr/local/sbin/notify']
