"""A laboratory for the monitor: real packets, and an EC2 that can be made to fail.

Two unmodified copies of nat_monitor.py run in it as they do on two NAT instances: as root, started by their @reboot
job, pinging each other, asking a metadata service and EC2. Nothing leaves it, and nothing is left behind.

                     internet host                        what it is made of
             203.0.113.10    203.0.113.20
            EC2 (ec2.py:     echo server
            moto + layer)    (traffic.py)                 network.py   the nodes and the router's rules
                      |                                   ec2.py       calls, states, failures
                      | 203.0.113.0/24                    metadata.py  169.254.169.254 in each instance
                      |                                   traffic.py   the private host and who serves it
           +---------------------+                        lab.py       Lab and Instance: all of it together
           |       router        |
           | internet gateway:   |   public address <-> private address, 1:1, without any state
           | route table:        |   the private host's packets -> mark -> `ip rule` -> the instance that is the target
           +---------------------+
               | 10.0.0.1       |
         ------+------- bridge  +---------------+
         |            |                         |
        10.0.0.11   10.0.0.12               10.0.1.10, behind the first route table
        primary     secondary               private host: a datagram to the echo server
        NAT         NAT                     every 10 ms (traffic.py)

Each box is a *node*: a network, mount, PID and host-name namespace, held by a process that dies with the one that
opened the lab, and takes all others with it. A node has no name in /run/netns. Whoever is not root gets a user
namespace around it all. An instance has a /run, a /var/log and a /usr/local/sbin of its own, and shares the rest of
the file system with the host; `killall` in it finds only its own processes.

The public subnet is one segment, a bridge in the router: a frame with the peer's MAC and the address of an internet
host reaches the peer, which forwards and translates it. The instances and the router keep each other's MAC for good,
so that the failure of one is silence for the others, as in a VPC, and not an ARP failure. All other links are veth
pairs with a /32 address at either end. What the router does with frames (faults) and packets (routes, addresses) is
one set of rules, written anew and replaced in one transaction with each change (`Network.apply()`). It tracks no
connection: who loses a public address has lost its connections, without a FIN, the EC2 call in flight included.

EC2 is moto in this process, behind a listening socket that was opened in the internet host, and speaks TLS: the
instances trust (AWS_CA_BUNDLE) an authority that is made at run time. Connections, handshakes and calls take a round
trip of 1 ms each, which the server waits for, as few kernels can delay packets. Before moto sees a call,
`Ec2.answer()` lets time pass, injects what a test wants to go wrong, and answers dry runs; after it, the router is
made to do what moto's records say. `Life` gives moto's instances the states of a real one and the time that they take;
a start boots the node's `Instance`: an empty /run, a fresh interface, then the @reboot job.

When a with statement ends with an exception, the lab prints its time line: logs, calls, states, what the test did.

It needs Linux with network namespaces and nftables, and the commands unshare, nsenter, setsid (util-linux), ip
(iproute2), nft and killall (psmisc).
"""

from .lab import Lab
from .network import ELASTIC_IP, ENDPOINT

__all__ = ['ELASTIC_IP', 'ENDPOINT', 'Lab']
