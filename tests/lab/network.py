"""The machines of the lab and the packets between them: namespaces, links and the router's rules."""

import contextlib
import ipaddress
import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

ENDPOINT = '203.0.113.10'  # EC2
ECHO = '203.0.113.20'  # the echo server of traffic.py
ELASTIC_IP = '198.51.100.7'
GATEWAY = '10.0.0.1'
PRIVATE = '10.0.1.10'  # the private host
INSTANCE_ADDRESSES = {'primary': '10.0.0.11', 'secondary': '10.0.0.12'}
MARKS = {'primary': 11, 'secondary': 12}  # of a packet and of the routing table that it selects
METADATA = '169.254.169.254'

# Who is not root often has no sbin in the path.
ENVIRONMENT = {**os.environ, 'PATH': os.environ.get('PATH', '/usr/bin:/bin') + ':/usr/sbin:/sbin'}

# The holder of a node's namespaces is the init process of its PID namespace. It ends with the pipe to the process
# that made it, and everything in the namespace with it. Ignoring SIGCHLD, it leaves no zombies.
HOLD = 'echo ready; exec env --ignore-signal=CHLD cat >/dev/null'

OPEN_SOCKET = '''
import socket, sys
door = socket.socket(fileno=int(sys.argv[1]))
opened = socket.socket(socket.AF_INET, int(sys.argv[2]))
opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
opened.bind((sys.argv[3], int(sys.argv[4])))
if opened.type == socket.SOCK_STREAM:
    opened.listen(128)
socket.send_fds(door, [b'.'], [opened.fileno()])
'''


class NodeFailed(Exception):
    """A command in a node failed; the message holds what it wrote."""


class Node:
    """A machine: network, mounts, processes and host name of its own, held by a process without a name in /run."""

    def __init__(self, name: str, parent: Optional['Node'] = None, prepare: str = '') -> None:
        """Create the namespaces, inside those of *parent* if there is one, and run the shell commands *prepare*."""
        self.name = name
        # Who may not make namespaces may be root in a user namespace, and make all others in that one.
        self._user: List[str] = parent._user if parent else [] if may_unshare() else ['--user', '--map-root-user']
        command = ['unshare', '--net', '--mount', '--pid', '--uts', '--fork', '--kill-child', '--mount-proc']
        command = (parent.enter() if parent else []) + command + ([] if parent else self._user)
        script = f'set -e; hostname {name} || true; ip link set lo up\n{prepare}\n{HOLD}'
        self.holder = subprocess.Popen([*command, 'sh', '-c', script], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE, text=True, start_new_session=True, env=ENVIRONMENT)
        assert self.holder.stdout and self.holder.stderr
        if self.holder.stdout.readline() != 'ready\n':
            self.holder.kill()
            raise NodeFailed(f'{name}: namespaces cannot be made: {self.holder.stderr.read().strip()}')
        self.pid = self._init_process()

    def _init_process(self) -> int:
        """Return the PID of the node's init process: nsenter and unshare each have one child, it has none."""
        pid = self.holder.pid
        while children := Path(f'/proc/{pid}/task/{pid}/children').read_text().split():
            pid = int(children[0])
        return pid

    @property
    def root(self) -> Path:
        """The node's file system as seen from outside, its own /proc, /run and /var/log included."""
        return Path(f'/proc/{self.pid}/root')

    def enter(self, *namespaces: str) -> List[str]:
        """Return the beginning of a command that is to run in the node (or only in some *namespaces* of it)."""
        user = ['--user', '--preserve-credentials'] if self._user else []
        names = namespaces or ('mount', 'net', 'pid', 'uts')
        return ['nsenter', f'--target={self.pid}', *user, *(f'--{name}' for name in names), '--']

    def run(self, *command: str, check: bool = True, **options: Any) -> 'subprocess.CompletedProcess[str]':
        """Run *command* in the node; unless told otherwise, a failure raises NodeFailed."""
        options = {'capture_output': True, 'text': True, 'env': ENVIRONMENT,
                   'stdin': None if 'input' in options else subprocess.DEVNULL, **options}
        result: 'subprocess.CompletedProcess[str]' = subprocess.run([*self.enter(), *command], **options)
        if check and result.returncode:
            raise NodeFailed(f'{self.name}: {" ".join(command)}: exit {result.returncode}: {result.stderr}')
        return result

    def socket(self, kind: socket.SocketKind, address: str, port: int) -> socket.socket:
        """Open a socket in the node's network, bound (and listening, if it is TCP), for use by this process.

        A socket stays in the network in which it was opened; a child opens it and passes it on, as a process with
        threads may not enter a user namespace.
        """
        here, there = socket.socketpair()
        with here, there:
            subprocess.run([*self.enter(), sys.executable, '-IS', '-c', OPEN_SOCKET, str(there.fileno()),
                            str(int(kind)), address, str(port)], pass_fds=[there.fileno()], check=True, env=ENVIRONMENT)
            [descriptor] = socket.recv_fds(here, 1, 1)[1]
        return socket.socket(fileno=descriptor)

    def end(self) -> None:
        """End every process of the node, whatever state it is in, and wait until the holder is gone."""
        if self.holder.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended with the node around it
                os.kill(self.pid, 9)  # the init process: the kernel ends all others with it
            self.holder.wait()


