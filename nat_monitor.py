#!/usr/bin/python3
"""Watch the other NAT instance of a pair and take over its work when it dies.

One monitor runs on each of two NAT instances.  It pings the other one, the peer.  When the peer falls silent and
EC2 answers this monitor, it takes over: it moves the default route of the private subnets and the egress address
to its own instance, then restarts the peer.  What it does is in README.adoc, section "Operation", in the same words.

Usage: nat_monitor.py [--check | --help]

  --check   verify the set-up of the pair, change nothing, and end

Files:    nat_config.py beside this file: the settings
          /run/nat_monitor.lock: held while a monitor runs
          standard output: one line per event
Signals:  SIGTERM and SIGINT end it at once
Exit:     0 ended by a signal (--check: nothing failed), 1 a monitor already runs (--check: something failed, or a
          signal ended it), 2 bad settings or arguments, a missing package, not one of the pair, not root
"""
from __future__ import annotations

import contextlib
import dataclasses
import datetime
import difflib
import email.utils
import errno
import fcntl
import functools
import glob
import ipaddress
import json
import logging
import math
import os
import queue
import random
import re
import runpy
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from typing import (
    TYPE_CHECKING, Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple)

try:
    import boto3
    import botocore.config
    import requests
    from botocore.exceptions import ClientError, CredentialRetrievalError, NoCredentialsError
    MISSING_PACKAGE = None
except ImportError as import_error:
    MISSING_PACKAGE = import_error.name or str(import_error)

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

LOCK_FILE = '/run/nat_monitor.lock'
SETTINGS_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'nat_config.py')
EVERYWHERE = '0.0.0.0/0'

CONNECT_TIMEOUT = 2.0      # s, of one EC2 call
READ_TIMEOUT = 4.0
CALL_DEADLINE = CONNECT_TIMEOUT + READ_TIMEOUT  # of our own: name resolution ignores the two above
MOVE_DEADLINE = 1.5        # of the move of the address, whose answer is often lost: then EC2 is asked where it is
LOOK_INTERVAL = 300.0      # s between looks while all is well
LOOK_AFTER_CHANGE = 15.0   # s from the start, or a claim, to the look that confirms it
SOON, LATER = 5.0, 60.0    # s to the next question while something is on its way, and otherwise
SETTLE_BEFORE_STOP = 10.0  # s that a claim must stand before its owner may stop the peer
CLAIM_RETRY = 3.0          # s, longest pause: with the two pings that come between, 5 s from try to try
OTHER_RETRY = 30.0
STOPS_REMEMBERED = 7200.0  # s
LONGEST_STOP_SPACING = 3600.0

log = logging.getLogger('nat_monitor')


# Errors ---------------------------------------------------------------------------------------------------------------

class Refusal(Exception):
    """What the operator must mend before a monitor can run; `faults` are sentences, `exit_code` ends the process."""

    def __init__(self, *faults: str, exit_code: int = 2) -> None:
        super().__init__('; '.join(faults))
        self.faults = faults
        self.exit_code = exit_code


class NoAnswer(Exception):
    """No answer came back before the deadline."""


class OwnFault(Exception):
    """A ping could not leave this host, so it tells nothing about the peer."""


def in_words(error: BaseException) -> str:
    """Say on one line what came back; EC2's encoded authorization messages are cut off."""
    name, text = type(error).__name__, str(error)
    if isinstance(error, ClientError):
        name, text = code_of(error), error.response['Error'].get('Message', '')
    return f'{name}: {" ".join(text.split())[:160]}'


def failures_in(results: Dict[str, Any]) -> str:
    """Return what went wrong by name, in words, '' if nothing did."""
    return '; '.join(f'{name}: {in_words(one)}' for name, one in results.items() if isinstance(one, Exception))


def code_of(result: Any) -> str:
    """Return EC2's error code, or '' for anything else."""
    return str(result.response['Error'].get('Code', '')) if isinstance(result, ClientError) else ''


# Settings -------------------------------------------------------------------------------------------------------------

def is_id(value: Any, kind: str) -> bool:
    return isinstance(value, str) and re.fullmatch(f'{kind}-([0-9a-f]{{8}}|[0-9a-f]{{17}})', value) is not None


