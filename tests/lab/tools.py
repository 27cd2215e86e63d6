"""Install the system tools that the lab needs, or name the missing ones in one line: `python tests/lab/tools.py`.

With the argument `rivals`, those of the benchmark take the place of the host's.

It installs only as root and where apt or dnf is there; what is there already is left as it is.
"""

import os
import shutil
import subprocess
import sys
from typing import Dict, List

# By tool: the package that brings it, with apt and with dnf.
LAB = {'ip': ('iproute2', 'iproute'), 'nft': ('nftables', 'nftables'), 'killall': ('psmisc', 'psmisc'),
       'iptables': ('iptables', 'iptables-nft'), 'unshare': ('util-linux', 'util-linux'),
       'nsenter': ('util-linux', 'util-linux')}
HOST = {'cron': ('cron', 'cronie'), 'at': ('at', 'at'), 'logrotate': ('logrotate', 'logrotate'),
        'asciidoctor': ('asciidoctor', 'rubygem-asciidoctor'),
        'boto3': ('python3-boto3', 'python3-boto3'), 'requests': ('python3-requests', 'python3-requests')}
MODULES = ('boto3', 'requests')  # of the distribution's own Python
RIVALS = {'keepalived': ('keepalived', 'keepalived'), 'ping': ('iputils-ping', 'iputils')}
OTHER_NAMES = {'cron': ('cron', 'crond')}
PATH = os.environ.get('PATH', '') + ':/usr/local/sbin:/usr/sbin:/sbin'


def missing(tools: Dict[str, 'tuple[str, str]']) -> List[str]:
    """Return the tools that are not there."""
    return [tool for tool in tools if not (
        has_module(tool) if tool in MODULES else
        any(shutil.which(name, path=PATH) for name in OTHER_NAMES.get(tool, (tool,))))]


def has_module(name: str) -> bool:
    python = '/usr/bin/python3'
    return os.path.exists(python) and not subprocess.run([python, '-Ic', f'import {name}'], stderr=subprocess.DEVNULL,
                                                         check=False).returncode


def main() -> int:
    tools = {**LAB, **(RIVALS if 'rivals' in sys.argv else HOST)}
    lacking = missing(tools)
    manager = next((name for name in ('apt-get', 'dnf') if shutil.which(name, path=PATH)), None)
    if lacking and os.geteuid() == 0 and manager:
        packages = sorted({tools[tool][manager == 'dnf'] for tool in lacking})
        print(f'installing {" ".join(packages)} with {manager}', flush=True)
        environment = {**os.environ, 'DEBIAN_FRONTEND': 'noninteractive'}
        if manager == 'apt-get':
            subprocess.run([manager, 'update', '-qq'], env=environment, check=False)
        subprocess.run([manager, 'install', '-y', '-q', *packages], env=environment, check=False,
                       stdout=subprocess.DEVNULL)
        lacking = missing(tools)
    needed = [tool for tool in lacking if tool in LAB]
    if lacking:
        print('these system tools are missing: ' + ' '.join(lacking) + (
            '; install them first' if needed else '; what needs them is skipped'), file=sys.stderr)
    return 1 if needed else 0


if __name__ == '__main__':
    sys.exit(main())