def may_unshare() -> bool:
    """Tell whether this process may make namespaces without a user namespace around them."""
    return subprocess.run(['unshare', '--net', 'true'], stderr=subprocess.DEVNULL).returncode == 0


@dataclass
class Link:
    """What the network does to the packets of one instance."""

    dead: bool = False  # stopped, crashed or frozen: nothing passes, no error comes back
    cut_off: bool = False  # the same, but by the network's fault
    blocks_pings: bool = False  # echo requests to it and from it are dropped
    public: Optional[str] = None


def mac(address: str) -> str:
    """Return the MAC of the interface that has this address, in the public subnet."""
    return '02:00:' + bytes(map(int, address.split('.'))).hex(':')


class Network:
    """Five nodes and four links; the router is the node in which the others are nested.

    The public subnet is a bridge in the router. As in a VPC, which answers for its hosts, neighbours keep the MAC of
    one that is dead. All that changes later (the route, public addresses, faults) is kept in attributes, and takes
    effect in one step with `apply()`.
    """

    def __init__(self) -> None:
        self.links = {name: Link() for name in INSTANCE_ADDRESSES}
        self.target: Optional[str] = None  # the instance to which the private host's default route leads
        self.loss_between = 0  # percent of all packets between the two instances that are lost, each way
        self._applied = ''
        self._closed = False
        self._lock = threading.Lock()
        self.router = Node('router', prepare='''
            sysctl() { echo $2 >/proc/sys/net/ipv4/$1; }
            for kind in all default; do sysctl conf/$kind/rp_filter 0; sysctl conf/$kind/send_redirects 0; done
            sysctl ip_forward 1
            mount -t tmpfs -o mode=0755 tmpfs /run''')
        try:
            self._connect()
        except BaseException:
            self.router.end()
            raise

    def _connect(self) -> None:
        self.nodes: Dict[str, Node] = {}
        self.router.run('sh', '-ec', f'''ip link add public address {mac(GATEWAY)} type bridge
            ip address add {GATEWAY}/24 dev public; ip link set public up''')
        self._add('private', [PRIVATE])
        self._add('internet', [ENDPOINT, ECHO])
        for name, address in INSTANCE_ADDRESSES.items():
            self._add(name, [address], MACHINE)
            self.router.run('sh', '-ec', f'''
                ip route add default via {address} table {MARKS[name]}
                ip rule add fwmark {MARKS[name]} lookup {MARKS[name]}''')
        self.router.run('ip', 'route', 'add', '203.0.113.0/24', 'dev', 'internet')
        # A server on the internet knows nothing of a connection whose client suddenly has another address. The echo
        # server resets it; what stands before EC2 answers such packets with silence.
        self.nodes['internet'].run('nft', '-f', '-', input=f'''
            table ip internet {{
                chain input {{
                    type filter hook input priority 0
                    ip daddr {ENDPOINT} ct state invalid drop
                    ip daddr {ENDPOINT} ct state new tcp flags & (fin|syn|rst|ack) != syn drop
                }}
            }}''')
        self.apply()

    def _add(self, name: str, addresses: List[str], prepare: str = '') -> None:
        node = Node(name, self.router, prepare)
        self.nodes[name] = node
        # Only the network namespace is entered, so that PIDs mean the same to `ip` as they do here.
        subprocess.run([*self.router.enter('net'), 'ip', 'link', 'add', name, 'type', 'veth',
                        'peer', 'name', 'eth0', 'address', mac(addresses[0]), 'netns', str(node.pid)],
                       check=True, env=ENVIRONMENT)
        if name in self.links:
            attach = [f'ip link set {name} up master public',
                      f'ip neigh add {addresses[0]} lladdr {mac(addresses[0])} dev public']
        else:
            attach = [f'ip address add {GATEWAY}/32 dev {name}', f'ip link set {name} up',
                      *(f'ip route add {address} dev {name}' for address in addresses)]
        length = 24 if name in self.links else 32
        self.router.run('sh', '-ec', '\n'.join(attach))
        node.run('sh', '-ec', '\n'.join(f'ip address add {address}/{length} dev eth0' for address in addresses))
        self.bring_up(name)

    def bring_up(self, name: str) -> None:
        """Bring the interface of a node up, as its boot does; what connection tracking knew is forgotten."""
        others = [address for other, address in INSTANCE_ADDRESSES.items() if other != name]
        neighbours = [GATEWAY, *others] if name in self.links else []
        self.nodes[name].run('sh', '-ec', '\n'.join([
            'ip link set eth0 down; ip link set eth0 up',
            f'ip route replace {GATEWAY} dev eth0; ip route replace default via {GATEWAY}',
            *(f'ip neigh replace {address} lladdr {mac(address)} dev eth0' for address in neighbours)]))

    def apply(self) -> None:
        """Make the router do what the attributes say, in one transaction."""
        with self._lock:
            rules = self._rules()
            if rules != self._applied and not self._closed:
                result = subprocess.run([*self.router.enter('net'), 'nft', '-f', '-'], input=rules, text=True,
                                        capture_output=True, env=ENVIRONMENT)
                if result.returncode:
                    raise NodeFailed(f'router: nft: {result.stderr}\n{rules}')
                self._applied = rules

    def _rules(self) -> str:
        """Return the router's rules. They keep no state: who loses an address loses its connections at once."""
        public = {INSTANCE_ADDRESSES[name]: link.public for name, link in self.links.items() if link.public}
        route = f'meta mark set {MARKS[self.target]}' if self.target else ''
        drops: Dict[str, List[str]] = {'in': [], 'out': []}  # of frames to an instance and from one
        for name, link in self.links.items():
            match = '' if link.dead or link.cut_off else 'icmp type echo-request' if link.blocks_pings else None
            if match is not None:
                drops['in'].append(f'oifname {name} {match} drop')
                drops['out'].append(f'iifname {name} {match} drop')
        if self.loss_between:
            pair = f'{{ {", ".join(INSTANCE_ADDRESSES.values())} }}'
            drops['out'].append(f'ip saddr {pair} ip daddr {pair} numgen random mod 100 < {self.loss_between} drop')
        return f'''
            table bridge vpc
            delete table bridge vpc
            table bridge vpc {{
                chain prerouting {{
                    type filter hook prerouting priority 0
                    {"; ".join(drops['out'])}
                }}
                chain postrouting {{
                    type filter hook postrouting priority 0
                    {"; ".join(drops['in'])}
                }}
            }}
            table ip vpc
            delete table ip vpc
            table ip vpc {{
                map public {{ type ipv4_addr : ipv4_addr; {elements(public)} }}
                map private {{ type ipv4_addr : ipv4_addr; {elements({b: a for a, b in public.items()})} }}
                chain prerouting {{
                    type filter hook prerouting priority raw
                    iifname private ip daddr != 10.0.0.0/16 {route}
                    iifname internet ip daddr set ip daddr map @private
                }}
                chain forward {{
                    type filter hook forward priority 0
                    iifname private oifname internet drop
                }}
                chain postrouting {{
                    type filter hook postrouting priority 0
                    oifname internet ip saddr set ip saddr map @public
                    oifname internet ip saddr 10.0.0.0/16 drop
                }}
                chain output {{
                    type filter hook output priority 0
                    ip protocol icmp drop
                }}
            }}'''

    def close(self) -> None:
        """End all nodes: they are nested in the router's PID namespace."""
        with self._lock:  # a call to EC2 that is under way changes nothing any more
            self._closed = True
        self.router.end()
        for node in self.nodes.values():
            node.end()


def elements(mapping: Dict[str, Any]) -> str:
    """Return a mapping as the elements of an nftables map, which may not be written when there are none."""
    pairs = ', '.join(f'{key} : {value}' for key, value in sorted(mapping.items()))
    return f'elements = {{ {pairs} }};' if pairs else ''


# The part of a NAT instance's disk and configuration that is its own: the rest of the file system is the host's.
MACHINE = f'''
for directory in /run /var/log /usr/local/sbin; do mount -t tmpfs -o mode=0755 tmpfs $directory; done
ip address add {METADATA}/32 dev lo
for kind in all default; do
    echo 0 >/proc/sys/net/ipv4/conf/$kind/rp_filter; echo 0 >/proc/sys/net/ipv4/conf/$kind/send_redirects
done
nft -f - <<END
table ip nat {{
    chain postrouting {{
        type nat hook postrouting priority srcnat
        oifname eth0 ip saddr 10.0.0.0/16 fib saddr type != local masquerade
    }}
}}
END
'''

assert all(ipaddress.ip_address(address).is_private for address in (ENDPOINT, ELASTIC_IP, *INSTANCE_ADDRESSES.values()))