def is_list_of_tables(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and 0 < len(value) == len(set(map(str, value))) and all(
        is_id(each, 'rtb') for each in value)


def is_address_or_none(value: Any) -> bool:
    try:
        return value is None or isinstance(value, str) and bool(ipaddress.IPv4Address(value))
    except ValueError:
        return False


def setting(is_allowed: Callable[[Any], bool], allowed: str, default: Any = dataclasses.MISSING) -> Any:
    """Declare a setting: how its value is checked, what is allowed in words, and its default if it may be missing."""
    return dataclasses.field(default=default, metadata={'is_allowed': is_allowed, 'allowed': allowed})


AN_INSTANCE = (functools.partial(is_id, kind='i'), "an instance id such as 'i-0123456789abcdef0'")
SECONDS = (lambda value: type(value) in (int, float) and 0 < value <= 86400,
           'a number of seconds above 0, at most 86400')


@dataclasses.dataclass(frozen=True)
class Settings:
    """What nat_config.py says, checked; there the names are in capitals.  Times in seconds."""

    primary_instance_id: str = setting(*AN_INSTANCE)
    secondary_instance_id: str = setting(*AN_INSTANCE)
    route_table_ids: Tuple[str, ...] = setting(
        is_list_of_tables, "a list of different route table ids such as ['rtb-0123456789abcdef0']")
    elastic_ip: Optional[str] = setting(is_address_or_none, "an IPv4 address such as '198.51.100.7', or None", None)
    num_pings: int = setting(lambda value: type(value) is int and value >= 2, 'a whole number, at least 2', 3)
    ping_timeout: float = setting(*SECONDS, 1.0)
    wait_between_pings: float = setting(*SECONDS, 2.0)
    wait_for_instance_stop: float = setting(*SECONDS, 60.0)
    wait_for_instance_start: float = setting(*SECONDS, 300.0)

    @property
    def parts(self) -> Tuple[str, ...]:
        """All that one of the pair holds: the route tables, then the address."""
        return self.route_table_ids + ((self.elastic_ip,) if self.elastic_ip else ())


SETTINGS = {field.name.upper(): field for field in dataclasses.fields(Settings)}
REQUIRED = [name for name, field in SETTINGS.items() if field.default is dataclasses.MISSING]


def read_settings(path: str = SETTINGS_FILE) -> Settings:
    """Read and check the settings; raise Refusal with all that is wrong with them."""
    try:
        names = {name: value for name, value in runpy.run_path(path).items() if not name.startswith('__')}
    except OSError as error:
        raise Refusal(f'{path}: {error.strerror}; the settings must stand in this file')
    except (Exception, SystemExit) as error:
        line = f', line {error.lineno}' if isinstance(error, SyntaxError) else ''
        raise Refusal(f'{path}{line}: {in_words(error)}; allowed are lines of the form NAME = value')
    return check_settings(names, path)


def check_settings(names: Dict[str, Any], path: str) -> Settings:
    """Make Settings of the names set in the file at `path`; raise Refusal with every fault."""
    faults = []
    empty = [name for name in REQUIRED if name in names and not names[name]]
    if empty:
        faults.append(f'{", ".join(empty)} {"is" if len(empty) == 1 else "are"} empty: fill in the ids of your two NAT '
                      'instances and of the route tables of their private subnets')
    for name, value in names.items():
        if name not in SETTINGS:
            nearest = difflib.get_close_matches(name.upper(), SETTINGS, 1)
            faults.append(f'{name} is not a setting; ' + (
                f'did you mean {nearest[0]}?' if nearest else f'the settings are {", ".join(SETTINGS)}'))
        elif name not in empty and not SETTINGS[name].metadata['is_allowed'](value):
            faults.append(f'{name} is {value!r}, but must be {SETTINGS[name].metadata["allowed"]}')
    faults += [f'{name} is missing; it must be {SETTINGS[name].metadata["allowed"]}'
               for name in REQUIRED if name not in names]
    primary, secondary = map(names.get, REQUIRED[:2])
    if primary and primary == secondary:
        faults.append(f'PRIMARY_INSTANCE_ID and SECONDARY_INSTANCE_ID are both {primary!r}, but must be two different '
                      'instances')
    if faults:
        raise Refusal(*(f'{path}: {fault}' for fault in faults))
    names['ROUTE_TABLE_IDS'] = tuple(names['ROUTE_TABLE_IDS'])
    return Settings(**{name.lower(): value for name, value in names.items()})


def place_in_pair(settings: Settings, own_id: str) -> Tuple[bool, str]:
    """Tell whether this instance is the primary, and the peer's id; raise Refusal if it is neither of the pair."""
    primary, secondary = settings.primary_instance_id, settings.secondary_instance_id
    if own_id not in (primary, secondary):
        raise Refusal(f'this instance is {own_id}, but PRIMARY_INSTANCE_ID and SECONDARY_INSTANCE_ID are '
                      f'{primary} and {secondary}: the monitor runs on these two only')
    return own_id == primary, secondary if own_id == primary else primary


# Metadata -------------------------------------------------------------------------------------------------------------

class Metadata:
    """The instance metadata service, version 2 (a session token for each item)."""

    def __init__(self, base_url: Optional[str] = None) -> None:
        self.base_url = (base_url or os.environ.get('AWS_EC2_METADATA_SERVICE_ENDPOINT')
                         or 'http://169.254.169.254').rstrip('/')

    def get(self, item: str) -> str:
        """Return the text of /latest/meta-data/`item`; raise requests.RequestException."""
        with requests.Session() as session:
            session.trust_env = False  # a proxy must not see the token
            token = session.put(f'{self.base_url}/latest/api/token', timeout=(1, 2),
                                headers={'X-aws-ec2-metadata-token-ttl-seconds': '60'})
            token.raise_for_status()
            answer = session.get(f'{self.base_url}/latest/meta-data/{item}', timeout=(1, 2),
                                 headers={'X-aws-ec2-metadata-token': token.text})
            answer.raise_for_status()
            return answer.text.strip()


# Ping -----------------------------------------------------------------------------------------------------------------

# What the network says of the peer; any other error keeps the request from leaving this host.
UNREACHABLE = (errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ECONNREFUSED, errno.ENOPROTOOPT, errno.EPROTO)
REQUESTS_PER_PING = 4
SOL_RAW, ICMP_FILTER, ECHO_REPLY, ECHO_REQUEST = 255, 1, 0, 8


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f'!{len(data) // 2}H', data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


class Ping:
    """ICMP echo from within this process: a child would get the terminal's Ctrl-C and die like an outage."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.identifier, self.sequence = random.randrange(1 << 16), 0

    def __call__(self, address: str) -> bool:
        """Ping once: up to four requests over `timeout` seconds; tell whether one of them was answered.

        A miss always takes `timeout` seconds.  Raises OwnFault if a request cannot leave this host.
        """
        started_at = time.monotonic()
        requests_sent: Set[bytes] = set()
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as connection:
                connection.setblocking(False)
                connection.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack('=I', ~(1 << ECHO_REPLY) & 0xFFFFFFFF))
                connection.connect((address, 0))  # lets in what comes from there, and nothing else
                for count in range(1, REQUESTS_PER_PING + 1):
                    requests_sent.add(self.send(connection))
                    if self.wait(connection, requests_sent, started_at + self.timeout * count / REQUESTS_PER_PING):
                        return True
        except OSError as error:
            raise OwnFault(f'{error.strerror or error}')
        return False

    def send(self, connection: socket.socket) -> bytes:
        """Send one echo request and return its identifier and sequence number, as they come back."""
        self.sequence = (self.sequence + 1) % (1 << 16)
        tag = struct.pack('!HH', self.identifier, self.sequence)
        empty = struct.pack('!BBH', ECHO_REQUEST, 0, 0) + tag
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # clears what came of an earlier request
        try:
            connection.send(struct.pack('!BBH', ECHO_REQUEST, 0, checksum(empty)) + tag)
        except OSError as error:
            if error.errno not in UNREACHABLE:
                raise
        return tag

    def wait(self, connection: socket.socket, requests_sent: Set[bytes], until: float) -> bool:
        """Wait until the monotonic time `until` for the reply to one of the requests; tell whether it came."""
        while True:
            if not select.select([connection], [], [], max(0.0, until - time.monotonic()))[0]:
                return False
            try:
                packet = connection.recv(2048)
            except OSError as error:
                if error.errno not in UNREACHABLE + (errno.EAGAIN,):
                    raise
                continue  # reading the error has cleared it
            reply = packet[(packet[0] & 15) * 4:]  # behind the IP header
            if reply[:1] == bytes([ECHO_REPLY]) and reply[4:8] in requests_sent:
                return True


# EC2 ------------------------------------------------------------------------------------------------------------------

SELF, PEER, NOBODY, OTHER, ABSENT = 'self', 'peer', 'nobody', 'other', 'absent'  # who holds a part; no such part


def run_together(calls: Dict[str, Callable[[], Any]], timeout: float,
                 meanwhile: Optional[Callable[[], None]] = None) -> Dict[str, Any]:
    """Make the calls side by side and return, by name, what each returned or raised within `timeout` seconds.

    `meanwhile` runs on the calling thread in the same time.  A call without an answer in time gives NoAnswer; its
    thread is left to itself, for no time-out of the libraries covers name resolution.
    """
    done: queue.SimpleQueue[Tuple[str, Any]] = queue.SimpleQueue()

    def make(name: str, call: Callable[[], Any]) -> None:
        try:
            done.put((name, call()))
        except Exception as error:
            done.put((name, error))

    deadline = time.monotonic() + timeout
    results: Dict[str, Any] = {name: NoAnswer(f'no answer within {timeout:g} s') for name in calls}
    for name, call in calls.items():
        try:
            threading.Thread(target=make, args=(name, call), daemon=True).start()
        except RuntimeError as error:  # no memory for a thread
            done.put((name, error))
    if meanwhile:
        meanwhile()
    try:
        for _ in calls:
            name, result = done.get(timeout=max(0.0, deadline - time.monotonic()))
            results[name] = result
    except queue.Empty:
        pass
    return results


def connect(region: str) -> EC2Client:
    """Make an EC2 client that tries once and never hangs for long; the monitor repeats and spaces its calls itself."""
    return boto3.session.Session(region_name=region).client(
        'ec2', endpoint_url=os.environ.get('AWS_ENDPOINT_URL_EC2') or None,  # Debian 12's boto3 does not read it
        config=botocore.config.Config(connect_timeout=CONNECT_TIMEOUT, read_timeout=READ_TIMEOUT,
                                      retries={'mode': 'standard', 'total_max_attempts': 1},
                                      max_pool_connections=100))  # as many calls side by side


Call = Callable[[Any], Any]  # takes the EC2 client


def has_answered(result: Any) -> bool:
    """Tell whether this came from EC2: an error is an answer too, a lost connection is not."""
    return not isinstance(result, Exception) or isinstance(result, ClientError)


def describe_states(client: EC2Client, *instance_ids: str) -> Dict[str, Tuple[str, str]]:
    """Return by instance id EC2's state ('gone': no such instance) and its checks: 'ok', 'impaired' or EC2's words.

    An unknown id fails the call for all of them, so each is asked for alone then.
    """
    try:
        answer = client.describe_instance_status(InstanceIds=list(instance_ids), IncludeAllInstances=True)
    except ClientError as error:
        if code_of(error) != 'InvalidInstanceID.NotFound':
            raise
        if len(instance_ids) == 1:
            return {instance_ids[0]: ('gone', '')}
        return {i: state for each in instance_ids for i, state in describe_states(client, each).items()}
    states: Dict[str, Tuple[str, str]] = {}
    for one in answer['InstanceStatuses']:
        checks = {one[kind].get('Status', '') for kind in ('InstanceStatus', 'SystemStatus') if kind in one}
        verdict = 'impaired' if 'impaired' in checks else 'ok' if checks == {'ok'} else ' and '.join(sorted(checks))
        states[one['InstanceId']] = (one['InstanceState']['Name'], verdict)
    return states


def holder_of(thing: Any, own_id: str, peer_id: str) -> str:
    """Return who of the pair a route or an address points to."""
    return {own_id: SELF, peer_id: PEER}.get(thing.get('InstanceId', ''), OTHER)


def default_route(table: Any) -> Dict[str, Any]:
    """Return the route to everywhere in a table as EC2 describes it, {} if there is none."""
    return next((dict(r) for r in table['Routes'] if r.get('DestinationCidrBlock') == EVERYWHERE), {})


def describe_tables(client: EC2Client, table_ids: Tuple[str, ...], own_id: str, peer_id: str) -> Dict[str, str]:
    """Return by table who holds its default route.  A filter, as one unknown id would fail the whole call."""
    answer = client.describe_route_tables(Filters=[{'Name': 'route-table-id', 'Values': list(table_ids)}])
    holders = dict.fromkeys(table_ids, ABSENT)
    for table in answer['RouteTables']:
        route = default_route(table)
        holders[table['RouteTableId']] = (
            holder_of(route, own_id, peer_id) if route and route.get('State') != 'blackhole' else NOBODY)
    return holders


def describe_address(client: EC2Client, address: str, own_id: str, peer_id: str) -> Tuple[str, str]:
    """Return who holds the address and its allocation id, '' if it does not exist."""
    found = client.describe_addresses(Filters=[{'Name': 'public-ip', 'Values': [address]}])['Addresses']
    if not found:
        return ABSENT, ''
    return holder_of(found[0], own_id, peer_id) if found[0].get('AssociationId') else NOBODY, found[0]['AllocationId']


def describe_private_address(client: EC2Client, instance_id: str) -> str:
    """Return the instance's private address, '' if it has none (terminated, or unknown to EC2)."""
    found = client.describe_instances(Filters=[{'Name': 'instance-id', 'Values': [instance_id]}])['Reservations']
    return found[0]['Instances'][0].get('PrivateIpAddress', '') if found else ''


def claim_table(client: EC2Client, table_id: str, instance_id: str) -> None:
    """Point the table's default route at the instance, whether there is one yet or not."""
    route: Dict[str, Any] = {'RouteTableId': table_id, 'DestinationCidrBlock': EVERYWHERE, 'InstanceId': instance_id}
    try:
        client.replace_route(**route)
    except ClientError as error:
        # EC2's code for "there is no such route" serves other faults too: CreateRoute tells them apart.
        if code_of(error) != 'InvalidParameterValue':
            raise
        try:
            client.create_route(**route)
        except ClientError as second:
            raise error if code_of(second) == 'RouteAlreadyExists' else second


def rehearsal(settings: Settings, own_id: str, peer_id: str, allocation_id: str) -> Dict[str, Call]:
    """Return by name the calls of a take-over and a restart, with DryRun: each raises, and changes nothing."""
    steps: List[Tuple[str, str, Dict[str, Any]]] = [
        (action, table, {'RouteTableId': table, 'DestinationCidrBlock': EVERYWHERE, 'InstanceId': own_id})
        for table in settings.route_table_ids for action in ('ReplaceRoute', 'CreateRoute')]
    if allocation_id:
        steps.append(('AssociateAddress', settings.elastic_ip or '', {
            'AllocationId': allocation_id, 'InstanceId': own_id, 'AllowReassociation': True}))
    steps += [(action, peer_id, {'InstanceIds': [peer_id]}) for action in ('StopInstances', 'StartInstances')]
    return {f'{action} on {about}': functools.partial(call_by_name, action, {**arguments, 'DryRun': True})
            for action, about, arguments in steps}


def call_by_name(action: str, arguments: Dict[str, Any], client: Any) -> Any:
    return getattr(client, botocore.xform_name(action))(**arguments)


DENIED = ('UnauthorizedOperation', 'AccessDenied', 'AccessDeniedException')
BUSY = ('RequestLimitExceeded', 'Throttling', 'Unavailable', 'ServiceUnavailable', 'InternalError', 'InternalFailure')


# Forwarding and masquerading ------------------------------------------------------------------------------------------

# What may become of a packet in a chain, or by a rule; ON: nothing yet, UNCLEAR: it cannot be told.
ACCEPT, DROP, NAT, ON, UNCLEAR = 'accept', 'drop', 'masquerade', 'go on', 'unclear'
SOMEWHERE, INTERNET = 'a private host', 'the internet'
LIST_TIMEOUT = 1.5  # s, for nft and iptables-save, side by side
NFT_HOOKS = {('filter', 'forward'): 'forward', ('nat', 'postrouting'): 'postrouting'}
NFT_TERMS = {
    'payload ip saddr': 'saddr', 'payload ip daddr': 'daddr', 'payload ip protocol': 'proto',
    'meta l4proto': 'proto', 'meta nfproto': 'family', 'ct state': 'state',
    'fib type saddr': 'from',
    **{f'meta {way}{name}': way for way in ('iif', 'oif') for name in ('', 'name')}}
NFT_ACTIONS = {'accept': ACCEPT, 'drop': DROP, 'reject': DROP, 'masquerade': NAT, 'snat': NAT,
               'return': ON, **dict.fromkeys(('counter', 'log', 'mangle', 'notrack', 'flow'), ON)}
IPTABLES_HOOKS = {'filter FORWARD': 'forward', 'mangle FORWARD': 'forward',
                  'nat POSTROUTING': 'postrouting'}
IPTABLES_TERMS = {
    '-s': 'saddr', '--src-range': 'saddr', '-d': 'daddr', '--dst-range': 'daddr', '-i': 'iif',
    '-o': 'oif', '-p': 'proto', '--ctstate': 'state', '--state': 'state', '--src-type': 'from'}
IPTABLES_PLAIN = ('comment', 'conntrack', 'state', 'addrtype', 'iprange', 'tcp', 'udp', 'icmp')
IPTABLES_ACTIONS = {
    'ACCEPT': ACCEPT, 'DROP': DROP, 'REJECT': DROP, 'MASQUERADE': NAT, 'SNAT': NAT, 'RETURN': ON,
    **dict.fromkeys(('LOG', 'NFLOG', 'MARK', 'CONNMARK', 'TCPMSS', 'CT', 'NOTRACK'), ON)}


class Match(NamedTuple):
    """A condition of a rule: `what` of a packet is one of the values, or none of them."""

    what: str  # a key of Host.packets, or what the tool calls it
    values: Tuple[str, ...]
    wanted: bool = True


class Rule(NamedTuple):
    matches: Tuple[Match, ...]
    action: str   # one of the above, or a chain
    leaves: bool  # the chain with it: goto, return
    words: str


class Chain(NamedTuple):
    hook: str  # 'forward', 'postrouting', or '' for any other
    policy: str
    rules: List[Rule]


Chains = Dict[str, Chain]  # by tool, or family, and table and name
Packet = Dict[str, Any]
Network = ipaddress.IPv4Network
Verdict = Tuple[Optional[bool], str]  # None: it cannot be told; and why


def read_iptables(listing: str) -> Chains:
    """Read what iptables-save writes."""
    chains: Chains = {}
    table = ''
    for line in listing.splitlines():
        if line.startswith('*'):
            table = line[1:]
        elif line.startswith(':'):
            name, policy = line[1:].split()[:2]
            chains[f'iptables {table} {name}'] = Chain(
                IPTABLES_HOOKS.get(f'{table} {name}', ''), DROP if policy == 'DROP' else ACCEPT, [])
        elif line.startswith('-A '):
            _, name, *words = shlex.split(line)
            chains[f'iptables {table} {name}'].rules.append(iptables_rule(table, words, line))
    return chains


def iptables_rule(table: str, words: List[str], line: str) -> Rule:
    matches: List[Match] = []
    wanted = True
    while words:
        option = words.pop(0)
        values: List[str] = []
        if option == '!':
            wanted = False
            continue
        while words and (option == '--comment' and not values or words[0][0] not in '!-'):
            values.append(words.pop(0))
        if option in ('-j', '-g'):  # what follows are its own options
            action = IPTABLES_ACTIONS.get(values[0], f'iptables {table} {values[0]}')
            return Rule(tuple(matches), action, '-g' in option or values[0] == 'RETURN', line)
        if option == '-m':
            option = '--comment' if values[0] in IPTABLES_PLAIN else values[0]
        if option != '--comment':
            split = tuple(','.join(values).split(','))
            matches.append(Match(IPTABLES_TERMS.get(option, option), split, wanted))
        wanted = True
    return Rule(tuple(matches), ON, False, line)


def read_nft(listing: str) -> Chains:
    """Read what `nft -j list ruleset` writes."""
    chains: Chains = {}
    for entry in json.JSONDecoder().raw_decode(listing)[0]['nftables']:
        chain, rule = entry.get('chain'), entry.get('rule')
        thing = chain or rule
        if not thing or thing['family'] not in ('ip', 'inet'):
            continue
        table = f'{thing["family"]} {thing["table"]} '
        if chain:
            hook = NFT_HOOKS.get((chain.get('type'), chain.get('hook')), '')
            chains[table + chain['name']] = Chain(hook, chain.get('policy', ACCEPT), [])
        else:
            chains[table + rule['chain']].rules.extend(nft_rules(table, rule))
    return chains


def nft_rules(table: str, rule: Dict[str, Any]) -> Iterator[Rule]:
    """Yield a rule for each of its verdicts."""
    matches: List[Match] = []
    for statement in rule['expr']:
        [(kind, value)] = statement.items()
        if kind == 'match':
            matches.append(nft_match(**value))
        elif kind == 'limit':
            matches.append(Match(kind, ()))
        elif kind == 'vmap' and isinstance(value['data'], dict):
            for one, verdict in value['data']['set']:
                also = nft_match('==', value['key'], one)
                yield nft_rule(table, rule['chain'], (*matches, also), verdict)
        else:
            yield nft_rule(table, rule['chain'], tuple(matches), statement)


def nft_rule(table: str, chain: str, matches: Tuple[Match, ...], verdict: Dict[str, Any]) -> Rule:
    [(kind, value)] = verdict.items()
    target = f' {value["target"]}' if kind in ('jump', 'goto') else ''
    action = table + target[1:] if target else NFT_ACTIONS.get(kind, UNCLEAR)
    shown = [f'{what} {"" if wanted else "!= "}{", ".join(values)} '
             for what, values, wanted in matches]
    words = f'{table}{chain}: {"".join(shown)}{kind}{target}'
    return Rule(matches, action, kind in ('goto', 'return'), words)


def nft_match(op: str, left: Dict[str, Any], right: Any) -> Match:
    [(kind, value)] = left.items()
    terms = value.values() if isinstance(value, dict) else ()
    term = ' '.join([kind] + [' '.join(t) if isinstance(t, list) else str(t) for t in terms])
    protocol = term.split()[1] if kind == 'payload' and terms else 'ip'
    if protocol not in ('ip', 'tcp', 'th'):  # another protocol's field asks for that protocol
        return Match('proto', (protocol,))
    values = tuple(nft_values(right)) if op in ('==', 'in', '!=') else (f'@{op}',)
    return Match(NFT_TERMS.get(term, term), values, op != '!=')


def nft_values(right: Any) -> Iterator[str]:
    """Yield the values on the right of a match; what begins with @ is known by name only."""
    if isinstance(right, dict):
        [(kind, value)] = right.items()
        if kind == 'prefix':
            yield f'{value["addr"]}/{value["len"]}'
        elif kind == 'range':
            yield f'{value[0]}-{value[1]}'
        else:
            yield from nft_values(value) if kind == 'set' else [f'@{kind}']
    elif isinstance(right, list):
        for one in right:
            yield from nft_values(one)
    else:
        yield str(right)


def covers(value: str, what: str, packet: Packet) -> Optional[bool]:
    """Tell whether a value of a rule covers a packet's; None: that cannot be told."""
    has = packet.get(what)
    if not has or value.startswith('@'):
        return None
    if what in ('iif', 'oif'):
        return value == has or value[-1:] in ('*', '+') and str(has).startswith(value[:-1])
    if what not in ('saddr', 'daddr'):
        return bool(value.lower() == has)
    try:
        first, _, last = value.partition('-')
        networks = [Network(value, strict=False)] if not last else [
            *ipaddress.summarize_address_range(ipaddress.IPv4Address(first),
                                               ipaddress.IPv4Address(last))]
    except ValueError:
        return None
    told = [covers_address(network, has, packet['elsewhere']) for network in networks]
    return True if True in told else None if None in told else False


def covers_address(network: Network, has: Any, elsewhere: Dict[Network, str]) -> Optional[bool]:
    """The same for an address: a network, SOMEWHERE, which is none of `elsewhere`, or INTERNET."""
    if network.prefixlen == 0:
        return True
    if has == INTERNET:  # a rule for some hosts there may be for all that anybody asks for
        return False if network.is_private else None
    if has == SOMEWHERE:
        return False if any(network.subnet_of(one) for one in elsewhere) else None
    if network.overlaps(has):
        return True if network.supernet_of(has) else None
    return False


def fits(rule: Rule, packet: Packet) -> Optional[bool]:
    """Tell whether a rule is about a packet; None: that cannot be told."""
    told: List[Optional[bool]] = []
    for what, values, wanted in rule.matches:
        found = [covers(value, what, packet) for value in values] or [None]
        one = True if True in found else None if None in found else False
        told.append(None if one is None else one == wanted)
    return False if False in told else None if None in told else True


def ends(chains: Chains, name: str, packet: Packet) -> Dict[str, str]:
    """Return all that may become of a packet in a chain, each with the words of the rule."""
    found: Dict[str, str] = {}
    for rule in chains[name].rules:
        fit = fits(rule, packet)
        if fit is False:
            continue
        became = {rule.action: rule.words}
        if rule.action not in (ACCEPT, DROP, NAT, ON, UNCLEAR):  # a chain, or an odd target
            chain = rule.action in chains
            became = ends(chains, rule.action, packet) if chain else {UNCLEAR: rule.words}
        for end, words in became.items():
            if end != ON or rule.leaves:
                found.setdefault(end, words)
        if fit and (rule.leaves or ON not in became):
            return found
    return {**found, ON: ''}


class Host(NamedTuple):
    """What this host does with packets that are not for itself, as far as it has been listed."""

    forwards: str                  # what /proc says of net.ipv4.ip_forward
    interface: str                 # of the default route, '' where there are several
    strict: bool                   # its rp_filter
    elsewhere: Dict[Network, str]  # what is routed to another interface
    chains: Chains
    unlisted: str = ''             # why there may be other rules

    def packets(self, network: Optional[Network]) -> Tuple[Packet, Packet]:
        """Return the first packet of a connection from a private network, and the answer to it."""
        common = {'iif': self.interface, 'oif': self.interface, 'proto': 'tcp', 'family': 'ipv4',
                  'from': 'unicast', 'elsewhere': self.elsewhere}
        private = network or SOMEWHERE
        return ({**common, 'saddr': private, 'daddr': INTERNET, 'state': 'new'},
                {**common, 'saddr': INTERNET, 'daddr': private, 'state': 'established'})

    def ends_at(self, hook: str, packet: Packet) -> List[Dict[str, str]]:
        """Return what may become of a packet in each chain of a hook."""
        told = []
        for name, chain in self.chains.items():
            if chain.hook == hook:
                found = ends(self.chains, name, packet)
                if ON in found:
                    del found[ON]
                    found.setdefault(chain.policy, f'{name}: policy {chain.policy}')
                told.append(found)
        return told

    def forwarding(self, network: Optional[Network] = None) -> Verdict:
        """Tell whether this host forwards what comes from a private network, and why (not)."""
        if self.forwards != '1':
            said = f'net.ipv4.ip_forward is {self.forwards or "not known"}'
            return False if self.forwards else None, said
        told = [one for packet in self.packets(network) for one in self.ends_at('forward', packet)]
        for found in told:
            if set(found) == {DROP}:
                return False, f'forwarding is dropped ({found[DROP]})'
        unclear = [found[end] for found in told for end in (DROP, UNCLEAR) if end in found]
        if network:
            strict = ', whose rp_filter is strict' if self.strict else ''
            unclear += [f'{one} is routed to {device}, not to {self.interface}{strict}'
                        for one, device in self.elsewhere.items() if one.overlaps(network)]
        if unclear or self.unlisted:
            return None, f'forwarding may be dropped ({[*unclear, self.unlisted][0]})'
        return True, 'net.ipv4.ip_forward is 1, and no rule drops'

    def masquerading(self, network: Optional[Network] = None) -> Verdict:
        """Tell whether this host masquerades what comes from a private network, by which rule."""
        told = self.ends_at('postrouting', self.packets(network)[0])
        for found in told:
            if set(found) == {NAT}:
                return True, found[NAT]
        unclear = [found[end] for found in told for end in (NAT, UNCLEAR) if end in found]
        whom = network or 'the private networks'
        if unclear or self.unlisted:
            return None, f'this may be for {whom}, or not: {[*unclear, self.unlisted][0]}'
        return False, f'no rule masquerades {whom}'


def text_of(path: str) -> str:
    """Return the text of a file, '' if there is none."""
    with contextlib.suppress(OSError), open(path, errors='replace', newline='\n') as file:
        return file.read()
    return ''


def read_routes(text: str) -> Tuple[str, Dict[Network, str]]:
    """Read /proc/net/route: the one interface of default routes, and what goes to another one."""
    routes = []
    for line in text.splitlines()[1:]:
        device, network, _, _, _, _, _, mask = line.split()[:8]
        address, length = socket.ntohl(int(network, 16)), bin(int(mask, 16)).count('1')
        routes.append((device, Network((address, length))))
    defaults = {device for device, network in routes if network.prefixlen == 0}
    if len(defaults) != 1:
        return '', {}
    return min(defaults), {network: device for device, network in routes
                           if device not in defaults and network.prefixlen >= 8}


def list_with(*command: str) -> str:
    """Return what a tool lists, and then what it warns of; '' if it is not installed."""
    path = f'{os.environ.get("PATH", "")}:/usr/sbin:/sbin'
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True,
                              encoding='utf-8', errors='replace', timeout=LIST_TIMEOUT,
                              env={**os.environ, 'PATH': path})
    except FileNotFoundError:
        return ''
    return done.stdout + done.stderr


