"""Two NAT instances in moto's EC2 and the host of one of them, for tests that need no packets.

DryRun is answered as EC2 does, which moto does not do for routes, and every call is noted.
"""
from __future__ import annotations

import contextlib
import functools
import os
import socket
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

import boto3
import pytest
from botocore.awsrequest import AWSResponse, HeadersDict
from botocore.exceptions import BotoCoreError
from moto.ec2.models import ec2_backends

import nat_monitor
from tests.lab.ec2 import ACCOUNT, NetworkInterface
from tests.lab.metadata import Metadata, credentials

__all__ = ['ACCOUNT', 'credentials']  # and what is defined here
REGION = 'eu-west-1'
os.environ['MOTO_EC2_LOAD_DEFAULT_AMIS'] = 'false'  # nobody asks for one of the 1,300
AS_ROOT = os.geteuid() == 0
ROUTES = """Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT
ens5 00000000 0100000A 0003 0 0 100 00000000 0 0 0
ens5 0000000A 00000000 0001 0 0 100 00FFFFFF 0 0 0
docker0 000011AC 00000000 0001 0 0 0 0000FFFF 0 0 0
"""  # of /proc/net/route, as a little-endian machine shows it

MASQUERADE = 'table ip nat {\n\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n' \
             '\t\toifname "ens5" counter packets 1 bytes 60 masquerade\n\t}\n}\n'  # as nft lists it


class Line(NamedTuple):
    verdict: str
    what: str
    about: str
    words: str


def read_lines(text: str) -> List[Line]:
    return [Line(line[:8].strip(), line[8:30].strip(), line[30:53].strip(), line[53:]) for line in text.splitlines()]


