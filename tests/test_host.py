"""The monitor on a real host: cron, at, killall, logrotate and the distribution's packages, as README.adoc uses them.

All but the first tests need real root, as these programs change their user, and Debian's programs.
"""

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Iterator, List

import pytest

from .lab.host import CRON_FILE, TIMES, OwnInstance, owned, packages
from .lab.lab import REPOSITORY, Lab
from .readme import script

DEBIAN = script('Debian 12, Ubuntu 24.04')


def lacking(what: str) -> None:
    """Skip the test, or fail it on a CI server, which must have all that tests need."""
    if 'CI' in os.environ:
        pytest.fail(f'this machine lacks {what}')
    pytest.skip(f'this machine lacks {what}')


def need(*programs: str) -> None:
    """Check that this is real root, and that the programs are here."""
    if os.geteuid() != 0 or Path('/proc/self/uid_map').read_text().split() != ['0', '0', '4294967295']:
        lacking('real root')
    for program in programs:
        if not shutil.which(program, path='/usr/sbin:/usr/bin:/sbin:/bin'):
            lacking(program)


# ---- what needs no root

def test_the_cron_file_meets_the_rules_of_debians_cron_and_of_cronie(tmp_path: Path) -> None:
    command = next(line for line in script('Files').splitlines() if line.endswith(CRON_FILE))
    mode = int(command.split(' -m ')[1].split()[0], 8)
    shutil.copy(REPOSITORY / 'nat_monitor.cron', tmp_path / 'nat_monitor')
    (tmp_path / 'nat_monitor').chmod(mode)
    lines = (tmp_path / 'nat_monitor').read_text().splitlines(keepends=True)

    assert ' -o root -g root ' in command
    assert re.fullmatch('[A-Za-z0-9_-]+', Path(CRON_FILE).name), 'Debian: no dot in the name'
    assert not mode & (stat.S_IWGRP | stat.S_IWOTH), 'Debian: written by nobody else'
    assert mode & 0o7533 == 0o400, 'cronie: read by root, executable for nobody, written by nobody else'
    assert all(line.endswith('\n') for line in lines), 'Debian: a last line without an end is ignored'
    assert [line.split()[:2] for line in lines if not line.startswith('#')] == [['@reboot', 'root']]


def installed_by(command: str) -> List[str]:
    """Return the packages that a listing installs."""
    [line] = [line for line in command.splitlines() if ' install ' in line]
    return line.split(' install -y ')[1].split()


def test_both_distributions_get_the_same_packages_by_the_names_that_they_have_there() -> None:
    debian, amazon = installed_by(DEBIAN), installed_by(script('Amazon Linux 2023'))

    assert [{'cron': 'cronie'}.get(name, name) for name in debian] == amazon


def test_debian_has_every_package_of_the_readme() -> None:
    if not shutil.which('apt-cache'):
        lacking('apt-cache')
    known = subprocess.run(['apt-cache', 'pkgnames'], capture_output=True, text=True, check=True).stdout.split()
    if len(known) < 10000:
        lacking("the distribution's package lists (apt-get update)")

    assert set(installed_by(DEBIAN)) <= set(known)


# ---- what does

@pytest.fixture
def pair() -> Iterator[Lab]:
    """A lab whose instances have everything installed as the README says, and run no monitor yet."""
    need('cron', 'atd', 'at', 'killall', 'logrotate', 'nft')
    with Lab({'PING_TIMEOUT': 0.5, 'WAIT_FOR_INSTANCE_STOP': 20}, start=False, holder=None, environment=packages(),
             **TIMES) as lab:
        for instance in owned(lab).values():
            for name in ('nat_monitor.py', 'nat_config.py', 'nat_monitor.cron'):
                shutil.copy(REPOSITORY / name, instance.home)
            for title in ('Forwarding', 'Masquerading', 'Files', 'Log rotation'):
                instance.as_root(script(title))
            instance.configure()
            instance.as_root(SPOOL)
            # cron and at give a job an environment of their own, read from here.
            (instance.node.root / 'etc/environment').write_text(
                ''.join(f'{name}={value}\n' for name, value in lab.environment.items() if name != 'PATH'))
        yield lab