def look_at_host(root: str = '/') -> Host:
    """Ask the kernel and both tools."""
    ipv4 = os.path.join(root, 'proc/sys/net/ipv4')
    interface, elsewhere = read_routes(text_of(os.path.join(root, 'proc/net/route')))
    filters = [text_of(f'{ipv4}/conf/{name}/rp_filter').strip() for name in ('all', interface)]
    listed = run_together({'nft': lambda: list_with('nft', '-j', 'list', 'ruleset'),
                           'iptables-save': lambda: list_with('iptables-save')}, LIST_TIMEOUT + 0.2)
    nft, iptables = (one if isinstance(one, str) else '' for one in listed.values())
    unlisted = failures_in(listed)
    if not any(listed.values()):
        unlisted = 'neither nft nor iptables-save is installed'
    elif 'legacy tables present' in iptables:
        unlisted = 'iptables-legacy has rules, too'
    chains: Chains = {}
    try:
        chains = read_iptables(iptables)
        native = read_nft(nft) if nft else {}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        native, unlisted = {}, f'a listing cannot be read: {in_words(error)}'
    if '(nf_tables)' in iptables:  # nft lists these, too, but not all of what they say
        native = {name: chain for name, chain in native.items()
                  if name.replace('ip ', 'iptables ', 1) not in chains}
    return Host(text_of(f'{ipv4}/ip_forward').strip(), interface, max(filters) == '1', elsewhere,
                {**chains, **native}, unlisted)


def nat_fault(networks: Sequence[str] = (), root: str = '/') -> str:
    """Say why this host cannot NAT for these networks, or at all; '' if it can, or nobody can tell.

    It takes a few ms, at most 2 s, and never raises; nothing is listed where nothing is forwarded.
    """
    with contextlib.suppress(Exception):  # nothing odd here may keep a monitor from its work
        if text_of(os.path.join(root, 'proc/sys/net/ipv4/ip_forward')).strip() == '0':
            return 'net.ipv4.ip_forward is 0'
        host = look_at_host(root)
        asked: List[Optional[Network]] = [Network(one) for one in networks]
        for network in asked or [None]:
            for sure, words in (host.forwarding(network), host.masquerading(network)):
                if sure is False:
                    return words
    return ''


# The decision ---------------------------------------------------------------------------------------------------------