@contextlib.contextmanager
def serving_metadata(items: Dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with contextlib.closing(Metadata(socket.create_server(('127.0.0.1', 0)), items)) as server:
        monkeypatch.setenv('AWS_EC2_METADATA_SERVICE_ENDPOINT', f'http://127.0.0.1:{server.server_address[1]}')
        yield


@functools.lru_cache(maxsize=None)  # to make one takes longer than all its calls
def client(service: str) -> Any:
    make: Any = boto3.client
    return make(service, REGION)


class Host:
    """The host of a NAT instance as it should be, and what its check says of it."""

    primary, secondary, address = 'i-0123456789abcdef0', 'i-0fedcba9876543210', '198.51.100.7'
    table = 'rtb-0123456789abcdef0'

    def __init__(self, folder: str) -> None:
        self.root, self.settings_file = folder, os.path.join(folder, 'nat_config.py')
        self.file('nat_config.py', f'PRIMARY_INSTANCE_ID = {self.primary!r}\nSECONDARY_INSTANCE_ID = '
                  f'{self.secondary!r}\nROUTE_TABLE_IDS = [{self.table!r}]\nELASTIC_IP = {self.address!r}\n')
        self.file('nat_monitor.py', '#!/usr/bin/python3\n', 0o755)
        self.file('etc/cron.d/nat_monitor', '# comment\n@reboot root ' + os.path.join(folder, 'nat_monitor.py')
                  + ' >> /var/log/nat_monitor.log 2>&1\n')
        self.file('run/nat_monitor.lock', f'{os.getpid()}\n', 0o600)
        self.hold_lock(os.getpid())
        self.file('proc/1/comm', 'cron\n')
        self.file('proc/net/route', ROUTES)
        self.file('proc/net/fib_trie', '|-- 10.0.0.4\n   /32 host LOCAL\n')
        self.file('proc/sys/net/ipv4/ip_forward', '1\n')
        self.firewall()

    def file(self, name: str, text: str, mode: int = 0o644) -> str:
        path = os.path.join(self.root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'w') as file:
            file.write(text)
        os.chmod(path, mode)
        return path

    def hold_lock(self, pid: int) -> None:
        """Let the kernel say that the process holds the monitor's lock."""
        lock = os.stat(os.path.join(self.root, 'run/nat_monitor.lock'))
        device = f'{os.major(lock.st_dev):02x}:{os.minor(lock.st_dev):02x}'
        self.file('proc/locks', f'1: POSIX  ADVISORY  WRITE 1 {device}:{lock.st_ino} 0 EOF\n'
                                f'2: FLOCK  ADVISORY  WRITE {pid} {device}:{lock.st_ino} 0 EOF\n')

    def firewall(self, rules: str = MASQUERADE) -> None:
        """Let nft list these rules; to the kernel all that it is asked for goes by ens5."""
        for tool, said in (('nft', rules), ('ip', '[{"dev": "ens5"}]')):
            self.file(f'bin/{tool}', f"#!/bin/sh\ncat <<'EOF'\n{said}\nEOF\n", 0o755)

    def checker(self) -> nat_monitor.Check:
        return nat_monitor.Check(settings_file=self.settings_file, root=self.root)

    def check(self, capfd: pytest.CaptureFixture[str], part: str = '') -> Tuple[int, List[Line]]:
        """Run the check, or a part of it; return its exit code and its lines."""
        checker = self.checker()
        if part:
            checker.attempt(part, '', getattr(checker, f'check_{part}'))
        else:
            checker.run()
        self.text = capfd.readouterr().out
        return checker.exit_code, [line for line in read_lines(self.text) if AS_ROOT or line.what != 'file']


class Pair(Host):
    """Two NAT instances in EC2, the host of one of them, and what may be wrong with them."""

    def __init__(self, folder: str, connect: Callable[[str], Any] = nat_monitor.connect) -> None:
        self.connect_really = connect
        self.calls: List[Tuple[str, Dict[str, str]]] = []
        self.errors: Dict[str, str] = {}      # by action: the error code that EC2 answers; words behind ': '
        self.headers: Dict[str, str] = {}     # of those answers
        self.metadata: Dict[str, Any] = {}
        self.backend: Any = ec2_backends[ACCOUNT][REGION]
        self.deaf: Set[str] = set()           # addresses that do not answer a ping
        self.probed: Any = True  # what comes of a packet through the peer, or is raised
        self.build()
        super().__init__(folder)

    def build(self) -> None:
        client('iam').create_instance_profile(InstanceProfileName='NAT_Monitor')
        self.ec2 = client('ec2')
        self.vpc = self.ec2.create_vpc(CidrBlock='10.0.0.0/16')['Vpc']['VpcId']
        self.public, self.private = (self.ec2.create_subnet(
            VpcId=self.vpc, CidrBlock=f'10.0.{n}.0/24')['Subnet']['SubnetId'] for n in (0, 1))
        self.gateway = self.ec2.create_internet_gateway()['InternetGateway']['InternetGatewayId']
        self.ec2.attach_internet_gateway(InternetGatewayId=self.gateway, VpcId=self.vpc)
        self.public_table, self.table = (self.ec2.create_route_table(
            VpcId=self.vpc)['RouteTable']['RouteTableId'] for _ in range(2))
        self.ec2.associate_route_table(RouteTableId=self.public_table, SubnetId=self.public)
        self.association = self.ec2.associate_route_table(
            RouteTableId=self.table, SubnetId=self.private)['AssociationId']
        interface: Any = {'DeviceIndex': 0, 'SubnetId': self.public, 'AssociatePublicIpAddress': True}
        self.instances = {one['InstanceId']: one for _ in range(2) for one in self.ec2.run_instances(
            ImageId='ami-12345678', MinCount=1, MaxCount=1, IamInstanceProfile={'Name': 'NAT_Monitor'},
            NetworkInterfaces=[interface])['Instances']}
        self.primary, self.secondary = self.instances
        for i in self.instances:
            self.record(i).nics[0].__class__ = NetworkInterface
            self.ec2.modify_instance_attribute(InstanceId=i, SourceDestCheck={'Value': False})
        address = self.ec2.allocate_address(Domain='vpc', Address='198.51.100.7')  # moto's own ones are private
        self.address, self.allocation = address['PublicIp'], address['AllocationId']
        self.ec2.associate_address(AllocationId=self.allocation, InstanceId=self.primary)
        self.ec2.create_route(RouteTableId=self.table, DestinationCidrBlock='0.0.0.0/0', InstanceId=self.primary)
        self.ec2.create_tags(Resources=[self.table, self.allocation], Tags=[{'Key': 'nat_monitor', 'Value': 'true'}])
        self.metadata.update({'instance-id': self.secondary, 'placement/region': REGION,
                              'iam/security-credentials/': 'NAT_Monitor'})

    def record(self, i: str) -> Any:
        """Return moto's own record of an instance, for what its API cannot change."""
        return self.backend.get_instance(i)

    def get(self, item: str) -> str:
        if isinstance(self.metadata[item], Exception):
            raise self.metadata[item]
        return str(self.metadata[item])

    def ping(self, address: str, own: Sequence[str]) -> bool:
        return address not in self.deaf

    def probe(self, target: str, through: Optional[str] = None) -> bool:
        if through is None:
            return target not in self.deaf
        if isinstance(self.probed, Exception):
            raise self.probed
        return bool(self.probed)

    def connect(self, region: str) -> Any:
        client = self.connect_really(region)
        client.meta.events.unregister('before-call.ec2', unique_id='pair')  # of the pair of another test
        client.meta.events.register('before-call.ec2', self.answer, unique_id='pair')
        return client

    def answer(self, model: Any, params: Dict[str, Any], **_: Any) -> Any:
        """Note the call; answer an injected error, or DryRun as EC2 does; leave all else to moto."""
        action, parameters = model.name, params['body']
        self.calls.append((action, parameters))
        default = 'DryRunOperation' if parameters.get('DryRun') == 'true' else ''
        code, colon, message = self.errors.get(action, default).partition(': ')
        if code == 'no answer':
            raise BotoCoreError()
        if not code:
            return None
        headers: Any = HeadersDict()
        return AWSResponse(params['url'], 403, headers, None), {
            'Error': {'Code': code, 'Message': message if colon else 'said the test'}, 'ResponseMetadata': {
                'HTTPStatusCode': 403, 'HTTPHeaders': self.headers}}

    def checker(self) -> nat_monitor.Check:
        self.calls.clear()
        return nat_monitor.Check(settings_file=self.settings_file, metadata=self, ping=self.ping, probe=self.probe,
                                 connect=self.connect, root=self.root)

    def mutations(self) -> List[str]:
        return [action for action, parameters in self.calls
                if not action.startswith('Describe') and parameters.get('DryRun') != 'true']