SPOOL = '''
    mkdir /mnt/spool
    cp -a /var/spool/cron /mnt/spool
    mount --bind /mnt/spool/cron /var/spool/cron
    find /var/spool/cron -type f ! -name .SEQ -delete'''


def boot_with_cron(instance: OwnInstance) -> None:
    """Start Debian's cron daemon as after a boot: /run is empty, so it runs the @reboot jobs."""
    instance.boot()
    instance.start('exec /usr/sbin/cron -f')


def own(lab: Lab, name: str) -> OwnInstance:
    instance = lab.instances[name]
    assert isinstance(instance, OwnInstance)
    return instance


@pytest.mark.core
@pytest.mark.lab
def test_debians_cron_starts_the_monitor_at_boot_and_it_logs_to_its_file(pair: Lab) -> None:
    primary = own(pair, 'primary')

    boot_with_cron(primary)

    pair.wait_until(lambda: pair.holds(primary), 'the monitor runs, and claims')
    assert primary.logged(f'watching {pair.secondary.id} from {primary.id}, the primary')
    assert primary.run('ps', '-o', 'user=', '-C', 'nat_monitor.py').stdout.split() == ['root']


@pytest.mark.lab
@pytest.mark.parametrize('wrong', ['mv {0} {0}.cron', 'chmod g+w {0}'])
def test_debians_cron_ignores_a_file_with_a_dot_in_its_name_or_that_others_can_write(pair: Lab, wrong: str) -> None:
    primary, secondary = own(pair, 'primary'), own(pair, 'secondary')
    primary.as_root(wrong.format(CRON_FILE))

    boot_with_cron(primary)
    boot_with_cron(secondary)

    pair.wait_until(lambda: secondary.logged('watching'), 'cron has run its jobs on the other instance')
    assert primary.monitor_pid is None
    assert primary.cron_job() == '' and secondary.cron_job() != ''  # what the lab's own boot goes by


@pytest.mark.core
@pytest.mark.lab
def test_at_starts_the_monitor_and_killall_ends_it_and_both_restart_it_to_fail_back(pair: Lab) -> None:
    primary = own(pair, 'primary')
    primary.start('exec /usr/sbin/atd -f')
    pair.wait_until((primary.node.root / 'run/atd.pid').exists, 'atd runs')

    primary.as_root(script('Start'))
    pair.wait_until(lambda: pair.holds(primary), 'the monitor runs, and claims')
    calls = len(pair.ec2.calls(dry_run=None))
    primary.as_root(script('Stop'))

    pair.wait_until(lambda: primary.monitor_pid is None, 'the monitor has ended')
    assert primary.logged('ended by SIGTERM')
    assert len(pair.ec2.calls(dry_run=None)) == calls
    assert pair.holds(primary)

    primary.as_root(script('Start'))
    pair.wait_until(lambda: primary.monitor_pid, 'the next monitor runs')
    pair.ec2.set_route('secondary')
    pair.ec2.set_address('secondary')
    primary.as_root(script('Upgrade'))

    pair.wait_until(lambda: pair.holds(primary), 'the new monitor has claimed')


@pytest.mark.lab
def test_a_running_monitor_survives_log_rotation(pair: Lab) -> None:
    primary, secondary = own(pair, 'primary'), own(pair, 'secondary')
    for instance in (primary, secondary):
        instance.run_boot_job()
    pair.wait_until(lambda: primary.logged(f'{secondary.id} answers'), 'the pair runs')
    before = primary.log
    rotate = '/usr/sbin/logrotate --force --state /run/logrotate.status /etc/logrotate.d/nat_monitor'

    primary.as_root(rotate)
    rotated = primary.node.root / 'var/log/nat_monitor.log.1'
    assert rotated.read_text().startswith(before)
    assert not primary.logged('watching')
    secondary.hang()
    pair.wait_until(lambda: primary.logged('missed'), 'new lines arrive in the new file')
    assert not primary.log.startswith('\0'), 'the file has no hole: it is appended to'

    primary.as_root(rotate)
    assert (primary.node.root / 'var/log/nat_monitor.log.2.gz').exists()