@dataclasses.dataclass
class Situation:
    """All that a decision is made from.  Names that end in _at are monotonic times, infinite for what never was."""

    primary: bool = False
    own_state: Optional[str] = None            # EC2's latest answer; None: it answered with an error
    peer_state: Optional[str] = None           # 'gone' if EC2 knows no such instance
    checks: str = ''                           # of the peer: 'ok', 'impaired', or another word of EC2's
    error: str = ''                            # EC2's, in words, where a state is None
    asked_at: float = -math.inf                # when EC2 was asked for that, until it has served, and when it answered
    received_at: float = -math.inf
    holders: Optional[Dict[str, str]] = None   # by part; None: EC2 has not told
    seen_at: float = -math.inf                 # when it was asked for them
    foreign: Set[str] = dataclasses.field(default_factory=set)  # parts that somebody gave to something outside the pair
    answers: bool = False                      # the peer answered the last ping
    heard: bool = False
    remembered: Optional[str] = None           # who held tables and address when this monitor last saw: SELF or PEER
    kept_at: float = math.inf                  # since when the peer has been seen to serve
    taking_over: bool = False                  # in this silence
    starting: bool = False                     # the primary has not yet claimed all since its start
    moved: Set[str] = dataclasses.field(default_factory=set)  # parts that it has claimed since one of the two began
    claimed_at: float = -math.inf
    stops: List[float] = dataclasses.field(default_factory=list)  # when the peer was stopped
    started_at: float = -math.inf
    stopping_at: float = math.inf              # the stop was asked for, or forced, or first seen

    def at_peer(self, beginning: str = '') -> Set[str]:
        """Return the parts that the peer holds, of those whose ids begin so."""
        return {part for part, holder in (self.holders or {}).items() if holder == PEER and part.startswith(beginning)}

    def peer_serves(self) -> bool:
        """Tell whether the peer has a table, or the address while nothing is here."""
        return bool(self.at_peer('rtb-') or self.at_peer() and SELF not in (self.holders or {}).values())

    def has_settled(self) -> bool:
        """Tell whether EC2's answer shows what has become of the latest claim: reads lag behind writes."""
        return self.seen_at - self.claimed_at >= SETTLE_BEFORE_STOP

    def has_lost(self) -> bool:
        """Tell whether the peer has taken back a part that this monitor had claimed."""
        return bool(self.moved & self.at_peer()) and self.has_settled()

    def left_to_claim(self, settings: Settings) -> List[str]:
        """Return the parts that exist, are not known to be here, nor given to something outside the pair.

        A claim at the start takes from whoever has a part, but once only.
        """
        done = set() if self.starting else self.foreign
        if self.starting or not self.has_settled() or self.taking_over and self.holders is None:
            done = done | self.moved
        return [part for part in settings.parts
                if part not in done and (self.holders or {}).get(part) not in (SELF, ABSENT)]


class Decision(NamedTuple):
    """What to do, why (a sentence for the log, the same as long as the reason is), and when to judge again."""

    act: str
    why: str
    again: float = SOON


NOTHING, ASIDE, TAKE_OVER, GIVE_UP, BACK = 'nothing', 'stand aside', 'take over', 'give up', 'back'
WAIT, STOP, FORCE, START = 'wait', 'stop', 'force', 'start'  # steps of a restart


def decide(known: Situation, settings: Settings, now: float) -> Decision:
    """Judge a silent peer, or one in the middle of a restart: README.adoc, table in section "Operation"."""
    told = f'calls it {known.peer_state}' if known.peer_state else f'answered {known.error}'
    runs = known.peer_state == 'running'
    if known.own_state not in (None, 'running'):
        return Decision(NOTHING, f'is not judged: EC2 calls this instance {known.own_state}, so it is being '
                                 'stopped itself and does nothing')
    if known.answers:
        return decide_restart(known, settings, now)
    if known.taking_over and known.has_lost():
        return Decision(GIVE_UP, 'has taken back what had been moved, so it is alive: nobody is stopped, watching it')
    if not known.heard:
        if known.peer_state is None and not known.taking_over:
            return Decision(NOTHING, f'has not answered since it or this monitor started, and EC2 {told}: asking again')
        if runs and known.checks == 'ok':
            return Decision(NOTHING, 'has not answered since it or this monitor started, but EC2 calls it running '
                                     'with all checks passed: ping is blocked (look at the security groups of both '
                                     'instances, which must let each other ping); nothing is moved and nobody stopped',
                            LATER)
        if runs and 'insufficient-data' in known.checks:
            return Decision(NOTHING, 'has not answered, and EC2 has insufficient data about it: asking again')
    held = known.primary and known.remembered != PEER
    if known.taking_over or not known.left_to_claim(settings) or held and known.holders is None:
        return decide_restart(known, settings, now)
    if held and known.peer_serves() and (
            known.peer_state in ('running', 'pending', None) and (
                now - known.kept_at < settings.wait_for_instance_stop)):
        return Decision(ASIDE, 'has taken over, so it is about to restart this instance: standing aside for '
                               f'{settings.wait_for_instance_stop:g} s')
    return Decision(TAKE_OVER, f'is silent, and EC2 {told}: taking over')


def decide_restart(known: Situation, settings: Settings, now: float) -> Decision:
    """Choose the next step of a restart by what EC2 says of the peer, one branch for each row of the table."""
    wait_stop, wait_start = settings.wait_for_instance_stop, settings.wait_for_instance_start
    stopped_at = max(known.stops, default=-math.inf)
    if known.peer_state is None:
        return Decision(WAIT, f'is not restarted for now, as EC2 answered {known.error}: asking again')
    if known.peer_state == 'stopped':
        return Decision(START, 'is stopped: starting it' if known.primary else (
            'is stopped and cannot contest a claim: claiming all once more, then starting it'))
    if known.peer_state == 'stopping':
        if now - known.stopping_at < wait_stop:
            return Decision(WAIT, 'is stopping: waiting until it is stopped')
        return Decision(FORCE, f'has been stopping for {wait_stop:g} s: forcing it')
    if known.peer_state == 'pending':
        return Decision(WAIT, 'is starting: waiting for its answer')
    if known.peer_state != 'running':
        return Decision(WAIT, f'is gone (EC2 calls it {known.peer_state}): this instance serves on alone', LATER)
    if known.answers:
        if known.started_at > stopped_at or now - stopped_at >= wait_stop:
            return Decision(BACK, 'answers again: watching it')
        return Decision(WAIT, 'answers, and is about to stop: waiting until it is stopped')
    if not known.heard and now - known.started_at < wait_start:
        return Decision(WAIT, 'has been started: waiting for its answer')
    if not known.heard and known.checks != 'impaired':
        return Decision(WAIT, f'has not answered yet (checks: {known.checks}): waiting for its answer', LATER)
    recent = sum(now - at < STOPS_REMEMBERED for at in known.stops)
    spacing = min(LONGEST_STOP_SPACING, wait_start * 2 ** max(0, recent - 1))
    if now - stopped_at < spacing:
        return Decision(WAIT, 'was stopped not long ago: waiting before it is stopped once more',
                        min(stopped_at + spacing - now, LATER))
    if not known.has_settled():
        return Decision(WAIT, 'is to be stopped if it stays silent: waiting until the claim has settled',
                        SETTLE_BEFORE_STOP - (known.seen_at - known.claimed_at))
    if known.holders is None:
        return Decision(WAIT, 'is to be stopped, but who holds the route is not known: asking EC2')
    if known.at_peer('rtb-'):
        if now - known.kept_at < wait_stop:
            return Decision(WAIT, f'still holds a table, so it may be alive: waiting {wait_stop:g} s before it is '
                                  'stopped')
    elif SELF not in known.holders.values() and known.checks != 'impaired':
        return Decision(WAIT, 'is silent, but neither holds anything, so EC2 cannot arbitrate: it is stopped only '
                              'if its checks fail', LATER)
    return Decision(STOP, f'stays silent, EC2 calls it running (checks: {known.checks}): stopping it')


# The monitor ----------------------------------------------------------------------------------------------------------

def forwards() -> bool:
    """Tell whether this host forwards packets."""
    with open('/proc/sys/net/ipv4/ip_forward') as file:
        return file.read().strip() == '1'


