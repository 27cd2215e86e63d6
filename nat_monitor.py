#!/usr/bin/python3
"""Watch the other NAT instance of a pair and take over its work when it dies.

One monitor runs on each of two NAT instances.  It pings the other one, the peer.  When the peer
falls silent and EC2 answers this monitor, it takes over: it moves the default route of the private
subnets and the egress address to its own instance, then restarts the peer, once EC2's status checks
have failed that.  What it does is in README.adoc, "How it works", in the same words.

Usage: nat_monitor.py [--check | --status | --version | --help]

  --check   verify the set-up of the pair, change nothing, and end
  --status  say how the pair is as the monitor on this host sees it, and end; any user may ask

Files:    nat_config.py beside this file: the settings
          /run/nat_monitor.lock: held while a monitor runs
          /run/nat_monitor.status: what it knows, in JSON, replaced once a minute at least
          standard output: one line per event
Signals:  SIGHUP (a closed terminal) asks EC2 now; SIGTERM, SIGINT, SIGQUIT, SIGUSR1 and SIGUSR2
          end it at once with a line
Exit:     0 ended by a signal (--check: nothing failed), 1 a monitor already runs (--check:
          something failed, or a signal ended it), 2 bad settings or arguments, a missing or
          broken package, not one of the pair, not root; --status: 0 all is well, 1 something is
          to mend, 2 no monitor runs
"""
from __future__ import annotations

import array
import contextlib
import dataclasses
import difflib
import fcntl
import functools
import glob
import http.client
import ipaddress
import json
import logging
import math
import operator
import os
import pathlib
import queue
import random
import re
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from typing import Any, Callable, Iterator, NamedTuple, Optional, Sequence

try:
    import boto3
    import requests
    from botocore import config, credentials, exceptions, httpsession, session, utils, xform_name
    IMPORT_ERROR = None
except BaseException as import_error:  # whatever a broken one raises, a panic of Rust's as well
    IMPORT_ERROR = import_error

VERSION = '1.0'
LOCK_FILE, STATUS_FILE = '/run/nat_monitor.lock', '/run/nat_monitor.status'
SETTINGS_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'nat_config.py')
EVERYWHERE = '0.0.0.0/0'
NEVER = -math.inf          # when something happened that never did

CONNECT_TIMEOUT = 2.0      # s, of one EC2 call
READ_TIMEOUT = 4.0
CALL_DEADLINE = CONNECT_TIMEOUT + READ_TIMEOUT  # of our own: name resolution ignores the two above
MOVE_DEADLINE = 1.5        # of the move of the address, whose answer is often lost
CONNECTIONS = 16           # at the same time: of more, the handshakes take longer than they save

# Seconds to the next question to EC2
LOOK_INTERVAL = 120.0      # while all is well
LOOK_AFTER_CHANGE = 15.0   # while something is apart or missing
SOON = 5.0                 # while something is on its way
CLAIM_RETRY = 3.0          # longest pause between two claims

# Other times of the decision, in seconds
HALF_A_MINUTE = 30.0       # for which EC2's checks must fail a peer, and not this instance
MINUTE = 60.0              # also the longest gap between two answers that tell the same
WELL = 10.0                # of answers without a miss: what the peer took before is no news
HEIR_WAITS = 10.0          # until it brings together what is apart
PATIENCE = LOOK_INTERVAL + 30.0  # the same for the other one
AN_HOUR = 3600.0
REFUSED_FOR_LONG = 20      # claims
PROBE_INTERVAL = 5.0       # s

log = logging.getLogger('nat_monitor')


# Errors -------------------------------------------------------------------------------------------

class Refusal(Exception):
    """What the operator must mend before a monitor can run.

    `faults` are sentences, `exit_code` ends the process.
    """

    def __init__(self, *faults: str, exit_code: int = 2) -> None:
        self.faults, self.exit_code = faults, exit_code


class NoAnswer(Exception):
    """No answer came back before the deadline."""


class NotSent(NoAnswer):
    """No request left by HTTP before the deadline, so nothing came of a call of EC2."""


class OwnFault(Exception):
    """A ping could not leave this host, so it tells nothing about the peer."""


def in_words(error: Any) -> str:
    """Say on one line what came back; EC2's encoded authorization messages are cut off."""
    name, text = type(error).__name__, str(error)
    if code := code_of(error):
        name, text = code, str(error.response['Error'].get('Message') or '')
    # The same trouble in the same words, wherever an object may lie.
    text = re.sub('Encoded authorization.*| object at 0x[0-9a-f]+', '', ' '.join(text.split()))
    return f'{name}: {text[:500]}'.rstrip(': ')


def failures_in(results: dict[str, Any]) -> str:
    """Return what went wrong by name, in words, '' if nothing did."""
    return '; '.join(f'{name}: {in_words(result)}' for name, result in results.items()
                     if isinstance(result, Exception))


def code_of(result: Any) -> str:
    """Return EC2's error code, or '' for anything else, such as the page of a proxy."""
    told = result.response.get('Error', {}) if isinstance(result, exceptions.ClientError) else {}
    return re.sub(r'^\d+$', '', told.get('Code') or '')  # what botocore puts for none: the status


# What to run, by the name of a trouble or of a line of --check.  Braces: ids and settings, what
# the line is about (`it`), and what EC2 describes of that (`its`) and of this instance (`own`).
REMEDIES: dict[str, str] = dict(re.findall('(.+?): (.+)', '''
settings: nano {settings_file}  # and restart the monitor
check: nat_monitor.py --check
ping: ip route get {peer_address}; ping -c 20 {peer_address}
probe: ping -c 20 {it}  # if that is lost, too, change PROBE_ADDRESS, else see --check on the peer
file: chown root:root {path} && chmod go-w {path}
metadata: aws ec2 modify-instance-metadata-options --http-endpoint enabled --instance-id <its id>
role: aws ec2 associate-iam-instance-profile --iam-instance-profile Name={role} --instance-id {it}
other profile: aws ec2 describe-iam-instance-profile-associations --filters \
Name=instance-id,Values={it}  # then replace-iam-instance-profile-association
permission: aws iam put-role-policy --role-name {role} --policy-name NAT_Monitor \
--policy-document file://policy.json && aws ec2 create-tags --resources {tagged} \
--tags Key=nat_monitor,Value=${{tag:-true}}
service control policy: aws organizations list-policies --filter SERVICE_CONTROL_POLICY
permissions boundary: aws iam get-role --role-name {role} --query Role.PermissionsBoundary
VPC endpoint policy: aws ec2 describe-vpc-endpoints  # that of EC2
clock: systemctl enable --now chronyd || systemctl enable --now chrony; chronyc makestep
state: aws ec2 start-instances --instance-ids {it}  # a disk key of yours needs kms:CreateGrant
gone: nano {settings_file}  # launch another one instead of {it}, and put its id in
source/dest. check: aws ec2 modify-instance-attribute --instance-id {it} --no-source-dest-check
network interface: aws ec2 detach-network-interface \
--attachment-id {its[NetworkInterfaces][1][Attachment][AttachmentId]}
public address: aws ec2 modify-network-interface-attribute --associate-public-ip-address \
--network-interface-id {its[NetworkInterfaces][0][NetworkInterfaceId]}  # no Elastic IP comes back
Spot: aws ec2 describe-spot-instance-requests --spot-instance-request-ids {found}  # persistent?
Auto Scaling group: aws autoscaling detach-instances --instance-ids {it} \
--auto-scaling-group-name {found} --should-decrement-desired-capacity
maintenance: aws ec2 delete-tags --resources {it} --tags Key=nat_monitor_maintenance  # later
stop protection: aws ec2 modify-instance-attribute --instance-id {it} --no-disable-api-stop
subnets: aws ec2 associate-route-table --route-table-id {it} --subnet-id <private subnet>
own subnet: nano {settings_file}  # or give {subnet} a public route table of its own
default route: aws ec2 describe-route-tables --route-table-ids {it}
Elastic IP: aws ec2 describe-addresses --public-ips {it}
security group: aws ec2 authorize-security-group-ingress --protocol icmp --port -1 \
--group-id {its[NetworkInterfaces][0][Groups][0][GroupId]} --cidr {own[PrivateIpAddress]}/32
forwards: nat_monitor.py --check  # on {it}
forwarding: echo {switch}=1 >> /etc/sysctl.d/90-nat.conf && sysctl --system
forwarding at boot: sed -i 's|{name}.*|{name} = 1|' {path}
masquerading: nft 'table ip nat {{ chain postrouting {{ type nat hook postrouting priority 100; \
ip saddr {it} oifname != "lo" masquerade; }}; }}'  # and in nftables.conf, for the next boot
rules: nft list ruleset; ip rule; ip route
cron job: install -m 644 nat_monitor.cron /etc/cron.d/nat_monitor  # LF at its end; program: 755
cron daemon: dnf install -y cronie; systemctl enable --now crond  # Debian: cron, both times
monitor: echo '{program} >> /var/log/nat_monitor.log 2>&1' | at now
turn: killall -w nat_monitor.py; echo '{program} >> /var/log/nat_monitor.log 2>&1' | at now
suspended: kill -CONT {pid}
'''))

# The same of a peer that stays silent, if it passes EC2's checks, and if these tell nothing
IF_DEAF = 'look at the security groups, network ACLs and packet filters between the two'
IF_DEAD = 'if it is dead, run: aws ec2 stop-instances --instance-ids {peer}'

# By kind, what is said of a trouble; the empty braces are what came back or is lacking.
TROUBLES: dict[str, str] = dict(re.findall('(.+?): (.+)', '''
metadata: the metadata service does not tell {}
client: {own_id} cannot make an EC2 client ({})
EC2: EC2 does not answer {own_id} ({}): it decides nothing
clock: the clock of {own_id} is off by {}: EC2 refuses its calls
questions: EC2 does not tell {own_id} {}
permissions: the role of {own_id} does not allow {}: a failover would fail
settings: EC2 does not know {}
host: {own_id} cannot NAT ({}): it claims nothing
source/dest. check: {it} cannot NAT ({})
monitor: no ping of the monitor on {peer_id} has come for {}: nobody takes over if {own_id} fails
ping: a ping to {peer_id} cannot leave {own_id} ({})
probe: a packet through {peer_id} to {it} {}
claim: {it} is not moved to {own_id} yet ({})
restart: {it} could not be {}
turn: {own_id} met something unforeseen ({}) and goes on
'''))


class Lasting:
    """Tell of troubles, which are nothing now, and trouble if they last.

    One is INFO when it begins and when it changes, and an ERROR with its remedy once it has lasted
    two minutes, or at once where that is asked for; its end is told at the highest of these.
    """

    def __init__(self, clock: Any, log: logging.Logger) -> None:
        self.clock, self.log = clock, log
        self.names = {'program': os.path.realpath(__file__), 'settings_file': SETTINGS_FILE}
        # By kind and what it is about: since when, the level told, the words, with the remedy.
        self.troubles: dict[tuple[str, str], tuple[float, int, str, str]] = {}

    def __call__(self, kind: str, failure: str, about: str = '', at_once: bool = False) -> bool:
        """Note what came back, '' if nothing failed; return whether something did."""
        now = self.clock.monotonic()
        since, level, told, _ = self.troubles.pop((kind, about), (now, logging.INFO, '', ''))
        if not failure:
            if told:
                self.log.log(level, f'over after {now - since:.0f} s: {told}')
            return False
        remedy = REMEDIES.get(kind, REMEDIES['check'])
        place = ('' if remedy.startswith('aws') else  # any workstation
                 ' on {peer_id}' if kind == 'monitor' else ' on {own_id}')
        words, line = (one.format(failure, it=about, **self.names)
                       for one in (TROUBLES[kind], f'{TROUBLES[kind]}; run{place}: {remedy}'))
        if level < logging.ERROR and (at_once or now - since >= 2 * MINUTE):
            level = logging.ERROR
            self.log.error(line)
        elif words != told:
            self.log.info(words)
        self.troubles[kind, about] = since, level, words, line
        return True

    @property
    def errors(self) -> list[str]:
        """Return the troubles that a person must see to, each with its remedy."""
        return [line for _, level, _, line in self.troubles.values() if level == logging.ERROR]


# Settings -----------------------------------------------------------------------------------------

EXAMPLES = ('192.0.2.', '198.51.100.', '203.0.113.')  # networks for documentation
AN_INSTANCE = "an instance id such as 'i-0123456789abcdef0'"
AN_ADDRESS = "a public IPv4 address such as '198.51.100.7', or None"


def is_id(value: Any, kind: str = 'i') -> bool:
    return re.fullmatch(f'{kind}-[0-9a-f]{{8}}([0-9a-f]{{9}})?', str(value)) is not None


def is_list_of_tables(value: Any) -> bool:
    return type(value) in (list, tuple) and len({i for i in value if is_id(i, 'rtb')}) == len(value)


def is_public_address(value: Any) -> bool:
    """Tell whether it can be an Elastic IP, or stands for one."""
    with contextlib.suppress(ValueError):
        address = ipaddress.IPv4Address(str(value))
        return address.is_global and not address.is_multicast or str(value).startswith(EXAMPLES)
    return False


def is_command(value: Any) -> bool:
    """Tell whether its first word is a program that nobody but root can change or replace."""
    return (type(value) in (list, tuple) and set(map(type, value)) == {str}
            and '\0' not in ''.join(value) and os.path.isabs(value[0]) and os.path.isfile(value[0])
            and os.access(value[0], os.X_OK) and all(fine for _, fine in on_the_way_to(value[0])))


def setting(allowed: str, check: Callable[[Any], bool], default: Any = dataclasses.MISSING) -> Any:
    """Declare a setting: what is allowed, its check, and a default, always allowed, if any."""
    return dataclasses.field(default=default, metadata={'allowed': allowed, 'check': check})


