"""Who is measured: the monitor with several settings, and its rivals, each in a lab of its own."""
from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence

import certifi

from tests.lab import Lab
from tests.lab.ec2 import REGION
from tests.lab.lab import SBIN, Instance

RIVALS = Path(__file__).parent / 'rivals'
PATH = f'{os.path.dirname(sys.executable)}:/usr/bin:/bin:/usr/sbin'


@dataclass(frozen=True)
class Contender:
    """One of those that are measured; `ready` is what the secondary's log says once it watches the primary."""

    name: str
    words: str
    ready: str = '{peer} answers'
    settings: Dict[str, Any] = field(default_factory=dict)
    note: str = ''        # on its settings, where they are not as shipped
    script: str = ''      # a rival's, in rivals/
    options: str = ''     # for the script
    cycle: float = 0.5    # s, at least the time from one ping to the next
    elects: bool = False  # the two agree on who serves; else that is laid down, and the peer that failed is restarted
    tools: Sequence[str] = ()

    @property
    def label(self) -> str:
        return f'{self.words}, {self.note}' if self.note else self.words

    @property
    def missing(self) -> str:
        """What it needs and this machine lacks."""
        return ' and '.join(tool for tool in self.tools if not shutil.which(tool, path=PATH))


APART = 3.0  # s, between two questions of a monitor; while all is well, minutes pass
QUICK_SETTINGS = {'PING_TIMEOUT': 0.2, 'WAIT_BETWEEN_PINGS': 0.2}
CONTENDERS = {one.name: one for one in (
    Contender('careful', 'nat_monitor.py', settings={'NUM_PINGS': 6}, note='6 pings'),
    Contender('default', 'nat_monitor.py'),
    Contender('quick', 'nat_monitor.py', settings=QUICK_SETTINGS, note='0.2 s / 0.2 s'),
    Contender('reference', "Amazon's nat_monitor.sh", 'watching it', script='reference.sh', cycle=4.0,
              tools=('aws', 'ping')),
    Contender('keepalived', 'keepalived (VRRP)', 'Entering BACKUP STATE', script='keepalived.sh', cycle=1.0,
              elects=True, tools=('aws', 'keepalived')),
    Contender('keepalived quick', 'keepalived (VRRP)', 'Entering BACKUP STATE', script='keepalived.sh', cycle=0.2,
              elects=True, tools=('aws', 'keepalived'), note='advert_int 0.2',
              options='ADVERT_INTERVAL=0.2 VRRP_VERSION=3'))}  # version 2 knows whole seconds only


@contextlib.contextmanager
def pair(contender: Contender, **how: Any) -> Iterator[Lab]:
    """Open a lab in which the contender is installed on both instances; it starts as their @reboot job."""
    job = f'/{SBIN}/{contender.script} >> /var/log/nat_monitor.log 2>&1' if contender.script else None
    with Lab(contender.settings, python=sys.executable, boot_job=job, start=False,
             bundle=Path(certifi.where()).read_bytes(), **how) as lab:
        for instance in lab.instances.values() if contender.script else ():
            install_rival(lab, instance, contender)
        yield lab


def install_rival(lab: Lab, instance: Instance, contender: Contender) -> None:
    sbin = instance.node.root / SBIN
    peer = instance.peer
    # The primary holds all tables from the beginning, and each further claim of an AWS CLI costs a second.
    tables = lab.ec2.tables[:1] if instance is lab.primary else lab.ec2.tables
    (sbin / 'rival.conf').write_text(f'''
PRIMARY={'yes' if instance is lab.primary else ''} OWN_ID={instance.id} OWN_ADDRESS={instance.address}
PEER_ID={peer.id} PEER_ADDRESS={peer.address} TABLES='{' '.join(tables)}'
ALLOCATION_ID={lab.ec2.backend.addresses[0].allocation_id} AWS={shutil.which('aws', path=PATH)}
{contender.options}
export AWS_DEFAULT_REGION={REGION} AWS_PAGER=
''')
    shutil.copy(RIVALS / contender.script, sbin)


def start(lab: Lab, contender: Contender) -> None:
    """Start both and wait until they watch each other and all that they asked of EC2 at their start is answered."""
    lab.primary.start_monitor()
    if contender.elects:
        lab.wait_until(lambda: watches(lab.primary, contender), 'the primary is elected')
    lab.secondary.start_monitor()
    lab.wait_until(lambda: watches(lab.secondary, contender), 'the secondary watches the primary')
    lab.wait_until(lambda: watches(lab.primary, contender), 'the primary watches the secondary')
    if contender.script:
        lab.wait_until(lambda: 'AssociateAddress' in answered(lab, 'primary'), 'the primary has claimed')
    else:  # it claims nothing that is here
        for instance in lab.instances.values():
            lab.wait_until(lambda: f' at {lab.primary.id}' in instance.log, 'both have looked who serves')
    lab.wait_until(lambda: are_answered(lab), 'all calls are answered, those of a rehearsal too')


def are_answered(lab: Lab) -> bool:
    """Tell whether all calls are, and none has come for so long that the next question need not wait for its turn."""
    calls = lab.ec2.calls(dry_run=None)
    return all(call.seconds and time.monotonic() - call.at > APART for call in calls)


def watches(instance: Instance, contender: Contender, times: int = 1) -> bool:
    """Tell whether the contender watches the peer, for the time of that number."""
    words = contender.ready
    if contender.elects and instance.name == 'primary':
        words = 'Entering MASTER STATE'
    return instance.log.count(words.format(peer=instance.peer.id)) >= times


def answered(lab: Lab, name: Optional[str] = None) -> List[str]:
    return [call.action for call in lab.ec2.calls(instance=name) if call.seconds]