class Monitor:
    """One monitor's life.  The arguments after `settings` are its only doors to the world outside."""

    def __init__(self, settings: Settings, *, clock: Any = time, ping: Optional[Callable[[str], bool]] = None,
                 metadata: Any = None, connect: Callable[[str], Any] = connect,
                 run_together: Callable[..., Dict[str, Any]] = run_together, forwards: Callable[[], bool] = forwards,
                 chance: Any = random, log: logging.Logger = log) -> None:
        self.settings, self.clock, self.chance, self.log = settings, clock, chance, log
        self.ping, self.metadata = ping or Ping(settings.ping_timeout), metadata or Metadata()
        self.connect, self.run_together, self.forwards = connect, run_together, forwards
        self.troubles: Dict[str, Tuple[float, float, str]] = {}  # what lasts: since, last logged at, words
        self.own_id = self.peer_id = self.region = ''
        self.peer_address: Optional[str] = None    # None: EC2 has not said; '': there is no such instance
        self.allocation_id = ''
        self.rehearsed: Set[str] = set()           # calls of a failover that EC2 has judged
        self.rehearse_at = -math.inf
        self.client: Any = None
        self.known = Situation()
        self.misses = 0                            # in a row
        self.silence = 0                           # the most of them since the peer last answered
        self.replied: Optional[bool] = None        # the last ping: answered, missed, or (None) it told nothing
        self.pinged_at = self.next_ping_at = self.look_at = self.judge_at = -math.inf
        self.step_at = -math.inf                   # a step of a restart that EC2 has refused is not tried before
        self.aside = False                         # the primary leaves all to the peer for a while
        self.split_seen = False                    # by the latest look
        self.attempts = 0                          # in a row, at what a look or a take-over failed to do
        self.left_stopped = False                  # the peer was stopped by this monitor, and is not yet back
        self.said = ''

    # Start

    def run(self) -> None:
        """Find out who this is, then ping and act for ever; raise Refusal if this instance is not of the pair."""
        self.identify()
        self.log.info(f'watching {self.peer_id} from {self.own_id}, the '
                      f'{"primary" if self.known.primary else "secondary"}')
        self.known.starting = self.known.primary
        self.known.claimed_at = self.clock.monotonic()  # an earlier monitor may have claimed, and started the peer
        while True:
            try:
                self.turn()
            except Exception:
                for line in traceback.format_exc().splitlines():
                    self.log.error(line)
                self.clock.sleep(SOON)

    def identify(self) -> None:
        """Ask the metadata service for instance id and region, for as long as it takes."""
        names = ('instance-id', 'placement/region')
        attempts = 0
        while True:
            found = self.run_together({n: functools.partial(self.metadata.get, n) for n in names}, CALL_DEADLINE)
            if not self.lasting('metadata', failures_in(found), 'the metadata service does not tell {}: asking again'):
                break
            attempts += 1
            self.clock.sleep(self.pause(attempts, CLAIM_RETRY))
        self.own_id, self.region = (str(found[n]) for n in names)
        self.known.primary, self.peer_id = place_in_pair(self.settings, self.own_id)

    def rehearse(self) -> None:
        """Make the calls of a failover with DryRun, once each, and log as an error what is not allowed."""
        calls = rehearsal(self.settings, self.own_id, self.peer_id, self.allocation_id)
        results = self.call({name: call for name, call in calls.items() if name not in self.rehearsed})
        for name, result in results.items():
            if code_of(result) in DENIED:
                self.log.error(f'the role of {self.own_id} does not allow {name}: a failover would fail; attach the '
                               'policy in iam_policy.json')
            if has_answered(result) and code_of(result) not in BUSY:
                self.rehearsed.add(name)
        is_complete = self.rehearsed >= calls.keys() and (self.allocation_id or not self.settings.elastic_ip)
        self.rehearse_at = math.inf if is_complete else self.clock.monotonic() + LATER

    # The loop

    def turn(self) -> None:
        """Ping once, then do whatever falls due until the next ping."""
        self.ping_once()
        if self.can_judge():
            self.judge()
        while True:
            if self.clock.monotonic() >= self.look_at:
                self.look()
            now = self.clock.monotonic()
            if now >= self.next_ping_at:
                return
            self.clock.sleep(max(0.001, min(self.next_ping_at, self.look_at) - now))

    def ping_once(self) -> None:
        """Ping the peer, beside the question to EC2 if the next miss may decide something, and note the outcome."""
        if self.clock.monotonic() >= self.judge_at and not self.is_fresh(spare=self.settings.ping_timeout) and (
                self.left_stopped or self.misses >= max(1, self.threshold - 2)):
            self.ask(states=True, meanwhile=self.send_ping)
        else:
            self.send_ping()
        self.next_ping_at = self.clock.monotonic() + (
            self.settings.wait_between_pings if self.replied else 1.0 if self.replied is None else 0.0)
        if not self.replied:
            self.misses = self.misses + 1 if self.replied is False else 0
            self.silence = max(self.silence, self.misses)
            if self.misses == self.threshold:
                self.log.warning(f'{self.peer_id} missed {self.misses} pings in a row: judging it once EC2 answers')
            return
        if not self.known.heard and not self.left_stopped:
            self.log.info(f'{self.peer_id} answers')
        half_done = self.known.taking_over and self.known.moved and self.known.left_to_claim(self.settings)
        self.known.heard, self.known.taking_over, self.known.kept_at, self.aside = True, False, math.inf, False
        if self.silence >= self.settings.num_pings:  # for the primary, too: the peer may have taken over
            self.end_silence()
        if half_done:
            self.split_seen, self.look_at = True, self.clock.monotonic()  # the rest belongs to what has moved
        self.misses = self.silence = 0
        if not self.left_stopped:
            self.judge_at = self.known.asked_at = -math.inf  # the next silence is judged by an answer of its own

    def send_ping(self) -> None:
        """Ping and set `replied`; a ping during which this process was suspended tells nothing."""
        self.pinged_at = self.clock.monotonic()
        timeout = self.settings.ping_timeout
        self.replied, failure = None, ''
        try:
            if self.peer_address:
                self.replied = self.ping(self.peer_address)
            elif self.peer_address == '':
                self.replied = False
                self.clock.sleep(timeout)
        except OwnFault as fault:
            failure = str(fault)
        self.lasting('ping', failure, f'a ping to {self.peer_id} could not leave this host ({{}}): trying again')
        if self.clock.monotonic() - self.pinged_at > timeout + 1.0:
            self.start_over()
            self.replied = self.replied or None
        self.known.answers = bool(self.replied)

    def start_over(self) -> None:
        """Take nothing for granted that was known of a silence: this process was suspended in the middle of it."""
        self.misses, self.known.asked_at, self.known.taking_over = 0, -math.inf, False

    def end_silence(self) -> None:
        """Note that the peer answers again; until the next look nobody knows what has moved meanwhile."""
        self.log.info(f'{self.peer_id} answers again after {self.silence} missed pings: ' + (
            'it is being restarted' if self.left_stopped else
            'it stays as it is, and whoever holds the route serves on (to move it back, restart the monitor of the '
            'primary)'))
        if not self.known.primary:
            self.known.remembered = None  # a restarted primary claims: until the next look nobody knows
        self.said, self.judge_at = '', -math.inf
        self.look_at = min(self.look_at, self.clock.monotonic() + (
            SOON if self.known.primary else LOOK_AFTER_CHANGE))

    @property
    def threshold(self) -> int:
        """Misses in a row that make the peer silent: the primary is in no hurry."""
        return self.settings.num_pings * (2 if self.known.primary else 1)

    def is_fresh(self, spare: float = 0.0) -> bool:
        """Tell whether EC2's latest answer can still serve a decision `spare` seconds from now."""
        lifetime = CALL_DEADLINE + 2 * self.settings.ping_timeout  # a slow answer, then the deciding ping
        return bool(self.clock.monotonic() + spare - self.known.asked_at <= lifetime)

    # EC2

    def call(self, calls: Dict[str, Call], meanwhile: Optional[Callable[[], None]] = None,
             deadline: float = CALL_DEADLINE) -> Dict[str, Any]:
        """Make the calls side by side, each within the deadline, and note whether EC2 answers this monitor."""
        if self.client is None:
            made = self.run_together({'client': lambda: self.connect(self.region)}, CALL_DEADLINE, meanwhile)
            meanwhile = None
            if self.lasting('client', failures_in(made), 'no EC2 client could be made ({}): trying again'):
                return dict.fromkeys(calls, made['client'])
            self.client = made['client']
        asked_at = self.clock.monotonic()
        results = self.run_together({name: functools.partial(call, self.client) for name, call in calls.items()},
                                    deadline, meanwhile)
        if self.clock.monotonic() - asked_at > deadline + self.settings.ping_timeout + 1.0:
            results = dict.fromkeys(results, NoAnswer('this process was suspended meanwhile'))
            self.start_over()
        silent = [r for r in results.values() if not has_answered(r)]
        if silent:
            self.close_connections()
        if any(isinstance(r, (NoCredentialsError, CredentialRetrievalError)) for r in silent):
            self.client = None  # a client that was made without credentials never gets any
        if len(silent) < len(results):
            self.lasting('EC2', '', '')
        elif silent and deadline == CALL_DEADLINE:
            self.lasting('EC2', in_words(silent[0]), 'EC2 does not answer this monitor ({}): it decides nothing')
        return results

    def close_connections(self) -> None:
        """Drop the pooled connections, which a move of the public address kills without a word."""
        if self.client is not None:
            self.client.close()

    def ask(self, states: bool, meanwhile: Optional[Callable[[], None]] = None) -> Dict[str, Any]:
        """Ask EC2 who holds what, for the states of both if wanted, and for what is missing; note and return it."""
        pair, settings, known = (self.own_id, self.peer_id), self.settings, self.known
        questions: Dict[str, Call] = {
            'tables': lambda client: describe_tables(client, settings.route_table_ids, *pair)}
        if settings.elastic_ip:
            questions['address'] = lambda client: describe_address(client, settings.elastic_ip or '', *pair)
        if not self.peer_address:
            questions['peer'] = lambda client: describe_private_address(client, self.peer_id)
        if states:
            questions['states'] = lambda client: describe_states(client, *pair)
        asked_at = known.seen_at = self.clock.monotonic()
        self.close_connections()  # an older one may have died without a FIN
        results = self.call(questions, meanwhile)
        if isinstance(results.get('peer'), str):
            self.peer_address = results['peer']
        if states:
            self.note_states(results['states'], asked_at)
        if isinstance(results.get('address'), tuple):
            self.allocation_id = results['address'][1] or self.allocation_id
        if any(isinstance(results[topic], Exception) for topic in ('tables', 'address') if topic in results):
            known.holders = None
            return results
        known.holders = dict(results['tables'])
        if settings.elastic_ip:
            known.holders[settings.elastic_ip] = results['address'][0]
        for part, holder in known.holders.items():
            if holder == SELF and part in self.troubles:
                self.note_claimed(part)  # though EC2's answer was lost
        known.kept_at = min(known.kept_at, self.clock.monotonic()) if known.peer_serves() else math.inf
        before, known.foreign = known.foreign, {part for part, holder in known.holders.items() if holder == OTHER}
        for part in sorted(known.foreign - before - set(known.left_to_claim(settings))):
            self.log.warning(f'{part} is at something outside the pair: it is left there until the monitor of '
                             'the primary starts')
        return results

    def note_states(self, result: Any, asked_at: float) -> None:
        """Note what EC2 said of both instances, and what follows from that alone."""
        known, now = self.known, self.clock.monotonic()
        known.asked_at = -math.inf
        if not has_answered(result):
            return
        states: Dict[str, Any] = result if isinstance(result, dict) else {}
        known.asked_at, known.received_at = asked_at, now
        known.own_state = states.get(self.own_id, (None, ''))[0]
        known.peer_state, known.checks = states.get(self.peer_id, (None, ''))
        known.error = in_words(result) if isinstance(result, Exception) else 'nothing about it'
        if known.peer_state not in (None, 'running'):
            known.heard = False
        if known.peer_state is not None:
            known.stopping_at = min(known.stopping_at, now) if known.peer_state == 'stopping' else math.inf

    # Look and claim

    def look(self) -> None:
        """Learn what a take-over needs, and rehearse it; see who holds what, and claim what is missing or apart."""
        known, is_first = self.known, self.look_at == -math.inf
        if known.taking_over:
            # Each judgement looks, and claims.  None comes while EC2 does not tell the states, or no ping can leave.
            if self.clock.monotonic() >= self.judge_at + SOON and 'EC2' not in self.troubles and (
                    self.replied is None or not self.is_fresh()):
                self.ask(states=False)
                if not known.has_lost() and (known.moved or self.misses):
                    self.go_on()
            self.look_at = self.clock.monotonic() + (
                SOON if known.left_to_claim(self.settings) else LOOK_AFTER_CHANGE)
            return
        results = self.ask(states=known.starting and not self.is_fresh())
        if self.clock.monotonic() >= self.rehearse_at and any(map(has_answered, results.values())):
            self.rehearse()
        failed = self.lasting('look', failures_in(results), 'EC2 does not tell {}: looking again')
        if known.holders is not None:
            absent = [part for part, holder in known.holders.items() if holder == ABSENT]
            absent += [self.peer_id] if self.peer_address == '' else []
            self.lasting('absent', ' and '.join(absent), 'EC2 does not know {}: looking for it again')
        if is_first:
            known.holders = None  # a primary claims all at its start; who holds is seen after that
        if known.starting and known.has_lost():
            self.log.warning(f'{self.peer_id} has taken back what had been moved: the rest of the claim is given up')
            known.starting = False
        rest = known.left_to_claim(self.settings)
        known.moved -= set(rest)  # an earlier claim of these is no more
        known.starting = known.starting and bool(rest)
        self.attempts = self.attempts + 1 if failed or known.starting else 0
        self.look_at = self.clock.monotonic() + (
            self.pause(self.attempts, SOON if known.starting else OTHER_RETRY) if failed or known.starting else
            LOOK_AFTER_CHANGE if 'absent' in self.troubles or not known.has_settled() else
            LOOK_INTERVAL if self.rehearse_at == math.inf else LATER)
        if known.holders is None and not known.starting:
            return
        if not known.starting:
            found = {holder for holder in (known.holders or {}).values() if holder not in (OTHER, ABSENT)}
            if found in (set(), {SELF}, {PEER}):
                self.split_seen = False
                self.lasting('apart', '', '')
                self.remember(found)
                return
            if SELF not in found:  # what the peer has follows what is here, or two that cannot get the rest contend
                rest = [part for part in rest if part not in known.at_peer()]
            self.look_at = self.clock.monotonic() + LOOK_AFTER_CHANGE
            if self.aside:
                return
            if not known.primary and not self.split_seen:
                self.split_seen = True
                return
        self.split_seen = False
        if not self.may_claim():
            self.look_at = max(self.look_at, self.clock.monotonic() + SOON)
        elif rest:
            if not known.starting:
                self.lasting('apart', ' and '.join(rest), (
                    f'{{}} not at {self.own_id}, unlike the rest, or nowhere: claiming'))
            self.claim(rest)
            if not known.starting and known.left_to_claim(self.settings):
                self.split_seen, self.look_at = True, self.clock.monotonic() + SOON

    def remember(self, found: Set[str]) -> None:
        """Remember who holds.  A primary that hears nothing does not: it must know who held before the silence."""
        holder = next(iter(found), None)
        if holder == SELF or holder == PEER and not (self.known.primary and self.silence):
            if holder != self.known.remembered:
                self.log.info(f'{self.own_id if holder == SELF else self.peer_id} holds tables and address')
            self.known.remembered = holder

    def may_claim(self) -> bool:
        """Tell whether this instance may claim while the peer may be well: EC2 calls it running, and it forwards."""
        if not self.is_fresh():
            self.ask(states=True)
        if not self.is_fresh():
            return False
        own = self.known.own_state or 'running'
        off = '' if self.forwards() else 'net.ipv4.ip_forward is 0'
        return not (
            self.lasting('own state', '' if own == 'running' else own, (
                f'EC2 calls {self.own_id} {{}}: it claims nothing until it runs')) or
            self.lasting('forwarding', off, f'{self.own_id} does not forward ({{}}): it claims nothing until then'))

    def claim(self, parts: List[str]) -> Dict[str, Any]:
        """Claim all these tables at once, then the address; return by part what came back.

        Moving one's own public address can cut the connection on which one waits for the answer, so it comes last.
        """
        address = self.settings.elastic_ip
        results: Dict[str, Any] = {}
        tables: Dict[str, Call] = {part: functools.partial(claim_table, table_id=part, instance_id=self.own_id)
                                   for part in parts if part != address}
        move: Dict[str, Call] = {address: lambda client: client.associate_address(
            AllocationId=self.allocation_id, InstanceId=self.own_id, AllowReassociation=True)
        } if address and address in parts and self.allocation_id else {}
        serves = self.known.taking_over and SELF in (self.known.holders or {}).values()
        for calls, deadline in ((tables, CALL_DEADLINE), (move, MOVE_DEADLINE)):
            failed = bool(results) and all(isinstance(result, Exception) for result in results.values())
            if failed and not (serves and any(map(has_answered, results.values()))):
                break  # without a route the address serves nobody here, and may be of use where it is
            results.update(self.call(calls, deadline=deadline))
            for part in calls:
                result = results[part]
                if isinstance(result, Exception):
                    self.lasting(part, in_words(result), (
                        f'{part} could not be moved to {self.own_id} ({{}}): trying again' if has_answered(result) else
                        f'{part}: the answer to its move to {self.own_id} did not come ({{}}): asking EC2 where it is'))
                else:
                    self.note_claimed(part)
        self.close_connections()
        if not self.known.left_to_claim(self.settings):
            self.known.starting, self.known.remembered = False, SELF
        if not self.known.starting:
            self.look_at = self.clock.monotonic() + LOOK_AFTER_CHANGE
        return results

    def note_claimed(self, part: str) -> None:
        self.log.info(f'{part} is at {self.own_id} now')
        self.troubles.pop(part, None)
        self.known.moved.add(part)
        self.known.claimed_at = self.clock.monotonic()

    # Judge and act

    def can_judge(self) -> bool:
        """Tell whether EC2 has answered and, unless the peer answers, a ping sent after that was missed."""
        if self.clock.monotonic() < self.judge_at or not self.is_fresh() or self.replied is None:
            return False
        if self.replied:
            return self.left_stopped
        return self.misses >= self.threshold and self.known.received_at <= self.pinged_at

    def judge(self) -> None:
        """Decide what to do about the peer, say so when it is news, and do it."""
        known, now = self.known, self.clock.monotonic()
        what, why, again = decide(known, self.settings, now)
        self.judge_at = now + again
        if why != self.said:
            self.said = why
            self.log.log(logging.INFO if what == BACK else logging.WARNING, f'{self.peer_id} {why}')
        if what == TAKE_OVER:
            known.taking_over, known.moved, known.kept_at, self.attempts = True, set(), math.inf, 0
            known.starting = False
            if not self.forwards():
                self.log.warning(f'{self.own_id} does not forward (net.ipv4.ip_forward is 0), and takes over all the '
                                 'same')
        self.aside = what == ASIDE
        if what == NOTHING:
            known.taking_over = False
        elif what == GIVE_UP:
            known.taking_over, known.remembered, self.misses = False, SELF, 0  # a primary will stand aside
        elif what == BACK:
            self.left_stopped = False
        elif what in (STOP, FORCE) and now >= self.step_at:
            self.stop(force=what == FORCE)
        elif what == START and now >= self.step_at:
            self.start()
        elif known.taking_over:
            self.go_on()
        if not known.left_to_claim(self.settings):
            self.judge_at = max(self.judge_at, self.step_at)
        known.asked_at = -math.inf  # each step asks for itself

    def go_on(self) -> None:
        """Claim what is left of a take-over; what EC2 refuses is tried again at once, one time, then by judgements."""
        known = self.known
        rest = known.left_to_claim(self.settings)
        if rest:
            self.attempts += 1
            results = self.claim(rest)
            if self.attempts == 1 and any(map(code_of, results.values())):  # at once, this one time
                self.claim([part for part in rest if part not in results or code_of(results[part])])
            if not known.moved and not any(map(has_answered, results.values())):
                known.taking_over = False  # cut off meanwhile: whether the peer is dead must be judged anew
        if known.left_to_claim(self.settings):
            self.judge_at = min(self.judge_at, self.clock.monotonic() + self.pause(self.attempts, CLAIM_RETRY))

    def stop(self, force: bool) -> None:
        """Stop the peer; whether the answer came or not, it may be stopping now."""
        result = self.call({'stopped': lambda client: client.stop_instances(
            InstanceIds=[self.peer_id], Force=force)})
        now = self.clock.monotonic()
        if not self.failed(result):
            self.log.warning(f'{self.peer_id} is being stopped{" by force" if force else ""}: starting it once it is '
                             'stopped')
        if code_of(result['stopped']):
            self.step_at = now + self.chance.uniform(SOON, OTHER_RETRY)
        else:
            self.known.stops += [] if force else [now]
            self.known.stopping_at = now
            self.left_stopped = True

    def start(self) -> None:
        """Start the peer; the secondary claims all once more before, as a stopped peer cannot contest it."""
        known = self.known
        if not known.primary:
            known.taking_over, known.moved = True, set()
            self.claim([part for part in self.settings.parts
                        if part not in known.foreign and (known.holders or {}).get(part) != ABSENT])
        if not self.is_fresh(spare=-CALL_DEADLINE - MOVE_DEADLINE):
            return  # it took longer than a claim can take: this process was suspended, and EC2 is asked again
        result = self.call({'started': lambda client: client.start_instances(InstanceIds=[self.peer_id])})
        now = self.clock.monotonic()
        self.judge_at = now + SOON
        if code_of(result['started']):
            self.step_at = now + LATER
        if not self.failed(result):
            known.started_at = now
            self.log.info(f'{self.peer_id} is being started: waiting for its answer')

    def failed(self, results: Dict[str, Any]) -> bool:
        return self.lasting('restart', failures_in(results), (
            f'{self.peer_id} could not be {{}}: asking EC2 about it again'))

    # Words and pauses

    def pause(self, attempts: int, longest: float) -> float:
        """Return the seconds until the next attempt: the first at once, then full jitter."""
        return float(self.chance.uniform(0.0, min(longest, 0.25 * 2.0 ** min(attempts, 16)))) if attempts > 1 else 0.0

    def lasting(self, about: str, failure: str, words: str) -> bool:
        """Log a failure when it begins, when it changes, once a minute and when it ends; tell whether it lasts.

        `failure` says what came back, and stands in the braces of `words`; it is '' where nothing failed.
        """
        now = self.clock.monotonic()
        since, logged_at, logged = self.troubles.pop(about, (now, -math.inf, ''))
        if failure:
            words = words.format(failure)
            if words != logged or now - logged_at >= 60.0:
                self.log.warning(words)
                logged_at = now
            self.troubles[about] = (since, logged_at, words)
        elif logged:
            self.log.info(f'over after {now - since:.0f} s: {logged.rpartition(": ")[0]}')
        return bool(failure)