def number(least: float, most: float, default: Any, what: str = 'a number of seconds') -> Any:
    """Declare a number; one with a whole default is whole, and True is none."""
    return setting(f'{what} from {least} to {most}', lambda value: (
        type(value) in (int, type(default)) and least <= value <= most), default)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What nat_config.py says, checked; there the names are in capitals.  Times in seconds."""

    primary_instance_id: str = setting(AN_INSTANCE, is_id)
    secondary_instance_id: str = setting(AN_INSTANCE, is_id)
    route_table_ids: Sequence[str] = setting(
        "a list of different route table ids such as ['rtb-0123456789abcdef0']", is_list_of_tables)
    elastic_ip: str | None = setting(AN_ADDRESS, is_public_address, None)
    num_pings: int = number(2, 100, 3, 'a whole number')
    ping_timeout: float = number(0.05, 20, 1.0)
    wait_between_pings: float = number(0.05, 600, 0.25)
    wait_for_instance_stop: float = number(20, 3600, 60.0)  # below 20, the pair contends
    wait_for_instance_start: float = number(30, 7200, 300.0)
    fail_back: int = setting(
        'True (at once), False (never), or a whole number of seconds from 1 to 86400',
        lambda value: value is False or type(value) is int and 1 <= value <= 86400, True)
    probe_address: str | None = setting(AN_ADDRESS, is_public_address, None)
    notify_command: Sequence[str] | None = setting(
        "a list such as ['/usr/local/sbin/notify'], a program that root owns and nobody else can "
        'write, nor any directory above it, or None', is_command, None)

    @property
    def parts(self) -> tuple[str, ...]:
        """All that one of the pair holds: the route tables, then the address."""
        return (*self.route_table_ids, *([self.elastic_ip] if self.elastic_ip else ()))


SETTINGS = {field.name.upper(): field for field in dataclasses.fields(Settings)}
REQUIRED = [name for name, field in SETTINGS.items() if field.default is dataclasses.MISSING]


def read_settings(path: str = SETTINGS_FILE) -> Settings:
    """Read and check the settings; raise Refusal with all that is wrong with them."""
    try:
        found = runpy.run_path(path)
    except BaseException as error:  # whatever a line of the file may raise, such as SystemExit
        raise Refusal(f'{path}: {in_words(error)}; allowed are lines of the form NAME = value')
    return check_settings({n: found[n] for n in found if not n.startswith('__')}, path)


def check_settings(names: dict[str, Any], path: str) -> Settings:
    """Make Settings of the names set in the file at `path`; raise Refusal with every fault."""
    empty = [name for name in REQUIRED if not names.get(name)]
    faults = [f'fill in {", ".join(empty)}: the ids of your pair and its tables'] * bool(empty)
    for name, value in names.items():
        field = SETTINGS.get(name)
        if not field:
            nearest = difflib.get_close_matches(name.upper(), SETTINGS, 1) or SETTINGS
            faults.append(f'{name} is not a setting; did you mean {" or ".join(nearest)}?')
        elif not (name in empty or value is field.default or field.metadata['check'](value)):
            faults.append(f'{name} is {value!r}, but must be {field.metadata["allowed"]}')
        elif value and name == REQUIRED[1] and value == names.get(REQUIRED[0]):
            faults.append(f'{" and ".join(REQUIRED[:2])} are both {value}, but must be different')
    if faults:
        raise Refusal(*(f'{path}: {fault}' for fault in faults))
    return Settings(**{name.lower(): value for name, value in names.items()})


def place_in_pair(settings: Settings, own_id: str) -> tuple[bool, str]:
    """Tell whether this is the primary, and the peer's id; raise Refusal if it is neither."""
    pair = settings.primary_instance_id, settings.secondary_instance_id
    if own_id not in pair:
        raise Refusal(f'this instance, {own_id}, is neither of the pair, {" and ".join(pair)}')
    return own_id == pair[0], pair[own_id == pair[0]]


# Metadata -----------------------------------------------------------------------------------------

class Metadata:
    """The instance metadata service, version 2 (a session token for each item)."""

    def __init__(self, base_url: str | None = None) -> None:
        self.base_url = (base_url or os.environ.get('AWS_EC2_METADATA_SERVICE_ENDPOINT')
                         or 'http://169.254.169.254').rstrip('/')

    def get(self, item: str) -> str:
        """Return the text of /latest/meta-data/`item`; raise requests.RequestException."""
        with requests.Session() as service:
            service.trust_env = False  # a proxy must not see the token
            service.hooks['response'] = lambda answer, **_: answer.raise_for_status()
            token = service.put(f'{self.base_url}/latest/api/token', timeout=(1, 2),
                                headers={'X-aws-ec2-metadata-token-ttl-seconds': '60'})
            return service.get(f'{self.base_url}/latest/meta-data/{item}', timeout=(1, 2), headers={
                'X-aws-ec2-metadata-token': token.text}).text.strip()


# Ping ---------------------------------------------------------------------------------------------

REQUESTS_PER_PING = 6  # with four, three misses in a row are too frequent at a loss of 40 %
SOL_RAW, ICMP_FILTER, ECHO_REPLY, ECHO_REQUEST = 255, 1, 0, 8
SO_ATTACH_FILTER, SIOCGIFADDR, ETH_P_IP, TTL = 26, 0x8915, 0x0800, 64


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of an even number of bytes, not all of them zero."""
    total: int = sum(struct.unpack(f'!{len(data) // 2}H', data))
    return -total % 0xFFFF  # a carry that is added again is worth 1: so is 0x10000 here


def echo_socket(kind: int, address: str) -> socket.socket:
    """Return a socket that lets in echo requests or replies from the address, and nothing else."""
    connection = socket.socket(
        socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)
    connection.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack('=i', ~(1 << kind)))
    connection.connect((address, 0))
    return connection


Way = tuple[socket.socket, bytes, Any]  # to send by it: what precedes a request, and to whom


def send_ping(timeout: float, address: str, own: Sequence[str] = (),
              through: str | None = None) -> bool:
    """Ping once: up to six requests over `timeout` seconds; tell whether one was answered.

    It does so from within this process: a child would get Ctrl-C and die like an outage.  A probe
    is a ping `through` a neighbour, the peer, as if it were the gateway; then only the replies
    count that it brings.  A miss always takes `timeout` seconds, and any number may go on at the
    same time.  Raises OwnFault if a request cannot leave this host, or would leave it with another
    address than its own ones, where these are given: the kernel would send it elsewhere (a VPN, or
    a bridge with a network of the VPC).  Raises NoAnswer if the neighbour is none.
    """
    tag = os.urandom(4)  # identifier and sequence number: those of this ping alone
    empty = struct.pack('!BBH', ECHO_REQUEST, 0, 0) + tag
    request = struct.pack('!BBH', ECHO_REQUEST, 0, checksum(empty)) + tag
    try:
        connection, head, to = way_to(address, own) if through is None else detour(address, through)
        with connection:
            started_at = time.monotonic()
            for count in range(1, REQUESTS_PER_PING + 1):
                connection.sendto(head + request, to)
                until = started_at + timeout * count / REQUESTS_PER_PING
                if is_answered(connection, tag, to, until):
                    return True
    except OSError as error:
        raise OwnFault(error.strerror or str(error))
    return False


def is_answered(connection: socket.socket, tag: bytes, to: Any, until: float) -> bool:
    """Wait until the monotonic time `until` for a reply to these requests, and tell."""
    while select.select([connection], [], [], max(0.0, until - time.monotonic()))[0]:
        with contextlib.suppress(OSError):  # an error from the network, which is a miss
            packet, sender = connection.recvfrom(2048)
            reply = packet[(packet[0] & 15) * 4:]  # behind the IP header
            if reply[4:8] == tag and sender[-1] == to[-1]:  # of a detour, the MAC address
                return True
    return False


def way_to(address: str, own: Sequence[str]) -> Way:
    """Return the kernel's way to the address."""
    connection = echo_socket(ECHO_REPLY, address)
    source = connection.getsockname()[0]
    if own and source not in own:
        raise OwnFault(f'the way to {address} is by another interface ({source}), '
                       f'not that with {own[0]}')
    return connection, b'', (address, 0)


def detour(address: str, through: str) -> Way:
    """Return the way through a neighbour: frames for its MAC address with IP packets inside.

    The socket lets in echo replies from the address, whoever brings them.
    """
    found = re.search(rf'(?m)^{re.escape(through)} +0x1 +0x[26] +(\S+) +\* +(\S+)$',
                      text_of('/proc/net/arp'))  # flags: 2 is complete, 4 is permanent
    if not found:  # it is in another subnet, or does not answer ARP
        raise NoAnswer(f'the MAC address of {through} is not known here')
    mac, device = found.groups()
    program = array.array('B', echo_replies_from(address))
    start, size = program.buffer_info()
    # It hears nothing until it is bound, behind the filter.
    connection = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
    connection.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack('HP', size // 8, start))
    connection.bind((device, ETH_P_IP))
    own = fcntl.ioctl(connection, SIOCGIFADDR, struct.pack('40s', device.encode()))[20:24]
    addresses = own + socket.inet_aton(address)
    # 20 bytes, and 8 behind them
    head = struct.pack('!BBH2sHBB', 0x45, 0, 28, os.urandom(2), 0, TTL, socket.IPPROTO_ICMP)
    head += struct.pack('!H', checksum(head + addresses)) + addresses
    return connection, head, (device, ETH_P_IP, 0, 0, bytes.fromhex(mac.replace(':', '')))


def echo_replies_from(address: str) -> bytes:
    """Return a program (classic BPF) with which the kernel drops all other IP packets.

    Each condition is a load and a jump, to the last line unless it is fulfilled.
    """
    source = int.from_bytes(socket.inet_aton(address), 'big')
    return b''.join(struct.pack('HBBI', *instruction) for instruction in (
        (0x30, 0, 0, 9), (0x15, 0, 6, socket.IPPROTO_ICMP),               # the protocol
        (0x20, 0, 0, 12), (0x15, 0, 4, source),                           # the source address
        (0xb1, 0, 0, 0), (0x50, 0, 0, 0), (0x15, 0, 1, ECHO_REPLY),       # behind the IP header
        (0x06, 0, 0, 0xffff),                                             # let it in
        (0x06, 0, 0, 0)))                                                 # drop it


class Requests:
    """The pings of the peer's monitor, as they reach this host; the kernel answers them anyway."""

    address = ''

    def __call__(self, address: str) -> bool:
        """Tell whether one has come from there since this was last asked; the first time, yes."""
        heard = address != self.address
        if heard:
            self.socket, self.address = echo_socket(ECHO_REQUEST, address), address
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # the smallest there is
        with contextlib.suppress(OSError):  # no more, or an ICMP error of a ping
            while True:
                heard = bool(self.socket.recv(64))
        return heard


# EC2 ----------------------------------------------------------------------------------------------

# Who holds a part; the last one: there is no such part.
SELF, PEER, NOBODY, OTHER, ABSENT = 'self', 'peer', 'nobody', 'other', 'absent'


Call = Callable[[Any], Any]  # of an EC2 client, whose class boto3 makes as it runs

in_call = threading.local()  # `sending`: notes a request of this thread, returns the ms it may take


send = http.client.HTTPConnection.send


def send_in_time(self: http.client.HTTPConnection, data: Any) -> None:
    """Keep a call that was given up from reaching EC2 later, when it may do harm.

    Whatever is above it, boto3 of any age or requests, sends through this method of the standard
    library: the one place behind name resolution, TLS, retries and the choice of a kept connection.
    The kernel would repeat lost bytes for minutes, even those of a closed socket, if
    TCP_USER_TIMEOUT did not end that.
    """
    if hasattr(in_call, 'sending'):
        if self.sock is None:
            self.connect()  # as `send` would do
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, in_call.sending())
    send(self, data)


def run_together(calls: dict[str, Callable[[], Any]], timeout: float,
                 meanwhile: Callable[[], float] = lambda: math.inf,
                 after_sending: float = math.inf, at_once: int = CONNECTIONS) -> dict[str, Any]:
    """Make the calls side by side and return, by name, what each returned or raised in time.

    They begin in their order, `at_once` at a time.  Each is given up `timeout` seconds from now,
    and `after_sending` seconds from its latest request, if that is earlier: what it takes to find
    and reach EC2 does not count for that.  It gives NoAnswer, or NotSent if it is known that it did
    not leave, and its thread is left to itself, for no time-out of the libraries covers name
    resolution.  `meanwhile` runs on the calling thread as long as answers are outstanding, at first
    at once; it returns the seconds for which it need not be called again, and may be all the same.
    It may take long: what came in time counts.
    """
    deadline = time.monotonic() + timeout
    limits = dict.fromkeys(calls, deadline)  # until when each is waited for
    not_sent = NotSent(f'nothing came within {timeout:g} s')
    results: dict[str, Any] = dict.fromkeys(calls, not_sent)
    waiting = iter(list(calls.items()))  # one for all threads
    changed = threading.Event()

    def note_sending(name: str) -> int:
        # Noted before the time is read: who gives the call up from then on knows of it.
        results[name] = NoAnswer(f'no answer within {min(timeout, after_sending):g} s')
        now = time.monotonic()
        if now >= limits[name]:
            results[name] = not_sent
            raise not_sent
        limits[name] = min(deadline, now + after_sending)
        changed.set()
        return math.ceil(min(limits[name] - now, READ_TIMEOUT) * 1000)

    def make_some() -> None:
        for name, call in waiting:
            in_call.sending = functools.partial(note_sending, name)
            try:
                result = call()
            except Exception as error:
                result = error
            if time.monotonic() <= limits[name]:
                results[name], limits[name] = result, NEVER
            changed.set()

    with contextlib.suppress(RuntimeError):  # no memory for another thread
        for _ in range(min(len(calls), at_once)):
            threading.Thread(target=make_some, daemon=True).start()
    while time.monotonic() < max(limits.values(), default=NEVER):
        changed.wait(min(meanwhile(), max(limits.values()) - time.monotonic()))
        changed.clear()
    list(waiting)  # what has not begun is not begun
    return dict(results)  # a thread that is left to itself may still change its own


# All of the starter's environment that counts for the calls to EC2 and to the metadata service.
VARIABLES = ('AWS_ENDPOINT_URL_EC2', 'AWS_EC2_METADATA_SERVICE_ENDPOINT', 'AWS_CA_BUNDLE')


def connect(region: str) -> Any:
    """Make an EC2 client that tries once and never hangs for long; the monitor spaces its calls.

    It has the credentials of the instance's role.  Beside VARIABLES, nothing counts that somebody
    has left in the environment or in /root/.aws: no proxy, for one, is told a token.
    """
    http.client.HTTPConnection.send = send_in_time  # type: ignore[method-assign]
    endpoint, _, bundle = map(os.environ.get, VARIABLES)
    core: Any = session.Session({  # nothing is read from a file or the environment
        **{name: (None, None, os.devnull if name.endswith('_file') else default, kind)
           for name, (_, _, default, kind) in session.Session.SESSION_VARIABLES.items()},
        'ignore_configured_endpoint_urls': (None, None, True, None)})
    fetcher: Any = utils.InstanceMetadataFetcher(base_url=Metadata().base_url, env={})
    fetcher._session = httpsession.URLLib3Session(timeout=1)  # that of its own would ask a proxy
    core.register_component('credential_provider', credentials.CredentialResolver(
        [credentials.InstanceMetadataProvider(fetcher)]))
    core.register('after-call.ec2', refuse_foreign_answer)
    return boto3.Session(botocore_session=core).client(
        'ec2', region, endpoint_url=endpoint or None, verify=bundle or True, config=config.Config(
            connect_timeout=CONNECT_TIMEOUT, read_timeout=READ_TIMEOUT, proxies={},
            retries={'mode': 'standard', 'total_max_attempts': 1},
            max_pool_connections=CONNECTIONS))


