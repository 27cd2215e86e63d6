"""What an operator sees of the lab: EC2 and IAM for the AWS CLI, and instances with a disk that is theirs to change."""

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Dict, Iterable

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from .ec2 import Instance as Record
from .lab import Instance, Lab

CRON_FILE = '/etc/cron.d/nat_monitor'
HOME = '/mnt/home'  # of the operator, in an instance
TIMES: Dict[str, Any] = {'boot': 1.0, 'pending': 0.5, 'stop': 1.0}  # of a lab, shorter than usual
PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

# Directories of its own where the README's commands write; the rest is the host's. In a user namespace, root may not
# read all of /etc.
OWN_DISK = f'''
set -e; PATH={PATH}
mount -t tmpfs -o mode=0755 tmpfs /mnt
mkdir /mnt/etc {HOME}
cp -a /etc/. /mnt/etc/ 2>/dev/null || true
mount --bind /mnt/etc /etc
mkdir -p /etc/cron.d /etc/sysctl.d /etc/logrotate.d
rm -f /usr/local/sbin/nat_* /etc/crontab /etc/cron.d/* /etc/logrotate.d/*
nft flush ruleset
'''


class OwnInstance(Instance):
    """An instance as launched from an image: no forwarding, no monitor, and what it does at boot is on its own disk."""

    def make_own(self) -> None:
        """Give it that disk."""
        self.forwarding(False)
        self.run('sh', '-c', OWN_DISK, check=True)

    @property
    def home(self) -> Path:
        """The operator's directory, as seen from outside."""
        return self.node.root / HOME[1:]

    def stand_in(self, name: str, script: str) -> None:
        """Put a command in the way of the real one, for `as_root()`."""
        file = self.home / 'bin' / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f'#!/bin/sh\n{script}\n')
        file.chmod(0o755)

    def as_root(self, script: str) -> str:
        """Run a script in the operator's directory, as root does; return what it wrote. It must not fail."""
        result = self.node.run('sh', '-euc', f'exec 2>&1; cd {HOME}\n{script}', check=False,
                               env={**self.lab.environment, 'PATH': f'{HOME}/bin:{PATH}'})
        self.lab.note(self.name, f'# {script}\n{result.stdout}')
        assert result.returncode == 0, f'{self.name}: exit {result.returncode} of {script}\n{result.stdout}'
        return result.stdout

    def boot(self) -> None:
        """Come up with what systemd-sysctl and nftables.service find on its disk."""
        super().boot()
        self.as_root('''
            nft flush ruleset
            cat /etc/sysctl.d/*.conf | grep '^net.ipv4.ip_forward' | sysctl -p -  # the rest is the host's own
            conf=/etc/nftables.conf; test -d /etc/sysconfig && conf=/etc/sysconfig/nftables.conf
            nft -f $conf''')

    def cron_job(self) -> str:
        """Return the command of the @reboot job on its disk, or '' if Debian's cron or cronie would ignore the file."""
        file = self.node.root / CRON_FILE[1:]
        if not file.exists() or file.stat().st_mode & 0o133 or not file.read_text().endswith('\n'):
            return ''
        [line] = [line for line in file.read_text().splitlines() if line.startswith('@reboot ')]
        user, command = line.split(None, 2)[1:]
        return command if user == 'root' else ''

    def run_boot_job(self) -> None:
        if self.runs_boot_job and self.cron_job():
            self.start(self.cron_job())

    def start(self, command: str) -> None:
        """Start a shell command that outlives this call."""
        self.run('sh', '-c', 'exec setsid --fork sh -c "$0" </dev/null >/dev/null 2>&1', command, check=True)

    def logged(self, words: str, after: int = 0) -> bool:
        """Tell whether the monitor has logged these words, beyond the first *after* characters of the log."""
        return words in self.log[after:]


def packages() -> Dict[str, str]:
    """Return what to add to the environment if the distribution's Python lacks what the monitor needs: this one's."""
    if subprocess.run(['/usr/bin/python3', '-c', 'import boto3, requests'], capture_output=True).returncode == 0:
        return {}
    return {'PYTHONPATH': os.pathsep.join(path for path in sys.path if path.endswith('site-packages'))}


def owned(lab: Lab) -> Dict[str, OwnInstance]:
    """Turn both instances of an open lab, in which no monitor runs, into own ones; return them by name."""
    found = {}
    for name, instance in lab.instances.items():
        instance.__class__ = OwnInstance
        assert isinstance(instance, OwnInstance)
        instance.make_own()
        found[name] = instance
    return found


def adopt(lab: Lab, instance_ids: Dict[str, str], table_id: str) -> None:
    """Let two instances and a private route table that exist in moto be those of the lab."""
    with lab.ec2.lock:
        for name, instance_id in instance_ids.items():
            life = lab.ec2.lives[name]
            record: Any = lab.ec2.backend.get_instance(instance_id)
            assert record.private_ip == lab.instances[name].address
            record.__class__ = Record
            record.life, life.record = life, record
            lab.metadata[name].items['instance-id'] = instance_id
        lab.ec2.tables[:] = [table_id]
        lab.ec2.sync()


class Console:
    """All of moto at a port of the loopback interface, for the AWS CLI; what is changed there takes effect in the lab.

    The account is empty at first.
    """

    def __init__(self, lab: Lab) -> None:
        moto = DomainDispatcherApplication(create_backend_app)
        lab.ec2.backend.reset()
        logging.getLogger('werkzeug').setLevel(logging.ERROR)

        def application(environ: Dict[str, Any], start_response: Any) -> Iterable[bytes]:
            with lab.ec2.lock:
                answer = list(moto(environ, start_response))
                lab.ec2.sync()
            return answer

        self._server = make_server('127.0.0.1', 0, application, threaded=True)
        threading.Thread(target=self._server.serve_forever, daemon=True, name='console').start()
        self.url = f'http://127.0.0.1:{self._server.server_port}'

    def __enter__(self) -> 'Console':
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