# The check ------------------------------------------------------------------------------------------------------------

FINE, WARN, FAIL, UNKNOWN = 'ok', 'warn', 'FAIL', 'unknown'
PROFILE, TAG = 'NAT_Monitor', 'Key=nat_monitor,Value=true'  # what iam_policy.json asks for
OWN_WORK = 0.2           # s of an outage that neither waiting nor EC2 takes
CLOCK_TOLERANCE = 300.0  # s, EC2's: beyond that it refuses every call
AGAIN = 'nat_monitor.py --check  # again, when the other lines are mended and EC2 answers'
LIST_RULES = 'nft list ruleset; iptables-save'
MASQUERADE = ("nft 'table ip nat { chain postrouting { type nat hook postrouting priority 100; "
              "oifname != \"lo\" masquerade; }; }'")
KEY_ERRORS = ('Client.InternalError', 'Client.InvalidKMSKey')  # a stopped instance's state reason
CRON_FILES = ('etc/cron.d/*', 'etc/crontab', 'var/spool/cron/crontabs/root', 'var/spool/cron/root')
CRON_JOB = (r'[ \t]*@reboot[ \t]+{user}(/\S*/nat_monitor\.py)'
            r'(?:[ \t]*[\d&]?[<>]{{1,2}}[ \t]*(?:&\d|[^\s&<>|;()]+))*[ \t]*\n')
CRON_WORD = r'\s*(?:@\w+\s+|(?:\S+\s+){5})(\S+)'  # the first one behind the times
UNITS = [f'{directory}/systemd/system/*.service' for directory in ('etc', 'lib', 'usr/lib')]
STARTS_NOTHING = (r'(?:\b(?:pkill|killall|pgrep|pidof|test -\w)|\[ -\w)\s[^;&|]*?nat_monitor\.py'
                  r'|nat_monitor\.py\s+(?:--check|--help|-h)\b')


def longest_outage(settings: Settings, pings: int, call: float) -> float:
    """Return the seconds from a crash just after an answer to the new route.

    One EC2 call takes `call` seconds.  EC2 is asked beside the last ping but one, though never
    before a miss, so there are three pings at least; a call that takes longer than this ping holds
    up the deciding one.
    """
    misses = (max(pings, 3) - 1) * settings.ping_timeout + max(settings.ping_timeout, call)
    return settings.wait_between_pings + misses + call + OWN_WORK


def clock_skew(error: BaseException) -> float:
    """Return by how many seconds this clock is ahead of EC2's when it answered, 0.0 if unknown."""
    answer = getattr(error, 'response', {}).get('ResponseMetadata', {})
    try:
        date = email.utils.parsedate_to_datetime(answer.get('HTTPHeaders', {})['date'])
    except (LookupError, TypeError, ValueError, AttributeError):
        return 0.0
    return time.time() - date.replace(tzinfo=date.tzinfo or datetime.timezone.utc).timestamp()


def only_root_writes(path: str) -> bool:
    return os.stat(path).st_uid == 0 and not os.stat(path).st_mode & 0o022


def directories_above(path: str) -> List[str]:
    """Return all directories on the way to a file, / first."""
    above = os.path.dirname(path)
    return [] if above == path else [*directories_above(above), above]


def starts_monitor(line: str, with_user: bool) -> Optional[bool]:
    """Tell whether a line of a crontab starts the monitor at boot; None: it may, nobody can tell.

    A line of the system's crontabs has the user behind the times.
    """
    if not line.endswith('\n') or line.endswith('\r\n') or line.lstrip().startswith('#'):
        return False  # cron skips a line without end, and the shell minds a carriage return
    job = re.fullmatch(CRON_JOB.format(user=r'root[ \t]+' if with_user else ''), line)
    if job:
        return os.access(job[1], os.X_OK)
    found = re.match(CRON_WORD, line)
    word = found[1] if found else ''
    if with_user and ('/' in word or word != 'root' and 'sudo' not in line):
        return False
    return None if mentions_start(line) and (with_user or word != 'root') else False


def mentions_start(line: str) -> bool:
    return bool(re.search(r'nat_monitor\.py(?![\w.~-])', re.sub(STARTS_NOTHING, '', line)))


def has_profile(instance: Dict[str, Any]) -> bool:
    arn = str(instance.get('IamInstanceProfile', {}).get('Arn', ''))
    return arn.endswith(f':instance-profile/{PROFILE}')


def by_id(call: Callable[..., Any], key: str, name: str, *values: str) -> Dict[str, Any]:
    """Return by id the list that a Describe call answers.

    By a filter, as one unknown id would fail the whole call.
    """
    answer = call(Filters=[{'Name': name, 'Values': list(values)}])
    found = next(value for value in answer.values() if isinstance(value, list))
    return {one[key]: one for group in found for one in group.get('Instances', [group])}