def refuse_foreign_answer(http_response: Any, parsed: dict[str, Any], **_: Any) -> None:
    """Let no page of a proxy pass for a success: EC2's answers always have a request id."""
    if http_response.status_code < 300 and not parsed['ResponseMetadata'].get('RequestId'):
        raise NoAnswer(f'HTTP {http_response.status_code} without a request id, so not from EC2')


def has_answered(result: Any) -> bool:
    """Tell whether this came from EC2: an error with a code of its own is an answer too.

    A lost connection is none, nor is the page of something in between.
    """
    return not isinstance(result, Exception) or bool(code_of(result))


REFUSED_CREDENTIALS = (
    'AuthFailure', 'ExpiredToken', 'ExpiredTokenException', 'InvalidClientTokenId',
    'RequestExpired', 'SignatureDoesNotMatch', 'UnrecognizedClientException')


def lost_credentials(result: Any) -> bool:
    """Tell whether a new client is needed: one keeps what credentials it has, or that it has none.

    EC2 refuses them when the instance profile was replaced, long before they expire.
    """
    none = exceptions.NoCredentialsError, exceptions.CredentialRetrievalError
    return isinstance(result, none) or code_of(result) in REFUSED_CREDENTIALS


def clock_skew(error: Any) -> float:
    """Return the seconds by which this host's clock is ahead of EC2's answer, 0.0 if not known."""
    with contextlib.suppress(Exception):  # whatever stands there, by EC2 or something in between
        date = error.response['ResponseMetadata']['HTTPHeaders']['date']
        if 'GMT' in date:
            return time.time() - utils.parse_timestamp(date).timestamp()
    return 0.0


def describe_states(client: Any, *instance_ids: str) -> dict[str, tuple[str, str]]:
    """Return by instance id EC2's state, 'gone' if there is no such instance, and its checks.

    An unknown id fails the call for all of them, so each is asked for alone then.
    """
    try:
        answer = client.describe_instance_status(InstanceIds=instance_ids, IncludeAllInstances=True)
    except exceptions.ClientError as error:
        if code_of(error) != 'InvalidInstanceID.NotFound':
            raise
        first, *others = instance_ids
        return {first: ('gone', '')} if not others else {
            **describe_states(client, first), **describe_states(client, *others)}
    return {one['InstanceId']: (one['InstanceState']['Name'], checks_of(one))
            for one in answer['InstanceStatuses']}


def checks_of(one: Any) -> str:
    """Return what EC2's checks of an instance tell: 'ok', 'impaired', or other words of EC2's."""
    told = {one.get(kind, {}).get('Status') for kind in ('InstanceStatus', 'SystemStatus')}
    return 'impaired' if 'impaired' in told else ' and '.join(sorted(told - {None}))


def by_id(call: Callable[..., Any], key: str, name: str, *values: str) -> dict[str, Any]:
    """Return by id what a Describe call lists.

    By a filter, as one unknown id would fail the whole call.
    """
    answer = call(Filters=[{'Name': name, 'Values': list(values)}])
    found = next(value for value in answer.values() if isinstance(value, list))
    return {one[key]: one for group in found for one in group.get('Instances', [group])}


def describe_pair(client: Any, own_id: str, peer_id: str) -> dict[str, Any]:
    """Return by id the instances of the pair as EC2 describes them, of those that it knows."""
    return by_id(client.describe_instances, 'InstanceId', 'instance-id', own_id, peer_id)


def addresses_of(one: Any) -> list[str]:
    """Return all private addresses of an instance."""
    return [its['PrivateIpAddress'] for card in one.get('NetworkInterfaces', [])
            for its in card.get('PrivateIpAddresses', [])]


def tags_of(one: Any) -> dict[str, str]:
    return {tag['Key']: tag['Value'] for tag in one.get('Tags', [])}


def reason_of(one: Any) -> str:
    """Return why an instance is in its state, in EC2's words, '' if it tells none."""
    return str(one.get('StateReason', {}).get('Message') or one.get('StateTransitionReason', ''))


def holder_of(thing: Any, own_id: str, peer_id: str, facts: dict[str, Any]) -> str:
    """Return who of the pair a route or an address points to; {}: there is none.

    EC2 may name only a network interface.  At a secondary private address of the right instance
    nobody holds it: traffic leaves with the primary one.
    """
    if not thing or thing.get('State') == 'blackhole':  # its target does not run, or is gone
        return NOBODY
    for i, holder in (own_id, SELF), (peer_id, PEER):
        one = facts.get(i, {})
        cards = [card['NetworkInterfaceId'] for card in one.get('NetworkInterfaces', [])]
        if thing.get('InstanceId') == i or thing.get('NetworkInterfaceId') in cards:
            private = thing.get('PrivateIpAddress')
            return holder if private in (None, one.get('PrivateIpAddress', private)) else NOBODY
    return OTHER


def default_route(table: Any) -> dict[str, Any]:
    """Return the static route to everywhere in a table as EC2 describes it, {} if there is none.

    Beside it there may be one that a gateway has propagated or advertised; the static one wins.
    """
    return next((dict(route) for route in table['Routes']
                 if route.get('DestinationCidrBlock') == EVERYWHERE
                 and route.get('Origin', 'CreateRoute') == 'CreateRoute'), {})


def describe_tables(client: Any, table_ids: Sequence[str], own_id: str, peer_id: str,
                    facts: dict[str, Any]) -> dict[str, str]:
    """Return by table who holds its default route."""
    found = by_id(client.describe_route_tables, 'RouteTableId', 'route-table-id', *table_ids)
    return {i: holder_of(default_route(found[i]), own_id, peer_id, facts) if i in found else ABSENT
            for i in table_ids}


def describe_networks(client: Any, table_ids: Sequence[str]) -> list[str]:
    """Return the networks of the subnets that are associated with the tables, in CIDR notation."""
    tables = by_id(client.describe_route_tables, 'RouteTableId', 'route-table-id', *table_ids)
    subnets = {link['SubnetId'] for one in tables.values() for link in one.get('Associations', [])
               if link.get('SubnetId')}  # else it is the VPC's main table
    found = by_id(client.describe_subnets, 'SubnetId', 'subnet-id', *subnets) if subnets else {}
    return sorted(one['CidrBlock'] for one in found.values() if one.get('CidrBlock'))  # else IPv6


def describe_address(client: Any, address: str, own_id: str, peer_id: str,
                     facts: dict[str, Any]) -> tuple[str, str]:
    """Return who holds the address and its allocation id, '' if it does not exist."""
    found = by_id(client.describe_addresses, 'PublicIp', 'public-ip', address).get(address, {})
    holder = holder_of(found, own_id, peer_id, facts) if found.get('AssociationId') else NOBODY
    return holder if found else ABSENT, found.get('AllocationId', '')


def claim_table(client: Any, table_id: str, instance_id: str) -> None:
    """Point the table's default route at the instance, whether there is one yet or not."""
    route = {
        'RouteTableId': table_id, 'DestinationCidrBlock': EVERYWHERE, 'InstanceId': instance_id}
    try:
        client.replace_route(**route)
    except exceptions.ClientError as error:
        if code_of(error) != 'InvalidParameterValue':  # there is no such route, or another fault
            raise
        client.create_route(**route)


STOP, FORCE, START = 'stop', 'force', 'start'  # the steps of a restart
DONE = {STOP: 'stopped', FORCE: 'forced', START: 'started'}


def take_step(client: Any, instance_id: str, step: str, options: dict[str, Any]) -> None:
    """Stop, force or start an instance.

    What is refused with options, by EC2 for some types of instance or by an older boto3, is done
    without them, whatever the code; and they are cleared, so that later steps go without, too.
    """
    call = client.start_instances if step == START else functools.partial(
        client.stop_instances, Force=step == FORCE)
    try:
        call(InstanceIds=[instance_id], **options)
    except (exceptions.ClientError, exceptions.ParamValidationError):
        if not options:
            raise
        options.clear()
        call(InstanceIds=[instance_id])


def rehearsal(settings: Settings, own_id: str, peer_id: str, allocation_id: str) -> dict[str, Call]:
    """Return by name the calls of a take-over and a restart, with DryRun.

    Each raises, and changes nothing.
    """
    route: dict[str, Any] = {'DestinationCidrBlock': EVERYWHERE, 'InstanceId': own_id}
    address = {'AllocationId': allocation_id, 'InstanceId': own_id, 'AllowReassociation': True}
    peer = {'InstanceIds': [peer_id]}
    steps = [(action, table, {'RouteTableId': table, **route})
             for table in settings.route_table_ids for action in ('ReplaceRoute', 'CreateRoute')]
    steps += [('AssociateAddress', settings.elastic_ip or '', address)] * bool(allocation_id)
    steps += [('StopInstances', peer_id, peer), ('StartInstances', peer_id, peer)]
    return {f'{action} on {about}': operator.methodcaller(
        xform_name(action), **values, DryRun=True) for action, about, values in steps}


CLOCK_TOLERANCE = 300.0  # s, EC2's: beyond that it refuses every call
DENIED = ('UnauthorizedOperation', 'AccessDenied', 'AccessDeniedException')
THROTTLED = ('RequestLimitExceeded', 'Throttling')
BUSY = (*THROTTLED, 'Unavailable', 'ServiceUnavailable', 'InternalError', 'InternalFailure')


class Ec2:
    """The calls of one monitor: a client that is made anew when it has lost its credentials."""

    own_id = peer_id = region = allocation_id = ''
    client: Any = None

    def __init__(self, settings: Settings, connect: Callable[[str], Any],
                 run_together: Callable[..., dict[str, Any]], meanwhile: Callable[[], float],
                 lasting: Lasting) -> None:
        self.settings, self.connect, self.run_together = settings, connect, run_together
        self.meanwhile, self.lasting = meanwhile, lasting
        self.rehearsed: dict[str, str] = {}  # what EC2 said of each call

    def call(self, calls: dict[str, Call], after_sending: float = math.inf,
             at_once: int = CONNECTIONS, **beside: Callable[[], Any]) -> dict[str, Any]:
        """Make the calls side by side, others beside them; note whether EC2 answers at all."""
        if self.client is None:
            made = self.run_together({'client': self.make_client}, CALL_DEADLINE, self.meanwhile)
            if self.lasting('client', failures_in(made)):
                return dict.fromkeys([*calls, *beside], made['client'])
        bound = {name: functools.partial(call, self.client) for name, call in calls.items()}
        results = self.run_together(
            {**beside, **bound}, CALL_DEADLINE, self.meanwhile, after_sending=after_sending,
            at_once=at_once)
        answers = [results[name] for name in calls]
        if any(map(lost_credentials, answers)):
            self.client = None  # a new one gets those that the role has now
            self.rehearsed.clear()
        if any(map(has_answered, answers)):
            self.lasting('EC2', '')
            skew = max(map(clock_skew, answers), key=abs)
            is_off = abs(skew) > CLOCK_TOLERANCE
            self.lasting('clock', f'{skew / 60:.0f} min' * is_off, at_once=True)
        elif answers and after_sending == math.inf:
            self.lasting('EC2', in_words(answers[0]))
        return results

    def make_client(self) -> None:
        """Make a client; one that comes late, on a host that is short of CPU, serves next time."""
        self.client = self.connect(self.region)

    def rehearse(self) -> None:
        """Make the calls of a failover with DryRun, and log what is not allowed.

        What EC2 has refused or not judged is rehearsed again, as somebody may have mended it.
        """
        calls = rehearsal(self.settings, self.own_id, self.peer_id, self.allocation_id)
        left = {name: call for name, call in calls.items()
                if self.rehearsed.get(name, DENIED[0]) in DENIED}
        codes = {name: code_of(result) for name, result in self.call(left).items()}
        self.rehearsed.update({name: code for name, code in codes.items()
                               if code not in ('', *BUSY, *REFUSED_CREDENTIALS)})
        denied = [name for name, code in self.rehearsed.items() if code in DENIED]
        self.lasting('permissions', ', '.join(denied), at_once=True)


# Forwarding and masquerading ----------------------------------------------------------------------

LIST_TIMEOUT = 1.5  # s, for all tools, side by side

# What becomes of a packet in a chain, beside translation; ON: nothing yet, UNCLEAR: who knows?
ACCEPT, DROP, ON, UNCLEAR = 'accept', 'drop', 'continue', 'unclear'
VERDICTS = {'': ON, ON: ON, 'return': ON, ACCEPT: ACCEPT, DROP: DROP, 'reject': DROP}
WORST_FIRST = (False, None, True)  # of what a verdict may be
RULE = re.compile(  # conditions, then what is done with a packet, '' if nothing is, then how
    r'^(.*?)(?:(?<!\S)(?:policy )?(accept|drop|reject|continue|return|jump|goto|masquerade|queue'
    r'|snat(?=.* to )|synproxy|vmap'
    r'|(?:xt target|#\w*)(?! "?(?:xt_)?(?:LOG|NFLOG|MARK|CONNMARK|TCPMSS)))'
    r'(?: (.*))?)?$')
CONDITION = re.compile(  # not "ct state != a,b": versions of nft differ on what it means
    r'(?!ct state != \w+(?:,| \|))'
    r'(?:(?P<term>(?:ip|ct|meta) \w+|fib [sd]addr type|[io]if)(?:name)?|'
    r'(?P<other>ip6|icmp|icmpv6|igmp|udp|udplite|sctp|dccp|esp|ah|gre) \w+) (?P<no>!=? )?'
    r'(?P<values>\{ [^}]* \}|@?[\w"]\S*(?: \| \w+)*)(?: |$)')
PLAINLY: tuple[tuple[str, Any], ...] = (  # the same listing, as far as a packet is concerned
    (r' ?comment "[^"]*"$', ''), (  # as an nft without libxtables lists it, too
        r'(?:xt target "?|# xt_)(MASQUERADE|REJECT)"?', lambda xt: xt[1].lower()),
    (r'(?<=\s)(?:counter(?: name \S+| packets \d+ bytes \d+)?|xt match "?comment"?'
     r'|log(?: prefix "[^"]*"| (?:level|group|snaplen) \S+| flags (?:tcp |ip )?\S+)*)(?: |$)', ''),
    (r'^(.*) vmap \{ (.*) \} ?$', lambda found: '\n'.join(
        f'{found[1]} {one.replace(" : ", " ")}' for one in found[2].split(', '))),
    (r'^\t\t(type \w+ hook \w+) .*; (policy \w+);\n((?:\t\t.*\n)*)', r'\t\t\1\n\3\t\t\2\n'))