class Check:
    """One run of --check: look at all that a failover needs, a line for each thing, change nothing.

    The arguments are its doors to the world outside; `root` is the directory that holds etc, proc,
    run and var.
    """

    def __init__(self, *, settings_file: str = SETTINGS_FILE, metadata: Any = None,
                 ping: Any = None, connect: Callable[[str], Any] = connect,
                 root: str = '/') -> None:
        self.settings_file, self.metadata, self.ping = settings_file, metadata or Metadata(), ping
        self.connect, self.root = connect, root
        self.settings: Any = None
        self.client: Any = None
        self.own_id = self.peer_id = self.region = ''
        self.role, self.edit, self.exit_code = PROFILE, f'nano {settings_file}', 0
        self.got: Dict[str, Any] = {}                # by EC2 call: what it returned or raised
        self.things: Dict[str, Dict[str, Any]] = {}  # by id: what EC2 describes
        self.networks: Set[Network] = set()  # of the private subnets

    def run(self) -> int:
        """Check everything; return the exit code."""
        for what, check in (('settings', self.check_settings), ('file', self.check_files),
                            ('metadata', self.check_metadata), ('this instance', self.check_place),
                            ('EC2', self.check_ec2), ('masquerading', self.check_nat),
                            ('cron job', self.check_cron), ('monitor', self.check_monitor)):
            self.attempt(what, self.own_id, check)
        return self.exit_code

    def attempt(self, what: str, about: str, check: Callable[..., None], *arguments: Any) -> None:
        """Make a check; if something is wrong or missing without which it cannot go on, say so."""
        try:
            check(*arguments)
        except Refusal as refusal:
            self.exit_code = max(self.exit_code, refusal.exit_code)
            for fault in refusal.faults:
                self.say(False, what, about, fault, AGAIN if what == 'EC2' else self.edit)
        except OwnFault as fault:
            self.say(False, what, about, in_words(fault), 'ip route')
        except Exception as error:
            remedy = self.allow if code_of(error) in DENIED else AGAIN
            self.say(False, what, about, in_words(error), remedy, UNKNOWN)

    def say(self, fine: bool, what: str, about: str, found: str, remedy: str = '',
            otherwise: str = FAIL) -> None:
        """Write a line: the verdict, what was looked at, its id, what was found, and the remedy."""
        verdict = FINE if fine else otherwise
        self.exit_code = max(self.exit_code, int(verdict == FAIL))
        log.info(f'{verdict:8}{what:22}{about:23}{found}{"" if fine else f"; run: {remedy}"}')

    # This host

    def check_settings(self) -> None:
        self.settings = read_settings(self.settings_file)
        self.say(True, 'settings', '', f'{self.settings_file} is valid')

    def check_files(self) -> None:
        """See that nobody but root can write what runs as root, or put something in its place.

        Higher up, a directory such as /tmp will do, where others may not rename what is root's.
        """
        files = [resolve(path) for path in (__file__, self.settings_file)
                 for resolve in (os.path.abspath, os.path.realpath)]
        above = [directory for path in files for directory in directories_above(path)]
        beside = {os.path.dirname(path) for path in files}
        for path in filter(os.path.exists, dict.fromkeys([*above, *files])):
            owner, mode = os.stat(path).st_uid, os.stat(path).st_mode & 0o7777
            shared = mode & 0o1000 and owner == 0 and path not in beside
            self.say(bool(shared) or only_root_writes(path), 'file', '',
                     f'{path} belongs to user {owner}, mode {mode:o}',
                     f'chown root:root {path} && chmod go-w {path}')

    def check_metadata(self) -> None:
        items = ('instance-id', 'placement/region', 'iam/security-credentials/')
        found = run_together({item: functools.partial(self.metadata.get, item) for item in items},
                             CALL_DEADLINE)
        role, failed = found.pop(items[2]), failures_in(found)
        self.own_id, self.region = ('', '') if failed else found.values()
        self.say(not failed, 'metadata', '',
                 failed or f'IMDSv2 answers: this is {self.own_id} in {self.region}',
                 'aws ec2 modify-instance-metadata-options --http-endpoint enabled '
                 '--http-tokens required --instance-id <this instance>')
        if not failed:
            self.role = role if role and isinstance(role, str) else PROFILE
            self.say(role == self.role, 'role', self.own_id, str(role),
                     self.give_profile(self.own_id))

    def check_place(self) -> None:
        if self.settings and self.own_id:
            primary, self.peer_id = place_in_pair(self.settings, self.own_id)
            self.say(True, 'this instance', self.own_id,
                     f'is the {"primary" if primary else "secondary"}')

    def check_nat(self) -> None:
        """Tell whether this host forwards and masquerades what comes from the private subnets."""
        host = look_at_host(self.root)
        networks: List[Any] = sorted(self.networks) or [None]
        told = [host.forwarding(network) for network in networks]
        sure, words = min(told, key=lambda one: (False, None, True).index(one[0]))
        remedy = LIST_RULES if host.forwards == '1' else (
            'echo net.ipv4.ip_forward=1 > /etc/sysctl.d/90-nat.conf && sysctl --system')
        self.say(bool(sure), 'forwarding', '', words, remedy, FAIL if sure is False else UNKNOWN)
        for network in networks:
            sure, words = host.masquerading(network)
            self.say(bool(sure), 'masquerading', str(network or ''), words,
                     *((MASQUERADE, FAIL) if sure is False else (LIST_RULES, UNKNOWN)))

    def check_cron(self) -> None:
        """Look for the job that starts the monitor at boot, in a file that cron accepts."""
        jobs: List[str] = []
        others: List[str] = []
        for path in self.files(*CRON_FILES):
            if not (only_root_writes(path) and not os.stat(path).st_mode & 0o111
                    and re.fullmatch(r'[A-Za-z0-9_-]+', os.path.basename(path))):
                continue
            for line in self.read(path).splitlines(keepends=True):
                starts = starts_monitor(line, '/etc/' in path)
                if starts is not False:
                    (jobs if starts else others).append(f'{path}: {line.strip()}')
        for path in self.files(*UNITS):
            others += [f'{path}: {line}' for line in self.read(path).splitlines()
                       if line.startswith('Exec') and mentions_start(line)]
        install = ('install -m 755 nat_monitor.py /usr/local/sbin/ && '
                   'install -m 644 nat_monitor.cron /etc/cron.d/nat_monitor')
        if others and not jobs:
            self.say(False, 'cron job', '', f'{min(others)} (whether this starts the monitor at '
                     'boot cannot be told)', f'{install}  # and remove that', UNKNOWN)
        else:
            none = 'none that cron accepts starts the monitor at boot'
            self.say(bool(jobs), 'cron job', '', min(jobs, default=none), install)

    def check_monitor(self) -> None:
        pid = self.read(LOCK_FILE[1:]).strip()
        runs = self.read(f'proc/{pid}/comm').strip() == 'nat_monitor.py'
        if runs and is_suspended(pid):
            self.say(False, 'monitor', '', f'pid {pid} is suspended', f'kill -CONT {pid}')
        else:
            program = os.path.realpath(__file__)
            self.say(runs, 'monitor', '', f'runs with pid {pid}' if runs else 'does not run',
                     f"echo '{program} >> /var/log/nat_monitor.log 2>&1' | at now", WARN)

    def files(self, *patterns: str) -> List[str]:
        return [path for each in patterns for path in glob.glob(os.path.join(self.root, each))]

    def read(self, path: str) -> str:
        return text_of(os.path.join(self.root, path))

    # What the policy asks for

    @property
    def allow(self) -> str:
        return (f'aws iam put-role-policy --role-name {self.role} --policy-name {PROFILE} '
                '--policy-document file://iam_policy.json')

    def give_profile(self, i: str) -> str:
        profile = f'--iam-instance-profile Name={PROFILE}'
        if 'IamInstanceProfile' not in self.things.get(i, {}):
            return f'aws ec2 associate-iam-instance-profile {profile} --instance-id {i}'
        return (f'aws ec2 replace-iam-instance-profile-association {profile} --association-id '
                '$(aws ec2 describe-iam-instance-profile-associations '
                f'--filters Name=instance-id,Values={i} --output text '
                '--query "IamInstanceProfileAssociations[0].AssociationId")')

    def check_permission(self, name: str) -> None:
        (action, on, about), result = name.partition(' on '), self.got[name]
        denied = code_of(result) in DENIED
        if isinstance(result, Exception) and not denied and code_of(result) != 'DryRunOperation':
            raise result
        self.say(not denied, 'permission', action, f'{"not " if denied else ""}allowed{on}{about}',
                 self.permit(action, about))

    def permit(self, action: str, about: str) -> str:
        """Return the command that gives the profile or the tags that the policy asks for.

        Where nothing of these is missing, it is the policy that does not allow it.
        """
        thing, own = self.things.get(about, {}), self.things.get(self.own_id, {})
        if action in ('StopInstances', 'StartInstances') and thing and not has_profile(thing):
            return self.give_profile(about)
        tagged = any(f'Key={tag["Key"]},Value={tag["Value"]}' == TAG
                     for tag in thing.get('Tags', []))
        ids = [] if tagged or 'RouteTableId' not in thing else [about]
        if action == 'AssociateAddress':  # EC2 has not told whether the interface has the tag
            ids = [thing['AllocationId']]
            ids += [card['NetworkInterfaceId'] for card in own.get('NetworkInterfaces', [])]
        tags = [f'aws ec2 create-tags --resources {" ".join(ids)} --tags {TAG}'] * bool(ids)
        return ' && '.join(tags + [self.allow] * (tagged or not ids))

    # EC2

    def check_ec2(self) -> None:
        """Ask EC2 for all that a failover is about, rehearse one, and tell of each thing."""
        settings, pair = self.settings, (self.own_id, self.peer_id)
        if not self.peer_id:
            raise NoAnswer('it is not asked without valid settings, instance id and region')
        address, tables = settings.elastic_ip, settings.route_table_ids
        self.client = ec2 = self.connect(self.region)
        calls: Dict[str, Callable[[], Any]] = {
            'DescribeInstances': lambda: by_id(
                ec2.describe_instances, 'InstanceId', 'instance-id', *pair),
            'DescribeInstanceStatus': lambda: describe_states(ec2, *pair),
            'DescribeRouteTables': lambda: by_id(
                ec2.describe_route_tables, 'RouteTableId', 'route-table-id', *tables)}
        if address:
            calls['DescribeAddresses'] = lambda: by_id(
                ec2.describe_addresses, 'PublicIp', 'public-ip', address)
        self.got = run_together(calls, CALL_DEADLINE)
        self.things = {i: thing for found in self.got.values() if isinstance(found, dict)
                       for i, thing in found.items() if isinstance(thing, dict)}
        allocation = self.things.get(address, {}).get('AllocationId', '')
        rehearsed = rehearsal(settings, *pair, allocation).items()
        self.got.update(run_together(
            {name: functools.partial(call, ec2) for name, call in rehearsed}, CALL_DEADLINE))
        self.check_clock()
        for name in self.got:
            self.attempt('permission', name.split()[0], self.check_permission, name)
        if address and address not in self.things:
            self.say(False, 'permission', 'AssociateAddress', f'needs {address}, see there',
                     AGAIN, UNKNOWN)
        for what, ids, check in (('instance', pair, self.check_instance),
                                 ('route table', tables, self.check_table),
                                 ('Elastic IP', settings.parts[len(tables):], self.check_address)):
            for i in ids:
                self.attempt(what, i, check, i)
        self.attempt('ping', self.peer_id, self.check_ping)
        self.attempt('longest outage', '', self.check_speed)

    def check_clock(self) -> None:
        """Tell if this clock is so far off that EC2 refuses what is signed by it."""
        errors = [one for one in self.got.values() if isinstance(one, ClientError)]
        skew, error = max(((clock_skew(one), one) for one in errors), default=(0.0, None),
                          key=lambda each: abs(each[0]))
        if error and abs(skew) > CLOCK_TOLERANCE:
            self.say(False, 'clock', self.own_id, f'{abs(skew):.0f} s '
                     f'{"ahead of" if skew > 0 else "behind"} EC2, which says {in_words(error)}',
                     'systemctl enable --now chrony; chronyc makestep  # package chrony')

    def find(self, call: str, i: str) -> Any:
        """Return what a call told of a thing; raise what it raised, or Refusal if it is unknown."""
        found = self.got[call]
        if isinstance(found, Exception):
            raise found
        if i not in found:
            look = f'aws ec2 {botocore.xform_name(call, "-")}'
            raise Refusal(f'not found in {self.region}, see: {look}', exit_code=1)
        return found[i]

    def check_instance(self, i: str) -> None:
        """Tell of one of the pair whether it can NAT, and be stopped and started."""
        one = self.find('DescribeInstances', i)
        self.check_state(i, one)
        on, public = one.get('SourceDestCheck', True), one.get('PublicIpAddress')
        self.say(not on, 'source/dest. check', i, 'on' if on else 'off',
                 f'aws ec2 modify-instance-attribute --instance-id {i} --no-source-dest-check')
        cards = {card['NetworkInterfaceId']: card['Attachment']['AttachmentId']
                 for card in one['NetworkInterfaces']}
        last = [*cards.values(), ''][len(cards) - 1]
        self.say(len(cards) == 1, 'network interface', i, ', '.join(cards) or 'none',
                 f'aws ec2 detach-network-interface --attachment-id {last}')
        self.say(bool(public), 'public address', i,
                 public or 'none, so the VPC needs an endpoint for EC2',
                 'aws ec2 modify-network-interface-attribute --associate-public-ip-address '
                 f'--network-interface-id {min(cards, default="")}',
                 WARN if self.settings.elastic_ip else FAIL)
        self.say(has_profile(one), 'instance profile', i,
                 one.get('IamInstanceProfile', {}).get('Arn', 'none'), self.give_profile(i))
        tags = {tag['Key']: tag['Value'] for tag in one.get('Tags', [])}
        group = tags.get('aws:autoscaling:groupName', 'none')
        self.say(group == 'none', 'Auto Scaling group', i, group,
                 f'aws autoscaling detach-instances --instance-ids {i} '
                 f'--auto-scaling-group-name {group} --should-decrement-desired-capacity')
        self.attempt('can be stopped', i, self.check_stop, one)

    def check_state(self, i: str, one: Dict[str, Any]) -> None:
        """Tell EC2's state of an instance, and what kept a stopped one from starting."""
        state, reason = one['State']['Name'], one.get('StateReason', {})
        remedy = f'aws ec2 start-instances --instance-ids {i}'
        if state == 'stopped' and str(reason.get('Code', '')).startswith(KEY_ERRORS):
            state += (f' ({reason.get("Message") or reason["Code"]}): if its disk is encrypted '
                      'with a key of yours, the role needs kms:CreateGrant: README.adoc says how')
            remedy += '  # once the role may use the key'
        self.say(state == 'running', 'state', i, state, remedy)

    def check_stop(self, one: Dict[str, Any]) -> None:
        """Tell whether EC2 would stop and start an instance.

        Only this asks for what no failover needs.
        """
        i, spot = one['InstanceId'], one.get('SpotInstanceRequestId')
        request = self.client.describe_spot_instance_requests(SpotInstanceRequestIds=[spot])[
            'SpotInstanceRequests'][0] if spot else {}
        protected = self.client.describe_instance_attribute(
            InstanceId=i, Attribute='disableApiStop')['DisableApiStop']['Value']
        one_time = request.get('Type', 'persistent') != 'persistent'
        fault = ('no, its root device is not in EBS' if one.get('RootDeviceType') != 'ebs' else
                 'no, it is a one-time Spot instance' if one_time else
                 'no, it has stop protection' if protected else '')
        remedy = f'aws ec2 describe-instances --instance-ids {i}  # and launch another one'
        if 'protection' in fault:
            remedy = f'aws ec2 modify-instance-attribute --instance-id {i} --no-disable-api-stop'
        self.say(not fault, 'can be stopped', i,
                 fault or 'yes: root in EBS, no one-time Spot, no stop protection', remedy)

    def check_table(self, table_id: str) -> None:
        """Tell of a table what a claim would replace, and whom it serves."""
        table = self.find('DescribeRouteTables', table_id)
        self.say_holder('default route', table_id, default_route(table),
                        f'describe-route-tables --route-table-ids {table_id}')
        self.find('DescribeInstances', self.own_id)
        pair = [self.things[i] for i in (self.own_id, self.peer_id) if i in self.things]
        vpcs, own = ({one[key] for one in pair if one.get(key)} for key in ('VpcId', 'SubnetId'))
        self.say(vpcs == {table['VpcId']}, 'route table', table_id,
                 f'in {table["VpcId"]}, the pair in {" and ".join(vpcs)}', self.edit)
        subnets = {link['SubnetId'] for link in table['Associations'] if link.get('SubnetId')}
        served = set(subnets)
        if any(link.get('Main') for link in table['Associations']):
            others = by_id(self.client.describe_route_tables, 'RouteTableId',
                           'association.subnet-id', *own).values()
            lone = own - {link.get('SubnetId') for one in others for link in one['Associations']}
            served |= {'those without a table of their own', *lone}
        mine, remedy = min(served & own, default=''), 'aws ec2 associate-route-table'
        if mine:
            found = f"{mine} is the pair's own: it would route to itself"
            remedy += f' --route-table-id <that of the internet gateway> --subnet-id {mine}'
        else:
            found = ', '.join(sorted(served)) or 'none'
            remedy += f' --route-table-id {table_id} --subnet-id <private subnet>'
        self.say(bool(served) and not mine, 'subnets', table_id, found, remedy)
        if subnets:
            self.attempt('masquerading', table_id, self.learn_networks, subnets)

    def learn_networks(self, subnets: Set[str]) -> None:
        """Ask EC2 for the networks of private subnets; only this check needs them."""
        found = by_id(self.client.describe_subnets, 'SubnetId', 'subnet-id', *subnets)
        self.networks |= {Network(one['CidrBlock']) for one in found.values()}

    def check_address(self, address: str) -> None:
        self.say_holder('Elastic IP', address, self.find('DescribeAddresses', address),
                        f'describe-addresses --public-ips {address}')

    def say_holder(self, what: str, about: str, held: Dict[str, Any], look: str) -> None:
        """Tell who holds a table or the address.

        What is outside the pair is somebody's choice, or a mistake.
        """
        keys = ('InstanceId', 'NatGatewayId', 'GatewayId', 'TransitGatewayId', 'NetworkInterfaceId',
                'AssociationId')
        unnamed = str(held) if 'DestinationCidrBlock' in held else 'nobody'  # of another kind
        holder = next((held[key] for key in keys if held.get(key)), unnamed)
        who = {self.own_id: 'this instance', self.peer_id: 'the peer',
               'nobody': 'until the primary claims it'}.get(holder, 'outside the pair')
        lost = ', a blackhole' if held.get('State') == 'blackhole' else ''
        self.say(who != 'outside the pair' and not lost, what, about, f'at {holder}, {who}{lost}',
                 f"aws ec2 {look}  # the primary's monitor replaces this when it starts", WARN)

    def check_ping(self) -> None:
        """Ping the peer as often as makes it silent."""
        peer, own = (self.things.get(i, {}) for i in (self.peer_id, self.own_id))
        address, times, wanted = peer.get('PrivateIpAddress'), [], self.settings.num_pings
        if not address:
            raise NoAnswer('it needs its private address from EC2')
        ping, remedy = self.ping or Ping(self.settings.ping_timeout), f'ping -c 20 {address}'
        for _ in range(wanted):
            started_at = time.monotonic()
            if ping(address):
                times.append(f'{(time.monotonic() - started_at) * 1000:.1f} ms')
        found = f'{address} answers {len(times)} of {wanted}'
        found += f'{" in " if times else ""}{", ".join(times)}'
        if not times and peer['State']['Name'] == 'running':
            its, ours = ([group['GroupId'] for card in one.get('NetworkInterfaces', [])
                          for group in card['Groups']] or ['<security group>']
                         for one in (peer, own))
            found += (', but EC2 calls it running: look at its security groups '
                      f'{", ".join(its)}, here {", ".join(ours)}')
            remedy = ('aws ec2 authorize-security-group-ingress --group-id '
                      f"{its[0]} --ip-permissions 'IpProtocol=icmp,FromPort=8,ToPort=-1,"
                      f"UserIdGroupPairs=[{{GroupId={ours[0]}}}]'")
        self.say(len(times) == wanted, 'ping', self.peer_id, found, remedy)

    def check_speed(self) -> None:
        self.find('DescribeInstanceStatus', self.own_id)  # a call that fails is not worth its time
        started_at = time.monotonic()
        describe_states(self.client, self.own_id)
        call, n = time.monotonic() - started_at, self.settings.num_pings
        primary, secondary = (longest_outage(self.settings, pings, call) for pings in (n, 2 * n))
        self.say(call < self.settings.ping_timeout, 'longest outage', '',
                 f'{primary:.1f} s when the primary dies, {secondary:.1f} s when the secondary '
                 f'dies while it serves; one EC2 call takes {call:.2f} s',
                 f'{self.edit}  # EC2 answers more slowly than PING_TIMEOUT', WARN)


# The program ----------------------------------------------------------------------------------------------------------

class LineHandler(logging.Handler):
    """Write each record to standard output as one line at once; a line that cannot be written is dropped."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            output = sys.stdout.fileno()
            if select.select([], [output], [], 0.0)[1]:  # a full pipe or a held terminal would block
                os.write(output, (self.format(record) + '\n').encode(errors='replace'))
        except (OSError, ValueError, AttributeError):  # disk full, closed pipe; there is no standard output
            pass


def start_log(form: str = '%(asctime)s %(levelname)s %(message)s') -> None:
    handler = LineHandler()
    handler.setFormatter(logging.Formatter(form, '%Y-%m-%dT%H:%M:%SZ'))
    handler.formatter.converter = time.gmtime  # type: ignore[union-attr]
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    logging.getLogger().addHandler(logging.NullHandler())  # boto3's own lines


def take_lock(path: str = LOCK_FILE) -> int:
    """Take the lock for the life of this process and return its descriptor; raise Refusal if a monitor has it."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Refusal(f'{path}: {error.strerror}; it must be a file of root\'s, or not exist')
    os.fchmod(lock, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(lock, 20).decode(errors='replace').strip() or 'unknown'
        raise Refusal(f'a monitor already runs with pid {pid}{" (suspended)" if is_suspended(pid) else ""}: '
                      'this one ends', exit_code=1)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f'{os.getpid()}\n'.encode(), 0)
    return lock


def is_suspended(pid: str) -> bool:
    """Tell whether the process is stopped by a signal (state T of /proc/PID/stat)."""
    with contextlib.suppress(OSError), open(f'/proc/{pid}/stat') as file:
        return file.read().rpartition(')')[2].split()[0] in ('T', 't')
    return False


def write_proc(path: str, text: str) -> None:
    """Write to /proc/self, best effort: it matters little where it is not allowed."""
    with contextlib.suppress(OSError), open(path, 'w') as file:
        file.write(text)


def main(argv: Optional[List[str]] = None) -> int:
    """Run the monitor until a signal ends it; return the exit code of what keeps it from running."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments in (['--help'], ['-h']):
        print((__doc__ or '').strip())
        return 0
    check = arguments == ['--check']
    start_log(*['%(message)s'] if check else [])
    monitor: Optional[Monitor] = None

    def end(number: int, _: Any) -> None:
        left = f'; {monitor.peer_id} was stopped by this monitor and is not back yet: see to it' if (
            monitor and monitor.left_stopped) else ''
        log.info(f'ended by {signal.Signals(number).name}{left}')
        os._exit(1 if check else 0)  # at once, also with a call under way in a thread

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    write_proc('/proc/self/comm', 'nat_monitor.py')  # for killall, whatever interpreter started this
    try:
        if arguments and not check:
            raise Refusal(f'the arguments are {" ".join(arguments)!r}, but must be none, --check or --help')
        if MISSING_PACKAGE:
            raise Refusal(f'the Python package {MISSING_PACKAGE} is missing: install boto3 and requests for '
                          f'{sys.executable}')
        if os.geteuid() != 0:
            raise Refusal(f'the user is {os.geteuid()}, but must be root (0), who alone may ping through a raw socket')
        if check:
            return Check().run()
        settings = read_settings()
        lock = take_lock()
        write_proc('/proc/self/oom_score_adj', '-1000')  # the kernel takes this process last
        monitor = Monitor(settings)
        monitor.run()
        os.close(lock)
    except Refusal as refusal:
        for fault in refusal.faults:
            log.error(fault)
        return refusal.exit_code
    return 0


if __name__ == '__main__':
    sys.exit(main())