Network = ipaddress.IPv4Network
INTERNET = Network(EVERYWHERE)  # as an address of a packet: any that is public
Packet = dict[str, Any]  # by the terms of conditions; '' or None: not known
# By family, table and name, the rules; the hook, if any, is the first, its policy the last.
Chains = dict[str, list[str]]
Verdict = tuple[Optional[bool], str]  # None: it cannot be told; and why


def read_rules(listing: str) -> Chains:
    """Read what nft lists, iptables' rules too, as far as IPv4 packets meet it."""
    for pattern, plain in PLAINLY:
        listing = re.sub(f'(?m){pattern}', plain, listing)
    tables = re.findall(r'(?ms)^table ((?:ip|inet) \S+) \{'
                        r'(?![^\n]*\s+flags [^\n]*dormant)(.*?)^\}', listing)
    return {f'{table} {name}': re.findall(r'(?m)^\t\t([^\t\n}].*)', body) for table, text in tables
            for name, body in re.findall(r'(?ms)^\tchain (\S+) \{\n(.*?)^\t\}', text)}


def covers(value: str, has: Any) -> bool | None:
    """Tell whether a value of a rule covers a packet's; None: that cannot be told."""
    if not has or value[0] == '@' or isinstance(has, Network) and not value[0].isdigit():
        return value == EVERYWHERE or None
    if not isinstance(has, Network):
        return value in has.split() or value.endswith('*') and has.startswith(value[:-1])
    ends = [Network(one, False) for one in value.split('-')]
    some = [one for one in ipaddress.summarize_address_range(ends[0][0], ends[-1][-1])
            if one.overlaps(has) and (has != INTERNET or one.is_global)]
    return True if any(one.supernet_of(has) for one in some) else None if some else False


def fits(conditions: str, packet: Packet) -> bool | None:
    """Tell whether a packet meets the conditions of a rule; None: that cannot be told."""
    sure = True
    while conditions:
        found = CONDITION.match(conditions)
        if not found or found['other']:  # a field of another protocol asks for that protocol
            return False if found else None
        has = packet.get(found['term'])
        each = [covers(value, has) for value in re.findall(r'[^\s,|{}"]+', found['values'])]
        one = max(each, key=WORST_FIRST.index)
        if one is bool(found['no']):
            return False
        sure = sure and one is not None
        conditions = conditions[found.end():]
    return sure or None


def end_of(chains: Chains, name: str, packet: Packet, start: int = 0) -> tuple[str, str]:
    """Return what becomes of a packet in a chain, from that rule on, and by which rule.

    One that may or may not fit, before more than 500 others, is unclear: Python recurses no deeper.
    """
    for n, rule in enumerate(chains[name][start:], start + 1):
        [(conditions, verb, target)] = RULE.findall(rule)
        fit = fits(conditions, packet)
        if fit is False:
            continue
        end, words = VERDICTS.get(verb, f'{verb} {target}'), f'{name}: {rule}'
        chain = f'{name.rpartition(" ")[0]} {target}'
        if verb in ('jump', 'goto') and chain in chains:
            end, words = end_of(chains, chain, packet)
        if end == ON and verb not in ('goto', 'return'):
            continue
        if not fit and (len(chains[name]) > n + 500 or end_of(chains, name, packet, n)[0] != end):
            return UNCLEAR, f'{name}: {rule}'
        return end, words
    return ON, ''


def worst(told: Sequence[Verdict]) -> Verdict:
    return min(told, key=lambda one: WORST_FIRST.index(one[0]))


class Host:
    """What this host does with packets that are not for itself, as far as kernel and nft tell.

    The routes are asked for these networks; `networks` has None where there are none.
    """

    def __init__(self, root: str = '/', networks: Sequence[Network] = ()) -> None:
        def proc(name: str) -> str:
            return text_of(os.path.join(root, 'proc', name)).strip()

        self.networks: list[Network | None] = [*networks] or [None]
        found = re.findall(r'(?m)^(\w\S*)\s+0{8}(?:\s+\S+){5}\s+0{8}\s', proc('net/route'))
        self.interface = found[0] if len({*found}) == 1 else ''  # of the default route
        self.told = run_together({
            'nft': functools.partial(output_of, 'nft', '-t', 'list', 'ruleset'),
            **{str(one): functools.partial(routed, one, self.interface)
               for one in networks if self.interface}}, LIST_TIMEOUT + 0.2)
        self.chains = read_rules(str(self.told['nft']))
        self.unlisted = (  # why there may be other rules
            'iptables-legacy may have rules, too' if proc('net/ip_tables_names')
            else failures_in({'nft': self.told['nft']}))
        self.addresses = re.findall(r'(\S+)\s+/32 host LOCAL', proc('net/fib_trie'))
        whole = proc('sys/net/ipv4/ip_forward')
        self.forwards = proc(f'sys/net/ipv4/conf/{self.interface}/forwarding') or whole
        self.switch = 'net.ipv4.' + (
            'ip_forward' if self.forwards == whole else f'conf.{self.interface}.forwarding')

    def ends_at(self, hook: str, packet: Packet) -> Iterator[tuple[str, str]]:
        """Yield what becomes of a packet in each chain of a hook, and by which rule."""
        for name, rules in self.chains.items():
            if rules[:1] == [f'type {hook}']:
                found = end_of(self.chains, name, packet)
                yield found if found[0] != ON else end_of(self.chains, name, packet, start=-1)

    def packets(self, network: Network | None) -> tuple[Packet, Packet]:
        """Return the first packet of a connection from a private network, and the answer to it."""
        same = {'iif': self.interface, 'oif': self.interface, 'meta nfproto': 'ipv4',
                'meta l4proto': 'tcp 6', 'ip protocol': 'tcp 6',
                'fib saddr type': 'unicast', 'fib daddr type': 'unicast'}
        return ({**same, 'ip saddr': network, 'ip daddr': INTERNET, 'ct state': 'new',
                 'ct status': 'none'},
                {**same, 'ip saddr': INTERNET, 'ip daddr': network, 'ct state': 'established'})

    def routing(self, network: Network | None = None) -> Verdict:
        """Tell whether the kernel sends what comes from a network out again, and the answers."""
        if self.forwards != '1':
            return (False if self.forwards else None,
                    f'{self.switch} is {self.forwards or "not known"}')
        unknown = not network or None, 'the interface of the default route is not known'
        told = self.told.get(str(network), unknown)
        return (None, in_words(told)) if isinstance(told, Exception) else told

    def forwarding(self, network: Network | None = None) -> Verdict:
        """Tell whether this host forwards what comes from a network, and the answers, and why."""
        told = [({ACCEPT: True, DROP: False}.get(end), words) for packet in self.packets(network)
                for end, words in self.ends_at('filter hook forward', packet)]
        sure, words = worst([*told, (not self.unlisted or None, self.unlisted)])
        filtering = sure, f'{self.switch} is 1, and no rule drops' if sure else (
            f'forwarding {"may be" if sure is None else "is"} dropped ({words})')
        return worst([filtering, self.routing(network)])

    def masquerading(self, network: Network | None = None) -> Verdict:
        """Tell whether this host gives what comes from a network an own address, and by which rule.

        The first chain that translates counts; where two disagree, nobody can tell.
        """
        ends = self.ends_at('nat hook postrouting', self.packets(network)[0])
        told = {self.translates(end): words for end, words in ends if end not in (ACCEPT, DROP)}
        whom = network or 'the private networks'
        if len(told) == 1 and None not in told:
            [(sure, words)] = told.items()
            return sure, words if sure else f'no address of this host: {words}'
        if told or self.unlisted:
            return None, f'this may be for {whom}, or not: {[*told.values(), self.unlisted][0]}'
        return False, f'no rule masquerades {whom}'

    def translates(self, end: str) -> bool | None:
        """Tell whether that gives a packet an address to which answers come back."""
        snat = re.fullmatch(r'snat (?:ip )?to ([\d.]+)(?::[\d-]+)?(?: [a-z,-]+)*', end)
        if snat and self.addresses:
            return snat[1] in self.addresses
        return end.startswith('masquerade') or None


def text_of(path: str) -> str:
    """Return the text of a file, '' if there is none."""
    with contextlib.suppress(OSError), open(path, errors='replace', newline='\n') as file:
        return file.read()
    return ''


def output_of(*command: str) -> str:
    return subprocess.check_output(
        command, stderr=subprocess.PIPE, encoding='utf-8', errors='replace', timeout=LIST_TIMEOUT,
        env={**os.environ, 'PATH': f'{os.getenv("PATH", "")}:/usr/sbin:/sbin'})  # cron's has none


def route(source: str, target: str, interface: str) -> Verdict:
    """Tell whether the kernel forwards a packet that came in by the interface out by it again.

    It calls invalid what a strict rp_filter drops, and more; then the answer goes elsewhere, too.
    """
    what = f'what comes from {source} to {target}'
    try:
        [found] = json.loads(output_of(
            'ip', '-j', 'route', 'get', target, 'from', source, 'iif', interface))
    except subprocess.CalledProcessError as error:
        sure = re.search('No route to host|is unreachable', error.stderr)
        return False if sure else None, f'{what}: {error.stderr.strip()}'
    return found['dev'] == interface, f'{what} goes by {found["dev"]}'


def routed(network: Network, interface: str) -> Verdict:
    """Tell whether the kernel forwards connections from a network, and the answers.

    Two are tried that have nothing in common: a route for some hosts proves nothing.
    """
    told = []
    for host, target in ((1, '1.1.1.1'), (3, '198.41.0.4')):  # of four quarters, of two halves
        ends = str(network[host * network.num_addresses // 4]), target
        told.append(worst([route(*way, interface) for way in (ends, ends[::-1])]))
    sure, words = worst(told)
    marks = not sure and 'fwmark' in output_of('ip', 'rule')  # rules may send it elsewhere
    return False if {one for one, _ in told} == {False} and not marks else sure or None, words


def nat_fault(networks: Sequence[str] = (), root: str = '/') -> str:
    """Say why this host cannot NAT for these networks, or at all; '' if it can, or nobody can tell.

    It takes some 20 ms (seconds where a rule has thousands of addresses), and never raises.  Of a
    single host, the peer, only the routes count: rules may rightly be for the private networks.
    """
    with contextlib.suppress(Exception):  # nothing odd here may keep a monitor from its work
        host = Host(root, [Network(one) for one in networks])
        private: list[Any] = [one for one in host.networks if one and one.prefixlen < 32] or [None]
        sure, words = worst([*map(host.routing, host.networks), *map(host.forwarding, private),
                             *map(host.masquerading, private)])
        return words if sure is False else ''
    return ''


# The observation ----------------------------------------------------------------------------------

CLAIMED = 'claimed'  # who holds a part: a claim of it got no answer
MAINTENANCE = 'nat_monitor_maintenance'  # the tag of an instance that is being worked on
SOURCE_CHECK = 'its source/destination check is on'


@dataclasses.dataclass(frozen=True)
class Observation:
    """What EC2 and this host tell in one go."""

    asked_at: float
    own_state: str = ''     # in EC2's words; '' where it answered with an error
    own_checks: str = ''
    peer_state: str = ''    # 'gone': there is no such instance
    peer_checks: str = ''   # 'ok', 'impaired', or other words of EC2's
    reason: str = ''        # in EC2's words: why the peer is in its state, or is not told
    holders: dict[str, str] = dataclasses.field(default_factory=dict)  # of the parts that it told
    is_complete: bool = True         # these are all parts
    nat_fault: str = ''     # why this host cannot NAT; '': it can, or nobody can tell
    own_tag: bool = False   # of maintenance
    peer_tag: bool = False
    tells_tags: bool = True          # in this answer, and the peer's address and source check
    peer_source_check: bool = False  # its source/destination check is on
    lacks_answer: bool = False       # a question got none
    is_throttled: bool = False       # EC2 has refused one of the questions for their number

    @property
    def told(self) -> str:
        """What EC2 says of the peer."""
        checks = f' (checks: {self.peer_checks or "none"})' * (self.peer_state == 'running')
        calls = f'calls it {self.peer_state}{checks}' if self.peer_state else ''
        return f'EC2 {calls or "answered " + (self.reason or "without it")}'

    def failed(self) -> bool | None:
        """Tell whether EC2's checks fail the running peer, and not this one; None: no answer.

        One that is being worked on has not failed.
        """
        if not (self.own_state and self.peer_state):
            return None
        return (self.peer_state == 'running' and self.peer_checks == 'impaired'
                and self.own_checks != 'impaired' and not self.peer_tag)

    def is_unwell(self) -> bool | None:
        """Tell whether EC2 does not say that the peer passes its checks; None: no answer."""
        return self.peer_checks != 'ok' if self.peer_state else None


class Observer(Ec2):
    """The questions of one monitor, and what outlasts an answer to them."""

    def __init__(self, nat_fault: Callable[[Sequence[str]], str], *of_calls: Any) -> None:
        super().__init__(*of_calls)
        self.nat_fault = nat_fault
        self.facts: dict[str, dict[str, Any]] = {}  # by id, as EC2 last described them
        self.networks: list[str] | None = None  # of the private subnets; None: not told

    def facts_of(self, instance_id: str) -> dict[str, Any]:
        return self.facts.get(instance_id, {})

    def observe(self, asked_at: float, calm: bool) -> Observation | None:
        """Ask for all that a decision needs, in one go; None if EC2 has not told the states.

        While all is calm, over two connections: most of what a look costs are their handshakes.
        """
        pair, address = (self.own_id, self.peer_id), self.settings.elastic_ip or ''
        tables, facts = self.settings.route_table_ids, self.facts
        questions: dict[str, Call] = {
            'states': lambda client: describe_states(client, *pair),
            'instances': lambda client: describe_pair(client, *pair),
            'tables': lambda client: describe_tables(client, tables, *pair, facts)}
        if address:
            questions['address'] = lambda client: describe_address(client, address, *pair, facts)
        if self.networks is None:  # they do not change
            questions['networks'] = lambda client: describe_networks(client, tables)
        if self.client is not None:
            self.client.close()  # a move of the public address kills connections without a word
        peer_alone = [f'{i}/32' for i in [self.facts_of(self.peer_id).get('PrivateIpAddress')] if i]
        results = self.call(
            questions, at_once=2 if calm else CONNECTIONS,
            nat_fault=functools.partial(self.nat_fault, self.networks or peer_alone))
        answered = [has_answered(results[name]) for name in questions]
        if any(answered):
            self.lasting('questions', failures_in({name: results[name] for name in questions}))
        told = {name: result for name, result in results.items()
                if not isinstance(result, Exception)}
        states, described = told.get('states', {}), told.get('instances', {})
        facts.update(described)  # an answer may leave one out
        self.networks = told.get('networks', self.networks)
        holders = dict(told.get('tables', {}))
        if 'address' in told:
            holders[address], self.allocation_id = told['address']
        if not has_answered(results['states']):
            return None
        own, peer = (states.get(i, ('', '')) for i in pair)
        if peer[0] == 'gone' and self.peer_id not in described:
            facts.pop(self.peer_id, None)
        of_own, of_peer = map(self.facts_of, pair)
        own_check = f'{SOURCE_CHECK}: {REMEDIES["source/dest. check"].format(it=self.own_id)}'
        return Observation(
            asked_at, own[0], own[1], peer[0], peer[1], tells_tags=self.peer_id in described,
            reason=reason_of(of_peer) if states else in_words(results['states']), holders=holders,
            is_complete=len(holders) == len(self.settings.parts), lacks_answer=not all(answered),
            nat_fault=told.get('nat_fault') or own_check * of_own.get('SourceDestCheck', False),
            own_tag=MAINTENANCE in tags_of(of_own), peer_tag=MAINTENANCE in tags_of(of_peer),
            peer_source_check=described.get(self.peer_id, {}).get('SourceDestCheck', False),
            is_throttled=any(code_of(results[name]) in THROTTLED for name in questions))


# The decision -------------------------------------------------------------------------------------

class Step(NamedTuple):
    """A step of a restart that was asked for; where no answer came, it may have been taken."""

    name: str
    at: float
    pause: float = 0.0  # s until the next try, where EC2 has refused it


@dataclasses.dataclass
class Memory:
    """What outlasts an observation; times are monotonic, and all else is derived from these."""

    primary: bool
    owed: dict[str, float] = dataclasses.field(default_factory=dict)  # what its start claims, when
    # Of pings
    is_heard: bool = False       # the peer has answered since it or this monitor started
    well_at: float = math.inf    # the first answer of the present run
    silent_at: float = math.inf  # the first miss of the present run was sent; inf: it answers
    deaf_at: float = NEVER       # the same of a run before which it was well, or never heard
    # Of observations
    down_at: float = NEVER       # it did not run, was tagged, or was stopped or started: the latest
    history: list[Observation] = dataclasses.field(default_factory=list)
    holders: dict[str, str] = dataclasses.field(default_factory=dict)    # by part, as last told
    here_at: dict[str, float] = dataclasses.field(default_factory=dict)  # the same, the latest time
    # Of acts
    failures: list[float] = dataclasses.field(default_factory=list)  # of claims: until when to wait
    steps: list[Step] = dataclasses.field(default_factory=list)
    lost: list[float] | None = None  # probes, since the last that came back; None: none has yet
    reliefs: list[float] = dataclasses.field(default_factory=list)

    @property
    def heir(self) -> str:
        """To whom everything belongs; both of the pair come to the same result.

        The primary if it has a table, else the secondary if it has one, else who has the address.
        """
        pair = (SELF, PEER) if self.primary else (PEER, SELF)
        tables = [who for part, who in self.holders.items() if part.startswith('rtb-')]
        return max(pair, key=lambda who: (who in tables, who in self.holders.values()))

    @property
    def taken_at(self) -> float:
        """When something was here last, in this silence, that the peer has now; NEVER: nothing."""
        return max((at for part, at in self.here_at.items()
                    if at > self.deaf_at and self.holders.get(part) == PEER), default=NEVER)

    def owe(self, settings: Settings, now: float) -> None:
        """Let a primary that starts claim everything, `FAIL_BACK` seconds later if it is a number.

        It knows of no holder then: what the peer has, it has not taken.  True is a number, too: 1.
        """
        if self.primary and settings.fail_back is not False:
            delay = 0.0 if settings.fail_back is True else settings.fail_back
            self.owed, self.holders = dict.fromkeys(settings.parts, now + delay), {}

    def note_answer(self, now: float) -> None:
        """The peer has answered a ping; the first time after a start, the old silence is over."""
        self.well_at = min(self.well_at, now if self.is_heard else NEVER)
        self.is_heard, self.silent_at = True, math.inf

    def note_silence(self, since: float) -> None:
        """The first ping of a run was missed.

        At a high loss, a single answer must not make it forget what the peer took.
        """
        if since - self.well_at >= WELL or not self.is_heard:
            self.deaf_at = since
        self.silent_at, self.well_at = since, math.inf

    def note(self, seen: Observation, settings: Settings) -> None:
        """Take in what was observed."""
        if self.history and self.history[-1].own_tag and not seen.own_tag:
            self.owe(settings, seen.asked_at)  # as after a start
        if seen.peer_state not in ('running', ''):
            self.is_heard, self.down_at = False, seen.asked_at
        elif seen.peer_tag:
            self.down_at = seen.asked_at
        for part, holder in seen.holders.items():
            if holder == PEER and self.holders.get(part) == SELF:
                self.owed.clear()
            self.holders[part] = holder
            if holder == SELF:
                self.note_here(part, seen.asked_at)
        longest = max(settings.wait_for_instance_start, settings.wait_for_instance_stop, PATIENCE)
        self.history = [one for one in self.history
                        if seen.asked_at - one.asked_at <= longest + MINUTE] + [seen]

    def note_here(self, part: str, now: float) -> None:
        """The part is here: EC2 has told so, or has accepted a claim."""
        self.holders[part], self.here_at[part] = SELF, now
        self.owed.pop(part, None)

    def note_step(self, step: Step) -> None:
        """A step of a restart was asked for."""
        self.steps = [one for one in self.steps if step.at - one.at < 4 * AN_HOUR] + [step]
        if not step.pause:
            self.is_heard, self.down_at = False, step.at

    def lasts(self, says: Callable[[Observation], bool | None], after: float = NEVER,
              gap: float = math.inf) -> float:
        """Return for how long all observations asked for after that time have said so, in seconds.

        From the first to the latest that does, NEVER if the latest does not; one that says None is
        as if it were not there, and a longer gap between two ends the run.
        """
        run: list[float] = []
        for seen in [one for one in self.history if one.asked_at > after]:
            told = says(seen)
            if told is False or run and seen.asked_at - run[-1] > gap:
                run = []
            run += [seen.asked_at] if told else []
        return run[-1] - run[0] if run else NEVER

    def has_failed(self, after: float) -> bool:
        """Tell whether EC2 has called the peer failed for half a minute, all asked for after that.

        Two such answers, however alike, may be a false alarm each: hence no gap above a minute.
        """
        return self.lasts(Observation.failed, after, MINUTE) >= HALF_A_MINUTE

    def may_live(self, settings: Settings) -> bool:
        """Tell whether the peer answers, or its silence tells nothing, as the two may just be deaf.

        Then it has taken in this silence what was here, or was never heard; and EC2 does not say,
        in this silence and since it last took something, that it does not run, has failed, or for
        long nothing good of it; nor that it lets none of its packets through.
        """
        seen, after = self.history[-1], max(self.silent_at, self.taken_at)
        unwell = self.lasts(Observation.is_unwell, after, MINUTE)
        return self.silent_at == math.inf or (
            (self.taken_at > NEVER or not self.is_heard) and seen.peer_state in ('running', '')
            and unwell < settings.wait_for_instance_start and not self.has_failed(after)
            and not seen.peer_source_check)

    def does_not_forward(self, settings: Settings, now: float) -> bool:
        """Tell whether the peer lets no probe through, though those by the own route come back.

        The one that decides was sent after EC2 was asked.  It is relieved once an hour, later and
        later; by the secondary the second time at once, as its primary may have started anew.
        What is left of a relief is taken within a minute.
        """
        lost, count = self.lost or [], len(self.reliefs)
        pause = AN_HOUR * 2.0 ** (count - 1) * (self.primary or count > 1)
        return (len(lost) >= settings.num_pings and lost[-1] > self.history[-1].asked_at
                and not MINUTE <= now - max(self.reliefs, default=NEVER) < pause)

    def left(self, settings: Settings) -> tuple[str, ...]:
        """Return what a take-over has left to claim.

        What was claimed, and got no answer, is not claimed anew while EC2 throttles the question
        where it is, for some minutes: that call would be made instead of another pair's.
        """
        waits = 0.0 <= self.lasts(lambda one: one.is_throttled) < PATIENCE
        done = (SELF, OTHER, ABSENT) + (CLAIMED,) * waits
        return tuple(part for part in settings.parts if self.holders.get(part) not in done)

    def due_at(self, name: str, pause: float = MINUTE, longest: float = 600.0) -> float:
        """Return when a step may be taken once more: each time after twice the pause."""
        tries = [one for one in self.steps if one.name == name]
        later = min(longest, pause * 2.0 ** (sum(not one.pause for one in tries) - 1))
        return max((one.at + (one.pause or later) for one in tries), default=NEVER)


class Decision(NamedTuple):
    """What to do: claim these parts, or take this step of a restart; and when to ask EC2 again.

    `why` is a sentence for the log, the same for as long as the reason is; '' says nothing.
    What is claimed is a warning.
    """

    why: str = ''
    again: float = LOOK_INTERVAL
    level: int = logging.INFO
    claims: tuple[str, ...] = ()
    step: str = ''
    relief: bool = False  # the claims relieve a peer that lets no probe through


LOST_PROBES = 'it lets no packet through (look at forwarding, masquerading and firewall there)'


def serve(memory: Memory, seen: Observation, settings: Settings, now: float) -> Decision:
    """Decide who serves: the first row that fits, as in README.adoc.

    The heir is given the time to look first, as each of the two looks only now and then.
    """
    left, may_live = memory.left(settings), memory.may_live(settings)
    holders, taking = memory.holders, f'taking over {" and ".join(left)}'

    # S1: EC2 calls this instance anything but running
    if seen.own_state not in ('running', ''):
        return Decision(f'EC2 calls {{self}} {seen.own_state}: it does nothing', SOON)
    # S2: this host cannot NAT, or EC2 goes on refusing claims
    if seen.nat_fault:
        return Decision(again=LOOK_INTERVAL if memory.silent_at == math.inf else LOOK_AFTER_CHANGE)
    if now < max(memory.failures, default=NEVER):
        return Decision('EC2 has refused what {self} claims: it tries again later',
                        min(LOOK_INTERVAL, memory.failures[-1] - now))
    # S3: the peer is under maintenance, this one is not
    if seen.peer_tag and (seen.tells_tags or not left) and not seen.own_tag:
        return Decision('{peer} is under maintenance: nobody restarts it, and {self} serves',
                        SOON if left else LOOK_INTERVAL, claims=left)
    # S4: this one is under maintenance, and its peer may work, or is under maintenance, too
    if seen.own_tag and (may_live or seen.peer_tag):
        return Decision('{self} is under maintenance: it claims nothing', level=logging.WARNING)
    # S5: the peer answers, holds something and does not forward
    if memory.is_heard and memory.silent_at == math.inf and PEER in holders.values():
        relief = memory.does_not_forward(settings, now)
        cause = LOST_PROBES if relief else SOURCE_CHECK * seen.peer_source_check
        if cause:
            return Decision(f'{{peer}} answers pings, but {cause}: {taking}, restarting nobody',
                            SOON, claims=left, relief=relief)
    # S6: the peer is silent, and not one that may live
    if not may_live and left:
        return Decision(f'{{peer}} is silent, and {seen.told}: {taking}', CLAIM_RETRY, claims=left)
    # S7: anything else
    owed = {part: at for part, at in memory.owed.items() if holders.get(part) != ABSENT}
    due = tuple(part for part, at in owed.items() if now >= at or holders.get(part) == NOBODY)
    if due and (memory.is_heard or seen.is_complete and PEER not in holders.values()):
        return Decision(f'{{self}} is the primary and has started: claiming {" and ".join(due)}',
                        SOON, claims=due)
    apart = tuple(part for part, holder in holders.items()
                  if holder == NOBODY or holder == PEER and SELF in holders.values())
    unchanged = memory.lasts(lambda one: one.holders == seen.holders if one.is_complete else None)
    patience = HEIR_WAITS if memory.heir == SELF else PATIENCE
    if apart and seen.is_complete and unchanged >= patience:
        return Decision(f'{" and ".join(apart)} not at {{self}}, unlike the rest, or nowhere: '
                        'claiming', LOOK_AFTER_CHANGE, claims=apart)
    pending = [max(SOON, at - now) for at in owed.values()] + [LOOK_AFTER_CHANGE] * bool(apart)
    return Decision(again=min([LOOK_INTERVAL, *pending]))


def restart(memory: Memory, seen: Observation, settings: Settings, now: float) -> Decision:
    """Decide whether a silent peer is restarted: a row for each state, as in README.adoc."""
    state, wait_start = seen.peer_state, settings.wait_for_instance_start
    if memory.silent_at == math.inf or seen.peer_tag or seen.own_state not in ('running', ''):
        return Decision()
    # not told
    if not seen.own_state or not state:
        return Decision(f'{{peer}} is not restarted for now, as {seen.told}', SOON)
    # stopped
    if state == 'stopped':
        if now >= memory.due_at(START):
            return Decision('{peer} is stopped: starting it', SOON, step=START)
        level = logging.INFO if memory.steps[-1].pause else logging.WARNING
        return Decision('{peer} is stopped again, or still: starting it later and later '
                        f'({seen.reason or "EC2 tells no reason"})', SOON, level)
    # stopping, pending
    if state in ('stopping', 'pending'):
        lasts = memory.lasts(lambda one: one.peer_state == 'stopping' if one.peer_state else None)
        if lasts >= settings.wait_for_instance_stop and now >= memory.due_at(FORCE):
            return Decision('{peer} does not stop: forcing it', SOON, logging.WARNING, step=FORCE)
        return Decision(f'{{peer}} is {state}: waiting for it', SOON)
    # gone, shutting-down, terminated
    if state != 'running':
        return Decision(f'{{peer}} is gone: {{self}} is alone (EC2 calls it {state})',
                        MINUTE, logging.WARNING)
    # running
    due_at = max(memory.down_at + wait_start, memory.due_at(STOP, wait_start, AN_HOUR))
    if seen.tells_tags and memory.has_failed(memory.silent_at) and now >= due_at:
        return Decision('{peer} is silent, and has failed its status checks for half a minute, as '
                        'EC2 says: stopping it', SOON, logging.WARNING, step=STOP)
    again, remedy = (LOOK_AFTER_CHANGE, IF_DEAF) if seen.peer_checks == 'ok' else (SOON, IF_DEAD)
    if now >= max(memory.silent_at, memory.down_at) + wait_start:
        return Decision(f'{{peer}} stays silent, and {seen.told}: {remedy}', again, logging.ERROR)
    if NEVER < memory.taken_at < seen.asked_at - SOON:  # else that may be told late
        return Decision(f'{{peer}} is silent, but has taken what was here, so it lives: {IF_DEAF}',
                        again, logging.WARNING)
    return Decision('{peer} is silent: it is stopped once it fails its status checks', again)


def decide(memory: Memory, seen: Observation, settings: Settings, now: float) -> list[Decision]:
    """Judge the peer: who serves, and whether it is restarted; never a claim and a step at once."""
    serving, restarting = (judge(memory, seen, settings, now) for judge in (serve, restart))
    if serving.claims and restarting.step and memory.failures:
        return [serving._replace(claims=()), restarting]  # what EC2 refuses holds up no restart
    return [serving, Decision() if serving.claims else restarting]


# The monitor --------------------------------------------------------------------------------------

class Monitor:
    """One monitor's life.  The arguments after `settings` are its only doors to the world."""

    def __init__(self, settings: Settings, *, clock: Any = time,
                 ping: Callable[..., bool] | None = None, metadata: Any = None,
                 connect: Callable[[str], Any] = connect,
                 run_together: Callable[..., dict[str, Any]] = run_together,
                 nat_fault: Callable[[Sequence[str]], str] = nat_fault, chance: Any = random,
                 probe: Callable[..., bool] | None = None, log: logging.Logger = log,
                 requests_from: Callable[[str], bool] | None = None,
                 publish: Callable[[dict[str, Any]], None] = lambda status: None) -> None:
        self.settings, self.clock, self.chance, self.log = settings, clock, chance, log
        echo = functools.partial(send_ping, settings.ping_timeout)
        self.ping, self.probe, self.metadata = ping or echo, probe or echo, metadata or Metadata()
        self.requests_from = requests_from or Requests()
        self.run_together, self.publish, self.lasting = run_together, publish, Lasting(clock, log)
        self.ec2 = Observer(
            nat_fault, settings, connect, run_together, self.ping_meanwhile, self.lasting)
        self.own_id = self.peer_id = ''
        self.memory = Memory(primary=False)
        self.misses, self.threshold = 0, settings.num_pings  # in a row; those that make it silent
        self.is_news, self.told_of = True, math.inf  # of a silence, which goes on at a high loss
        self.answered_at = self.asked_at = NEVER  # the latest answer to a ping, question to EC2
        self.requested_at = NEVER          # the peer's monitor was heard, or could not be
        self.next_ping_at = self.ask_at = self.report_at = NEVER
        self.probe_at = NEVER if settings.probe_address else math.inf
        self.observation: Observation | None = None  # that has not been judged
        self.said: tuple[str, ...] = ()    # which is no news
        self.reasons: list[str] = []       # of the latest decisions
        self.alarmed = False               # something loud was said in this silence
        self.stop_options = {'SkipOsShutdown': True}  # EC2 waits for no dead kernel; see take_step

    # Start

    def run(self) -> None:
        """Find out who this is, then ping and act for ever; raise Refusal if not of the pair."""
        self.identify()
        self.log.info(f'watching {self.peer_id} from {self.own_id}, the '
                      f'{"primary" if self.memory.primary else "secondary"}')
        while True:
            try:
                self.turn()
                self.lasting('turn', '')
            except Exception as error:
                self.lasting('turn', in_words(error), at_once=True)
                for line in traceback.format_exc().splitlines():
                    self.log.info(line)
                self.clock.sleep(SOON)

    def identify(self) -> None:
        """Ask the metadata service for instance id and region, for as long as it takes."""
        items = {name: functools.partial(self.metadata.get, name)
                 for name in ('instance-id', 'placement/region')}
        while self.lasting('metadata', failures_in(
                found := self.run_together(items, CALL_DEADLINE))):
            self.clock.sleep(self.chance.uniform(0.5, CLAIM_RETRY))
        self.own_id, self.ec2.region = map(str, found.values())
        self.memory.primary, self.peer_id = place_in_pair(self.settings, self.own_id)
        self.threshold *= 2 if self.memory.primary else 1  # the primary is in no hurry
        self.ec2.own_id, self.ec2.peer_id = self.own_id, self.peer_id
        self.lasting.names.update(own_id=self.own_id, peer_id=self.peer_id)
        self.names = {SELF: self.own_id, PEER: self.peer_id, NOBODY: 'nobody',
                      OTHER: 'something outside the pair'}
        self.memory.owe(self.settings, self.clock.monotonic())

    # The loop

    def turn(self) -> None:
        """Ask EC2 if it is time, ping once, judge what is known, and rest until the next of these.

        The ping that makes the peer silent is sent after EC2 has answered: who is cut off from
        EC2 decides nothing.
        """
        if self.clock.monotonic() >= self.ask_at:
            self.observe()
        if self.clock.monotonic() >= self.next_ping_at:
            self.ping_once()
        if self.clock.monotonic() >= self.probe_at:
            self.probe_once(str(self.settings.probe_address))
        if self.observation and self.may_judge(self.observation):
            self.judge(self.observation)
        if self.clock.monotonic() >= self.report_at:
            self.report()
        next_at = min(self.next_ping_at, self.ask_at, self.probe_at, self.report_at)
        pause = next_at - self.clock.monotonic()
        if pause > 0.0:
            self.clock.sleep(pause)

    @property
    def peer_address(self) -> str | None:
        """The peer's private address; '' where there is no such instance, None while not known."""
        known = self.ec2.facts_of(self.peer_id)
        return known.get('PrivateIpAddress', '') if self.ec2.facts else None

    def ping_once(self) -> None:
        """Ping the peer and note the outcome; a ping that cannot leave this host tells nothing.

        Nor does one of a process that was suspended: nothing takes so long otherwise.
        """
        address, timeout, failure = self.peer_address, self.settings.ping_timeout, ''
        sent_at, answered = self.clock.monotonic(), False
        try:
            if address:
                answered = self.ping(address, addresses_of(self.ec2.facts_of(self.own_id)))
            elif address is not None:  # there is no such instance
                self.clock.sleep(timeout)
        except OwnFault as fault:
            failure = str(fault)
        now = self.clock.monotonic()
        self.lasting.names['peer_address'] = str(address)
        self.lasting('ping', failure)
        if answered:
            self.note_answer(now)
        elif failure or address is None or now - self.next_ping_at > timeout + CALL_DEADLINE + 2.0:
            self.misses, self.memory.silent_at = 0, math.inf  # which may be known no more
        else:
            self.note_miss(sent_at)
        pause = self.settings.wait_between_pings if answered else 1.0
        self.next_ping_at = now if self.misses else now + pause

    def ping_meanwhile(self) -> float:
        """Ping while EC2 is asked, but stop one short of silent; return when to be called again."""
        if self.misses == self.threshold - 1 or self.peer_address is None:
            return math.inf
        if self.clock.monotonic() >= self.next_ping_at:
            self.ping_once()
        return float(max(0.0, self.next_ping_at - self.clock.monotonic()))

    def note_miss(self, sent_at: float) -> None:
        """Count a miss; EC2 is asked at the first one, and again before the one that decides."""
        memory = self.memory
        if not self.misses:
            memory.note_silence(sent_at)
            self.ask_at = min(self.ask_at, self.asked_at + CLAIM_RETRY)
        self.misses += 1
        if self.misses == self.threshold - 1 and (  # not at each run of misses, at a high loss
                self.asked_at <= memory.silent_at == memory.deaf_at):
            self.ask_at = NEVER
        if self.misses == self.threshold:
            memory.failures = []  # what EC2 refused before counts no more
            self.is_news, self.told_of = self.told_of != memory.deaf_at, memory.deaf_at
            if self.is_news:
                self.log.info(f'{self.peer_id} missed {self.misses} pings in a row: asking EC2')

    def note_answer(self, now: float) -> None:
        """Note that the peer answers; say so when it was not heard before, or silent."""
        if self.alarmed:
            self.log.warning(f'{self.peer_id} answers again: the pair is redundant')
        elif not self.memory.is_heard or self.misses >= self.threshold and self.is_news:
            self.log.info(f'{self.peer_id} answers')
        self.alarmed, self.misses, self.answered_at = False, 0, now
        self.memory.note_answer(now)

    def probe_once(self, target: str) -> None:
        """Send a packet through the peer that serves, and one by the own route; hold up no ping.

        What the own route loses, too, tells nothing about the peer.  A peer that was relieved is
        probed until one comes back: as long as none does, nobody stands by.
        """
        memory, peer, sent_at = self.memory, self.peer_address or '', self.clock.monotonic()
        self.probe_at = sent_at + PROBE_INTERVAL
        is_lame = len(memory.lost or []) >= self.settings.num_pings
        is_tagged = any(one.peer_tag for one in memory.history[-1:])
        if memory.heir != PEER and not is_lame or not memory.is_heard or is_tagged:
            self.lasting('probe', '', target)
            memory.lost = memory.lost and []
            return
        if self.misses:
            return
        found = self.run_together({'through': functools.partial(self.probe, target, through=peer),
                                   'own way': functools.partial(self.probe, target)},
                                  self.settings.ping_timeout + 0.5, self.ping_meanwhile)
        came, own_way = found.values()
        yet = '; none did yet, so nothing is decided by that' * (memory.lost is None)
        self.lasting('probe', '' if came is True else f'{came or "did not come back"}{yet}', target)
        if came is True:
            memory.lost = []
        elif came is False and own_way is True and memory.lost is not None:
            memory.lost = memory.lost[-100:] + [sent_at]
            if len(memory.lost) < self.settings.num_pings:
                self.probe_at = self.next_ping_at = self.clock.monotonic()  # it may be dead
            elif len(memory.lost) == self.settings.num_pings or sent_at - self.asked_at >= MINUTE:
                self.ask_at = NEVER  # then the probe that decides is sent

    def look_now(self) -> None:
        """Ask EC2 as soon as the loop comes to it (SIGHUP)."""
        self.ask_at = NEVER

    # Observe

    def observe(self) -> None:
        """Ask EC2 while pinging goes on; remember what it told, and log what is news."""
        self.asked_at = self.clock.monotonic()
        self.ask_at = self.asked_at + LOOK_AFTER_CHANGE  # whatever comes of this one
        memory = self.memory
        calm = memory.is_heard and not (self.misses or memory.owed or memory.lost
                                        or CLAIMED in memory.holders.values())
        seen = self.ec2.observe(self.asked_at, calm)
        in_a_hurry = self.chance.uniform(1.0, CLAIM_RETRY)
        pause = SOON if seen else LOOK_AFTER_CHANGE if calm else in_a_hurry
        self.ask_at = min(self.ask_at, self.clock.monotonic() + pause)  # a miss may have set it
        if memory.lost:
            self.probe_at = NEVER  # only one that is sent after EC2's answer decides
        if seen:
            self.note(seen)

    def note(self, seen: Observation) -> None:
        """Remember what was observed, and log what is news."""
        before, self.observation = dict(self.memory.holders), seen
        self.memory.note(seen, self.settings)
        self.log_moved(before)
        for part, holder in self.memory.holders.items():
            if holder == SELF or before.get(part) == CLAIMED:
                self.lasting('claim', 'no answer came' * (holder != SELF), part)
        absent = [part for part, holder in self.memory.holders.items() if holder == ABSENT]
        absent += [self.peer_id] * (self.peer_address == '')
        self.lasting('settings', ' and '.join(absent))
        self.lasting('host', seen.nat_fault, at_once=self.misses >= self.threshold)  # all is dark
        if seen.tells_tags:
            self.lasting('source/dest. check', SOURCE_CHECK * seen.peer_source_check, self.peer_id,
                         at_once=True)
        self.watch_the_watcher(seen)

    def log_moved(self, before: dict[str, str]) -> None:
        """Log who holds what has changed its holder."""
        holders = self.memory.holders
        for holder, name in self.names.items():
            parts = [part for part in holders if holders[part] == holder != before.get(part)]
            if parts:
                self.log.log(logging.WARNING if holder == OTHER else logging.INFO,
                             f'{" and ".join(parts)} at {name}')

    def watch_the_watcher(self, seen: Observation) -> None:
        """Say so if the peer answers pings for long, and its monitor sends none: it does not run.

        The kernel answers pings, whether a monitor runs there or not.
        """
        now, address = self.clock.monotonic(), self.peer_address
        patience = max(5 * MINUTE, 3 * self.settings.wait_between_pings)
        if not address or self.misses or seen.peer_tag or self.requests_from(address):
            self.requested_at = now
        missing = f'{patience:g} s' * (now - self.requested_at >= patience)
        self.lasting('monitor', missing, at_once=True)

    # Judge and act

    def may_judge(self, seen: Observation) -> bool:
        """Tell whether the peer may be judged: no ping is missed, or it is silent since before."""
        lifetime = CALL_DEADLINE + 2 * self.settings.ping_timeout
        return self.clock.monotonic() - seen.asked_at <= lifetime and (not self.misses or (
            self.misses >= self.threshold and seen.asked_at > self.memory.silent_at))

    def judge(self, seen: Observation) -> None:
        """Decide, once for each observation; say why when it is news; do it."""
        now, memory = self.clock.monotonic(), self.memory
        all_tables = PEER not in map(memory.holders.get, self.settings.route_table_ids)
        came = [at for part, at in memory.here_at.items() if all_tables or part.startswith('rtb-')]
        memory.reliefs = [at for at in memory.reliefs  # by which a table has come, if there is one
                          if now - 24 * AN_HOUR < at <= max(came, default=NEVER)]
        serving, restarting = decide(memory, seen, self.settings, now)
        self.observation = None
        again = min(serving.again, restarting.again,
                    LOOK_AFTER_CHANGE if seen.lacks_answer else LOOK_INTERVAL)
        # Where hundreds of pairs of an account have failed at once, those that are served leave its
        # request buckets to the others.  A minute between two answers would undo what they prove.
        if seen.is_throttled and not (serving.claims or memory.failures):
            is_soon = seen.is_complete or CLAIMED in memory.holders.values()
            again = max(again, self.chance.uniform(SOON, LOOK_AFTER_CHANGE if is_soon else 50.0))
        if self.ask_at != NEVER:  # else a signal or a probe has set it meanwhile
            self.ask_at = now + again
        self.say(serving, restarting)
        if serving.claims:
            self.claim(serving.claims)
            if serving.relief and now - max(memory.reliefs, default=NEVER) >= MINUTE:  # a new one
                memory.reliefs.append(now)
        elif restarting.step:
            self.take_step(restarting.step)
        elif not self.misses and min(serving.again, restarting.again) > SOON:
            self.ec2.rehearse()
        if not (restarting.why or serving.claims):
            self.lasting('restart', '', self.peer_id)
        if serving == Decision() and not self.misses:  # nothing is left to do
            memory.failures = []
            for part in self.settings.parts:
                self.lasting('claim', '', part)
        self.report()

    def say(self, *decisions: Decision) -> None:
        """Log why, where that is news; while EC2 refuses something, a sentence is news once.

        What stands before the last colon tells, as parts come one by one.
        """
        known, self.reasons = self.said, []
        self.said = known if self.memory.failures else ()
        for one in (one for one in decisions if one.why):
            what = one.why.rpartition(': ')[0] or one.why
            why = one.why.replace('{self}', self.own_id).replace('{peer}', self.peer_id)
            self.reasons.append(why)
            self.said += (what,) * (what not in self.said)
            if what not in known:
                level = logging.WARNING if one.claims else one.level
                self.log.log(level, why)
                self.alarmed |= level >= logging.WARNING and self.misses > 0

    def claim(self, parts: tuple[str, ...]) -> None:
        """Claim these parts at the same moment, so that established connections may survive.

        The address comes last, as its move can cut the connections of the calls that are not sent
        yet.  Alone it would part from the route: once EC2 has refused something, it waits until a
        table is here.
        """
        memory, address, now = self.memory, self.settings.elastic_ip, self.clock.monotonic()
        before, allocation = dict(memory.holders), self.ec2.allocation_id
        calls: dict[str, Call] = {
            part: functools.partial(claim_table, table_id=part, instance_id=self.own_id)
            for part in parts if part != address}
        tables = [before.get(table) for table in self.settings.route_table_ids]
        waits = calls and memory.failures and SELF not in tables
        if address in parts and allocation and not waits:
            calls[address] = lambda client: client.associate_address(
                AllocationId=allocation, InstanceId=self.own_id, AllowReassociation=True)
        results = self.ec2.call(calls, MOVE_DEADLINE if address in calls else math.inf)
        were_unanswered = any(('claim', part) in self.lasting.troubles for part in results)
        refused = [code for code in map(code_of, results.values()) if code]
        for part, result in results.items():
            code = code_of(result)
            if not isinstance(result, Exception):
                memory.note_here(part, now)
            elif not code and not isinstance(result, NotSent):  # EC2 is asked before that is said
                memory.holders[part] = CLAIMED
            else:  # it is where it was
                nobody_serves = self.misses > 0 and code not in ('', *BUSY, *REFUSED_CREDENTIALS)
                self.lasting('claim', in_words(result) if code else 'no answer came', part,
                             at_once=nobody_serves)
        self.log_moved(before)
        is_answered = all(map(has_answered, results.values()))
        if refused or not calls or were_unanswered and not is_answered:
            memory.failures.append(now + self.pause(refused))
            self.ask_at = min(self.ask_at, memory.failures[-1])
        elif not is_answered or len(calls) < len(parts):
            self.ask_at = NEVER
        else:
            memory.failures = []

    def pause(self, refused: list[str]) -> float:
        """Return the seconds until the next claim: the first time at once, then a few, with jitter.

        What it refuses for long is asked for once a minute, then once in five; not where EC2 is
        only busy.
        """
        count = len(self.memory.failures)
        if count >= REFUSED_FOR_LONG and not (refused and {*refused} <= {*BUSY}):
            return 60.0 if count < REFUSED_FOR_LONG + 10 else 300.0
        return float(self.chance.uniform(0.0, SOON)) if count else 0.0

    def take_step(self, name: str) -> None:
        """Stop, force or start the peer; without an answer, the next observation tells."""
        options = {} if name == START else self.stop_options
        done, now = DONE[name], self.clock.monotonic()
        results = self.ec2.call({done: lambda ec2: take_step(ec2, self.peer_id, name, options)})
        code = code_of(results[done])
        if not isinstance(results[done], NotSent):
            refused = sum(one.pause > 0.0 for one in self.memory.steps if one.name == name)
            pause = min(10 * MINUTE, MINUTE * 2.0 ** refused) if code else 0.0
            if code in THROTTLED:
                pause = self.chance.uniform(MINUTE, 2 * MINUTE)
            self.memory.note_step(Step(name, now, pause))
        if not self.lasting('restart', failures_in(results), self.peer_id):
            self.log.info(f'{self.peer_id} is being {done}: ' + (
                'waiting for its answer' if name == START else 'starting it once it is stopped'))

    # Words

    def report(self) -> None:
        """Publish what is known; ages are in seconds, None where something never happened."""
        now, memory = self.clock.monotonic(), self.memory
        self.report_at = now + MINUTE
        seen_at = memory.history[-1].asked_at if memory.history else NEVER
        ages = [None if at == NEVER else now - at for at in (self.answered_at, seen_at)]
        self.publish({
            'role': 'primary' if memory.primary else 'secondary',
            'own_id': self.own_id, 'peer_id': self.peer_id,
            'holders': {part: self.names.get(one, one) for part, one in memory.holders.items()},
            'peer_answers': memory.is_heard and self.misses < self.threshold,
            'last_answer_age': ages[0], 'last_observation_age': ages[1],
            'decision': '; '.join(self.reasons),
            'troubles': self.lasting.errors})

    @property
    def left_stopped(self) -> bool:
        """The peer was stopped by this monitor, and is not back yet."""
        return any(step.name == STOP and not step.pause and step.at > self.answered_at
                   for step in self.memory.steps)


# The check ----------------------------------------------------------------------------------------

FINE, WARN, FAIL, UNSURE = 'ok', 'warn', 'FAIL', 'unknown'
DENIERS = ('service control policy', 'permissions boundary', 'VPC endpoint policy')
REST = 'those without a table of their own'  # the subnets that a VPC's main table serves
CRON_JOB = (  # behind its file and a colon: for root, then the program, its output, the line's end
    r'(?:/etc/(?:crontab|cron\.d/[\w-]+):\s*@reboot\s+root|/spool/cron/(?:crontabs/)?root:\s*'
    r'@reboot)\s+(/\S*/nat_monitor\.py)(?:\s*[\d&]?[<>]{1,2}\s*&?[^\s&;|<>]+)*[ \t]*\n')
STARTERS = ('etc/rc* etc/rc*/* etc/init.d/* etc/*cron* etc/cron*/* var/spool/cron/** '
            '*/systemd/system/** usr/*/systemd/system/** var/lib/cloud/scripts/per-boot/*').split()
# A later one takes the place of one of the same name; /etc/sysctl.conf is 99-sysctl.conf there.
SYSCTL_FILES = [f'{one}/sysctl.d/*.conf' for one in ('usr/lib', 'usr/local/lib', 'run', 'etc')]
SYSCTL_SETTING = r'(?m)^\s*-?(net.ipv4.(?:ip_|conf.(?:all|e\w+).)forward(?:ing)?)\s*=\s*(\d)'


def on_the_way_to(*paths: str) -> Iterator[tuple[str, bool]]:
    """Yield these files and the directories above, and whether only root can change what is there.

    Higher up, a directory such as /tmp will do, where others may not rename what is root's.
    """
    files = {resolve(path) for path in paths for resolve in (os.path.abspath, os.path.realpath)}
    above = {str(directory) for path in files for directory in pathlib.Path(path).parents}
    for path in filter(os.path.exists, sorted(files | above)):
        status, is_beside = os.stat(path), path in map(os.path.dirname, files)
        others = status.st_mode & 0o022 and (is_beside or not status.st_mode & 0o1000)
        yield path, status.st_uid == 0 and not others


def starts_monitor(path: str, line: str) -> Verdict:
    """Tell whether cron is sure to run that line of a file at boot; else nobody can tell."""
    job, status, words = re.search(CRON_JOB, f'{path}: {line}'), os.stat(path), line.strip()
    sure = job and os.access(job[1], os.X_OK) and not (status.st_uid or status.st_mode & 0o133)
    return sure or None, f'{path}: {words}'


class Check:
    """One run of --check: look at all that a failover needs, a line for each thing, change nothing.

    The arguments are its doors to the world outside; `root` is the directory that holds etc, proc,
    run and var.
    """

    def __init__(self, *, settings_file: str = SETTINGS_FILE, metadata: Any = None,
                 ping: Any = None, probe: Any = None, connect: Callable[[str], Any] = connect,
                 root: str = '/') -> None:
        self.settings_file, self.metadata, self.ping = settings_file, metadata or Metadata(), ping
        self.probe, self.connect, self.root = probe, connect, root
        self.settings: Any = None
        self.own_id = self.peer_id = self.peer_address = self.region = self.allocation = ''
        self.role, self.program, self.exit_code = 'NAT_Monitor', os.path.realpath(__file__), 0
        self.things: dict[str, Any] = {}   # instances as EC2 describes them, by id
        self.networks: list[Network] = []  # of the private subnets

    def run(self) -> int:
        """Check everything; return the exit code."""
        for part in 'settings files metadata ec2 nat sysctl cron monitor'.split():
            self.attempt(part, self.own_id, getattr(self, f'check_{part}'))
        return self.exit_code

    def attempt(self, what: str, about: str, check: Callable[..., Any], *arguments: Any) -> None:
        """Make a check; if something is wrong or missing without which it cannot go on, say so."""
        try:
            check(*arguments)
        except Refusal as refusal:
            self.exit_code = max(self.exit_code, refusal.exit_code)
            for fault in refusal.faults:
                self.say(False, what, about, fault, 'settings')
        except (requests.RequestException, OwnFault) as error:
            self.say(False, what, about, in_words(error), 'ping' * isinstance(error, OwnFault))
        except Exception as error:
            fine = {'DryRunOperation': True, **dict.fromkeys(DENIED, False)}.get(code_of(error))
            denier = next((one for one in DENIERS if one in in_words(error)), 'permission')
            if abs(skew := clock_skew(error)) > CLOCK_TOLERANCE:
                self.say(False, 'clock', about, f'{skew:.0f} s ahead of EC2')
            self.say(fine, what, about, 'allowed' if fine else in_words(error),
                     'check' if fine is None else denier)

    def say(self, fine: Any, what: str, about: str, found: str, remedy: str = '',
            **more: Any) -> None:
        """Write a line: the verdict, what was looked at, its id, what was found, and the remedy.

        `fine` is None where nobody can tell, WARN where it may be meant so.  The remedy is that of
        this name, else that of `what`.
        """
        verdict = WARN if fine == WARN else UNSURE if fine is None else FINE if fine else FAIL
        self.exit_code = max(self.exit_code, int(verdict == FAIL))
        its, own = (self.things.get(i, {}) for i in (about, self.own_id))
        names = {**vars(self), 'it': about, 'found': found, 'its': its, 'own': own, **more}
        run = REMEDIES.get(remedy or what, REMEDIES['settings'])
        write_line(verdict, f'{verdict:8}{what:22}{about:23}{found}'
                   + ('' if verdict == FINE else f'; run: {run.format_map(names)}'))

    # This host

    def check_settings(self) -> None:
        self.settings = read_settings(self.settings_file)
        self.say(True, 'settings', '', f'{self.settings_file} is valid')

    def check_files(self) -> None:
        """See that nobody but root can write what runs as root, or put something in its place."""
        for path, fine in on_the_way_to(__file__, self.settings_file):
            owner, mode = os.stat(path).st_uid, os.stat(path).st_mode & 0o7777
            self.say(fine, 'file', '', f'{path} belongs to user {owner}, mode {mode:o}', path=path)

    def check_metadata(self) -> None:
        self.own_id, self.region = map(self.metadata.get, ('instance-id', 'placement/region'))
        self.say(True, 'metadata', '', 'IMDSv2 answers')
        self.attempt('role', self.own_id, self.check_role)

    def check_role(self) -> None:
        self.role = self.metadata.get('iam/security-credentials/')
        self.say(True, 'role', self.own_id, self.role)

    def check_nat(self) -> None:
        """Tell whether this host forwards and masquerades what comes from the private subnets."""
        host = Host(self.root, self.networks)
        sure, words = worst([*map(host.forwarding, host.networks)])
        self.say(sure, 'forwarding', '', words, 'rules' * (host.forwards == '1'),
                 switch=host.switch)
        for network in host.networks:
            sure, words = host.masquerading(network)
            self.say(sure, 'masquerading', str(network or EVERYWHERE), words,
                     'rules' * (sure is None))

    def check_sysctl(self) -> None:
        """Tell what sysctl's files say last about forwarding, of all or of an e*, as at a boot."""
        files = {os.path.basename(one): os.path.realpath(one) for one in self.files(*SYSCTL_FILES)}
        found = [(path, *one) for _, path in sorted(files.items())
                 for one in re.findall(SYSCTL_SETTING, text_of(path))]
        for path, name, value in found[-1:]:
            self.say(value != '0' or WARN, 'forwarding at boot', '',
                     f'{path} says {name} = {value}', path=path, name=name)

    def check_cron(self) -> None:
        """Look for the job that starts the monitor at boot, or for anything else that names it."""
        told = [starts_monitor(path, line) for path in self.files(*STARTERS)
                for line in text_of(path).splitlines(keepends=True)
                if re.match(r'(?!\s*#).*nat_monitor\.py', line)]
        sure, words = min(told, key=lambda one: not one[0],
                          default=(False, 'none starts the monitor'))
        self.say(sure, 'cron job', '', words)
        if sure:
            names = {text_of(path).strip() for path in self.files('proc/[0-9]*/comm')}
            daemon = min(names & {'cron', 'crond', 'fcron'}, default='')
            self.say(daemon, 'cron daemon', '', f'{daemon or "none"} runs')

    def check_monitor(self) -> str:
        """Tell whether a monitor runs here; return its pid, '' if none does."""
        pid, suspended = lock_holder(os.path.join(self.root, LOCK_FILE[1:]), self.root)
        found = f'runs with pid {pid}' if pid else 'does not run'
        self.say(not suspended and (pid or WARN), 'monitor', '',
                 found + ', but is suspended' * suspended, 'suspended' * suspended, pid=pid)
        return pid

    def status(self) -> int:
        """Tell each field of the status file, and whether it is fine; return the exit code."""
        if not self.check_monitor():
            return 2
        try:
            told = json.loads(text_of(os.path.join(self.root, STATUS_FILE[1:])))
            holders, now = set(told['holders'].values()), time.time()
            fine = {'time': utc(now - 3 * MINUTE) < told['time'] < utc(now + 3 * MINUTE),
                    'holders': holders in ({told['own_id']}, {told['peer_id']}),
                    'peer_answers': told['peer_answers'], 'troubles': not told['troubles'],
                    'decision': not told['decision'] or WARN}
        except (ValueError, LookupError, TypeError, AttributeError):
            told, fine = {'status': f'{STATUS_FILE} tells nothing'}, {'status': False}
        for name, value in told.items():
            found = value if isinstance(value, str) else json.dumps(value)
            self.say(fine.get(name, True), name, '', found, 'check')
        return self.exit_code

    def files(self, *patterns: str) -> list[str]:
        return [path for pattern in patterns
                for path in glob.glob(os.path.join(self.root, pattern), recursive=True)]

    # EC2

    def check_ec2(self) -> None:
        """Ask EC2 for all that a failover is about, rehearse one, and tell of each thing."""
        settings, own = self.settings, self.own_id
        if not settings or not own:
            raise NoAnswer('it is not asked without valid settings, instance id and region')
        primary, self.peer_id = place_in_pair(settings, own)
        self.say(True, 'this instance', own, f'is the {"primary" if primary else "secondary"} in '
                 f'{self.region}')
        self.client: Any = self.connect(self.region)
        self.tagged = ' '.join(settings.route_table_ids)
        self.things = describe_pair(self.client, own, self.peer_id)
        for i in (own, self.peer_id):
            self.attempt('instance', i, self.check_instance, i)
        self.attempt('route table', '', self.check_tables)
        if settings.elastic_ip:
            self.attempt('Elastic IP', settings.elastic_ip, self.check_address, settings.elastic_ip)
        for name, call in rehearsal(settings, own, self.peer_id, self.allocation).items():
            action, about = name.split(' on ')
            self.attempt(action, about, call, self.client)
        peer = self.things.get(self.peer_id, {'State': {'Name': 'gone'}})
        self.peer_address = peer.get('PrivateIpAddress', '')
        if peer['State']['Name'] == 'running':
            self.attempt('ping', self.peer_id, self.check_ping)
            if settings.probe_address:
                self.attempt('forwards', self.peer_id, self.check_probe, settings.probe_address)

    def check_instance(self, i: str) -> None:
        """Tell of one of the pair whether it can NAT, and be stopped and started."""
        state, checks = describe_states(self.client, i)[i]
        one, gone = self.things.get(i, {}), state in ('gone', 'shutting-down', 'terminated')
        found = f'{state} ({reason_of(one) or checks or "EC2 tells no more"})'
        self.say(state == 'running', 'state', i, found, 'gone' * gone)
        if gone:
            return
        checked, tags, cards = one.get('SourceDestCheck', 1), tags_of(one), one['NetworkInterfaces']
        cards.sort(key=lambda card: card['Attachment']['DeviceIndex'])
        ids = ' '.join(card['NetworkInterfaceId'] for card in cards)
        self.tagged += f' {ids}'
        self.say(not checked, 'source/dest. check', i, 'on' if checked else 'off')
        self.say(len(cards) == 1, 'network interface', i, ids)
        # Behind the egress address EC2 tells of no other; only one of Amazon's comes back after it.
        public, egress = one.get('PublicIpAddress'), self.settings.elastic_ip
        owner = cards[0].get('Association', {}).get('IpOwnerId')
        lasts = public and (owner == 'amazon' or egress in (None, public))
        self.say(lasts or (WARN if egress else False), 'public address', i, public or 'none')
        arn = one.get('IamInstanceProfile', {}).get('Arn', 'none')
        self.say(arn.endswith(f':instance-profile/{self.role}'), 'instance profile', i, arn,
                 'role' if arn == 'none' else 'other profile')
        group, tag = tags.get('aws:autoscaling:groupName', 'none'), tags.get(MAINTENANCE, 'none')
        self.say(group == 'none', 'Auto Scaling group', i, group)
        self.say(MAINTENANCE not in tags or WARN, 'maintenance', i, tag or 'tagged')
        spot, root = one.get('SpotInstanceRequestId', 'none'), one['RootDeviceType']
        self.say(spot == 'none' or None, 'Spot', i, spot)
        self.say(root == 'ebs', 'root device', i, root, 'gone')
        protected = self.client.describe_instance_attribute(
            InstanceId=i, Attribute='disableApiStop')['DisableApiStop']['Value']
        self.say(not protected, 'stop protection', i, 'on' if protected else 'off')

    def check_tables(self) -> None:
        """Tell what claims would replace, whom they serve, and what other tables lead here."""
        vpc, chosen = self.things[self.own_id]['VpcId'], self.settings.route_table_ids
        tables = by_id(self.client.describe_route_tables, 'RouteTableId', 'vpc-id', vpc)
        links = {link.get('SubnetId', REST): i for i, one in tables.items()
                 for link in one['Associations'] if link.get('SubnetId') or link.get('Main')}
        pair = {one['SubnetId'] for one in self.things.values() if one.get('SubnetId')}
        for i in chosen:
            self.say(i in tables, 'route table', i, 'not ' * (i not in tables) + 'in the VPC')
        for i, one in tables.items():
            led = [f'{route.get("DestinationCidrBlock")} to {route["InstanceId"]}'
                   for route in one['Routes'] if route.get('InstanceId') in self.things]
            if i in chosen:
                self.say_holder('default route', i, holder_of(
                    default_route(one), self.own_id, self.peer_id, self.things))
                served = ', '.join(sorted(name for name in links if links[name] == i))
                self.say(served, 'subnets', i, served or 'none')
                for subnet in (name for name in pair if links.get(name, links.get(REST)) == i):
                    self.say(False, 'own subnet', i, f'is in ROUTE_TABLE_IDS, so the pair, in '
                             f'{subnet}, would route to itself', subnet=subnet)
            elif led:
                self.say(WARN, 'route table', i, f'leads {", ".join(led)}, also after a failover: '
                         'it is not in ROUTE_TABLE_IDS')
        self.networks = [*map(Network, describe_networks(self.client, chosen))]

    def check_address(self, address: str) -> None:
        holder, self.allocation = describe_address(
            self.client, address, self.own_id, self.peer_id, self.things)
        self.tagged += f' {self.allocation}'
        self.say_holder('Elastic IP', address, holder)

    def say_holder(self, what: str, about: str, holder: str) -> None:
        """Tell who holds a part; what is outside the pair is somebody's choice, or a mistake."""
        names = {SELF: f'at {self.own_id}', PEER: f'at {self.peer_id}', NOBODY: 'at nobody',
                 OTHER: 'outside the pair', ABSENT: f'not found in {self.region}'}
        fine = {OTHER: WARN, ABSENT: False}.get(holder, True)
        self.say(fine, what, about, names[holder], 'settings' * (holder == ABSENT))

    def check_ping(self) -> None:
        """Ping the peer as often as makes it silent."""
        wanted, own = self.settings.num_pings, addresses_of(self.things[self.own_id])
        ping = self.ping or functools.partial(send_ping, self.settings.ping_timeout)
        answers = sum(ping(self.peer_address, own) for _ in range(wanted))
        self.say(answers == wanted, 'ping', self.peer_id, f'{self.peer_address} answers {answers} '
                 f'of {wanted}', 'security group' * (not answers))

    def check_probe(self, target: str) -> None:
        """Send a packet by the own route, and one through the peer; a miss counts beside the first.

        Where the peer probes, too, this host must translate what comes from it.
        """
        self.networks.append(Network(self.peer_address))
        probe = self.probe or functools.partial(send_ping, self.settings.ping_timeout)
        direct, through = probe(target), probe(target, through=self.peer_address)
        came = {True: 'came back', False: 'did not come back'}
        self.say(direct or None, 'probe', target, f'a packet to it {came[direct]}')
        self.say(through or (False if direct else None), 'forwards', self.peer_id,
                 f'a packet through it {came[through]}')


# The program --------------------------------------------------------------------------------------

LINES_KEPT = 1000      # while they can go nowhere; what is more is dropped
LAST_LINES = 1.0       # s that the end of this process waits for what is not written yet
NOTIFY_TIMEOUT = 30.0  # s, of one run


def utc(at: float | None = None) -> str:
    return time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(at))


class Writer(logging.Handler):
    """Give each record's level and line to `write`, one after the other, in a thread of its own.

    A full pipe, a held terminal, a frozen file system or a command that hangs holds up this thread
    alone.  Lines that find no place, or that `write` has returned False for, are dropped; how many
    is told when it works again, after the words of `lost`.
    """

    def __init__(self, level: int, write: Callable[[str, str], bool], lost: str) -> None:
        super().__init__(level)
        self.write, self.lost, self.dropped = write, lost, 0
        self.waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()  # signal handlers may put, too
        threading.Thread(target=self.write_all, daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        line = f'{utc(record.created)} {record.levelname} {record.getMessage()}'
        if self.waiting.qsize() < LINES_KEPT:
            self.waiting.put(functools.partial(self.write, record.levelname, line))
        else:
            self.dropped += 1

    def flush(self) -> None:
        """Wait until all lines so far are written, but not for long."""
        done = threading.Event()
        self.waiting.put(done.set)
        done.wait(LAST_LINES)

    def write_all(self) -> None:
        """Do for ever what waits: write a line, or tell `flush` that it came to this."""
        while True:
            written = self.waiting.get()()
            if written is False:
                self.dropped += 1
            elif written and self.dropped and self.waiting.empty():
                count, self.dropped = self.dropped, 0
                log.warning(f'{self.lost}: {count}')


def write_line(level: str, line: str) -> bool:
    """Write a line to standard output, however long it takes; tell whether it could be written."""
    rest = (line + '\n').encode(errors='replace')
    with contextlib.suppress(OSError, ValueError, TypeError):  # full disk, closed pipe; none
        while rest:
            select.select([], [sys.stdout], [])  # somebody may have set it not to block
            rest = rest[os.write(sys.stdout.fileno(), rest):]
    return not rest


def notify(command: Sequence[str], level: str, line: str) -> bool:
    """Run the command for a line to its end, or kill all of it; tell whether it ended well.

    It is not spared as the monitor is, when memory runs out.
    """
    script = ('exec </dev/null >/dev/null 2>&1; echo 0 >/proc/self/oom_score_adj; '
              f'exec timeout -s KILL {NOTIFY_TIMEOUT} "$@"')
    try:
        code = subprocess.call(['sh', '-c', script, 'sh', *command, level, line])
        late = f' (killed, as after {NOTIFY_TIMEOUT:g} s)' * (code == -signal.SIGKILL)
        failure = f'ended with exit code {code}{late}' if code else ''
    except Exception as error:  # no memory, an odd line
        failure = f'could not be run ({in_words(error)})'
    if failure:
        log.warning(f'{command[0]} {failure}', extra={'of_notify': True})
    return not failure


def start_log() -> None:
    """Send the log to standard output from now on."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # there may be no output
        if os.path.isfile(sys.stdout.fileno()):  # behind `>`: at the end, also once it is emptied
            fcntl.fcntl(sys.stdout, fcntl.F_SETFL, os.O_APPEND)
    log.handlers = [Writer(logging.INFO, write_line, 'lines that could not be written')]
    log.setLevel(logging.INFO)


def start_notifying(command: Sequence[str]) -> None:
    """Run the command from now on for warnings and what ends them, but not for its own."""
    notifier = Writer(logging.WARNING, functools.partial(notify, command),
                      f'lines of which {command[0]} was not told')
    notifier.addFilter(lambda record: not hasattr(record, 'of_notify'))
    log.addHandler(notifier)


def write_status(status: dict[str, Any], path: str = STATUS_FILE) -> None:
    """Replace the status file, best effort: one that cannot be written grows old, which tells."""
    with contextlib.suppress(OSError):
        with open(f'{path}.new', 'w') as file:
            os.fchmod(file.fileno(), 0o644)
            json.dump({'time': utc(), 'version': VERSION, **status}, file)
        os.replace(f'{path}.new', path)


def take_lock(path: str = LOCK_FILE) -> int:
    """Take the lock for the life of this process and return its descriptor.

    Raises Refusal if a monitor has it, or the file cannot be opened.
    """
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid, suspended = lock_holder(path)
        held = f'pid {pid or "unknown"}' + ' (suspended)' * suspended
        raise Refusal(f'a monitor already runs with {held}: this one ends', exit_code=1)
    except OSError as error:
        raise Refusal(f'{path}: {error.strerror}; it must be a file of root\'s, or not exist')
    return lock


def lock_holder(path: str, root: str = '/') -> tuple[str, bool]:
    """Return the pid of who holds a lock, '' if nobody does, and whether a signal has suspended it.

    The lock is not tried, as a monitor may be starting.
    """
    with contextlib.suppress(OSError, IndexError):
        lock = os.stat(path)
        device = f'{os.major(lock.st_dev):02x}:{os.minor(lock.st_dev):02x}'
        locks = text_of(os.path.join(root, 'proc/locks'))
        pid = str(re.findall(rf'FLOCK.* (\d+) {device}:{lock.st_ino} ', locks)[0])
        return pid, bool(re.search(r'.*\) [Tt] ', text_of(f'/proc/{pid}/stat')))
    return '', False


def heed(monitor: Monitor | None, number: int, _: Any) -> None:
    """Let the monitor ask EC2 at SIGHUP; at any other signal, or without a monitor, end."""
    if number == signal.SIGHUP and monitor:  # a closed terminal: no reason to leave the pair
        log.info('SIGHUP: asking EC2 now')
        monitor.look_now()
        return
    signal.signal(number, signal.SIG_IGN)  # once is enough
    left = (f'; {monitor.peer_id} was stopped by this monitor and is not back yet: see to it'
            if monitor and monitor.left_stopped else '')
    log.info(f'ended by {signal.Signals(number).name}{left}')
    log.handlers[0].flush()
    os._exit(1 if sys.argv[1:] else 0)  # at once, also with a call under way in a thread


def heed_signals(monitor: Monitor | None = None) -> None:
    for name in ('SIGTERM', 'SIGINT', 'SIGHUP', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2'):
        signal.signal(signal.Signals[name], functools.partial(heed, monitor))


def main(argv: list[str] | None = None) -> int:
    """Run the monitor until a signal ends it; return the exit code of what keeps it from that.

    What is logged last is written as Python ends: logging flushes its handlers then.
    """
    arguments = ' '.join(sys.argv[1:] if argv is None else argv)
    if arguments in ('--help', '-h', '--version'):
        print(f'nat_monitor.py {VERSION}' if arguments == '--version' else (__doc__ or '').strip())
        return 0
    start_log()
    heed_signals()
    try:
        if arguments not in ('', '--check', '--status'):
            raise Refusal(f'argument {arguments!r} is not --check, --status, --version or --help')
        if IMPORT_ERROR:
            raise Refusal(
                f'install or mend boto3 and requests for {sys.executable}: {IMPORT_ERROR!r}')
        if arguments == '--status':
            return Check().status()
        if os.geteuid() != 0:
            raise Refusal(f'the user is {os.geteuid()}, but must be root (0), who alone may ping')
        if arguments == '--check':
            return Check().run()
        watch(read_settings())
    except Refusal as refusal:
        for fault in refusal.faults:
            log.error(fault)
        return refusal.exit_code
    return 0


def watch(settings: Settings) -> None:
    """Be the one monitor of this host for ever; raise Refusal if that cannot be."""
    take_lock()
    # For killall, whatever started this; when memory runs out, the kernel takes this process last.
    for name, text in (('comm', 'nat_monitor.py'), ('oom_score_adj', '-1000')):
        with contextlib.suppress(OSError), open(f'/proc/self/{name}', 'w') as file:
            file.write(text)
    if settings.notify_command:
        start_notifying(settings.notify_command)
    monitor = Monitor(settings, publish=write_status)
    heed_signals(monitor)
    monitor.run()


if __name__ == '__main__':
    sys.exit(main())
