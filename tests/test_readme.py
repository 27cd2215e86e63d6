"""README.adoc: its commands are run in their order, and its tables say what the code says."""

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Callable, Iterator, List, Set

import pytest

import nat_monitor

from .lab.host import TIMES, Console, OwnInstance, adopt, owned, packages
from .lab.lab import REPOSITORY, Lab
from .lab.network import ELASTIC_IP, INSTANCE_ADDRESSES
from .readme import README, Block, command_blocks, script

NOT_EXECUTED = {
    'Demo': 'starts tox',
    'Amazon Linux 2023': 'installs packages of another distribution; needs systemd',
    'Debian 12, Ubuntu 24.04': 'installs packages; needs systemd (test_host.py looks at the packages)',
}
LONGEST = 34 * 1024  # bytes


def test_the_readme_can_be_read_in_one_sitting() -> None:
    assert len(README.encode()) <= LONGEST


def test_every_command_block_says_what_it_is_and_where_it_is_run() -> None:
    blocks = command_blocks()

    assert len(blocks) == README.count('[source,bash')
    assert {block.place for block in blocks if block.title not in NOT_EXECUTED} == {'workstation', 'each instance'}
    assert NOT_EXECUTED.keys() <= {block.title for block in blocks}


# ---- the commands, in the lab

class Shell:
    """The shell in which the operator runs the AWS CLI; its variables last."""

    def __init__(self, directory: Path, url: str, stand_ins: Path) -> None:
        environment = {
            'PATH': f'{stand_ins}:{Path(sys.executable).parent}:{os.environ["PATH"]}', 'HOME': str(directory),
            'AWS_ENDPOINT_URL': url, 'AWS_DEFAULT_REGION': 'us-east-1', 'AWS_ACCESS_KEY_ID': 'AKIAEXAMPLE',
            'AWS_SECRET_ACCESS_KEY': 'secret', 'NO_PROXY': '127.0.0.1', 'AWS_PAGER': ''}
        self._process = subprocess.Popen(['sh', '-eu'], cwd=directory, env=environment, stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, script: str) -> str:
        """Run commands to their end and return what they wrote; they must not fail."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f'{script}\necho; echo "== done =="\n')
        self._process.stdin.flush()
        lines: List[str] = []
        for line in self._process.stdout:
            if line == '== done ==\n':
                return ''.join(lines).strip()
            lines.append(line)
        raise AssertionError(f'a command failed:\n{script}\n{"".join(lines)}')

    def value(self, name: str) -> str:
        return self.run(f'echo "${name}"')

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Operator:
    """Somebody who does what the README says, block by block."""

    def __init__(self, lab: Lab, console: Console, directory: Path) -> None:
        self.lab = lab
        self.instances = owned(lab)
        self.primary, self.secondary = self.instances['primary'], self.instances['secondary']
        self.directory = directory / 'checkout'
        self.directory.mkdir()
        for name in ('nat_monitor.py', 'nat_config.py', 'nat_monitor.cron', 'iam_policy.json'):
            shutil.copy2(REPOSITORY / name, self.directory)
        stand_ins = directory / 'bin'
        stand_ins.mkdir()
        self.hosts = directory
        (stand_ins / 'scp').write_text(SCP.format(hosts=directory))
        (stand_ins / 'scp').chmod(0o755)
        self.shell = Shell(self.directory, console.url, stand_ins)
        self.done: Set[str] = set()
        self.blocks = [block for block in command_blocks() if block.title not in NOT_EXECUTED]

    def follow(self, title: str) -> str:
        """Run the block of that title, which must be the next one of the page; return what it wrote."""
        block = next(block for block in self.blocks if block.title not in self.done)
        assert block.title == title, f'the next block of the README is {block.title}'
        self.done.add(title)
        return self.run(block)

    def run(self, block: Block) -> str:
        if block.place == 'workstation':
            return self.shell.run(block.script)
        return '\n'.join(instance.as_root(block.script) for instance in self.instances.values())

    def repeat(self, title: str, instance: OwnInstance) -> str:
        """Run a block, in whatever order, on one instance."""
        [block] = [block for block in self.blocks if block.title == title]
        self.done.add(title)
        return instance.as_root(block.script)


SCP = '''#!/bin/sh
# scp -i KEY FILE... USER@HOST: copies into the directory that stands for that host.
set -e
test "$1" = -i && test -s "$2"; shift 2
while [ $# -gt 1 ]; do files="$files $1"; shift; done
host=${{1#*@}}
exec cp $files {hosts}/"${{host%:}}"/
'''

# Without the jobs of the machine that runs the tests.
CRON = 'mount -t tmpfs tmpfs /var/spool/cron && mkdir /var/spool/cron/crontabs && exec /usr/sbin/cron -f'
AT = '''test "$*" = now
exec setsid --fork sh -c "$(cat)" </dev/null >/dev/null 2>&1'''


@pytest.fixture
def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Operator]:
    monkeypatch.setattr('moto.ec2.models.elastic_ip_addresses.random_ip', lambda: ELASTIC_IP)
    with Lab(start=False, holder=None, environment=packages(), impaired=30.0, **TIMES) as lab:
        with Console(lab) as console:
            operator = Operator(lab, console, tmp_path)
            try:
                yield operator
            finally:
                operator.shell.close()


def labels(checked: str) -> Set[str]:
    """Return what has been checked, by the output of --check."""
    return {line[8:30].strip() for line in checked.splitlines() if line.startswith(('ok ', 'warn ', 'FAIL '))}


def tagged(operator: Operator) -> Set[str]:
    """Return the ids of what carries the tag that iam_policy.json asks for."""
    policy = (operator.directory / 'iam_policy.json').read_text()
    [(key, value)] = set(re.findall(r'"aws:ResourceTag/(\w+)": "(\w+)"', policy))
    tags = operator.lab.ec2.backend.describe_tags()
    return {tag['resource_id'] for tag in tags if (tag['key'], tag['value']) == (key, value)}


@pytest.mark.lab
def test_the_commands_of_the_readme_make_a_pair_that_fails_over(operator: Operator) -> None:
    lab, primary, secondary, shell = operator.lab, operator.primary, operator.secondary, operator.shell
    for instance in (primary, secondary):
        instance.stand_in('at', AT)
        instance.start(CRON)

    # Set up
    for title in ('Variables', 'VPC', 'Public subnet', 'Private subnet', 'Egress address', 'Security group',
                  'Role and instance profile', 'Key and image', 'Instances'):
        operator.follow(title)
    adopt(lab, {name: shell.value(name) for name in INSTANCE_ADDRESSES}, shell.value('private_table'))
    operator.follow('Source/destination check')
    operator.follow('Tags')
    operator.follow('Policy')
    assert tagged(operator) >= {shell.value('private_table'), shell.value('allocation'),
                                *(life.record.nics[0].id for life in lab.ec2.lives.values())}
    operator.follow('Key of the disks')
    operator.follow('Interface endpoint')
    assert shell.value('service') == 'com.amazonaws.us-east-1.ec2'
    operator.follow('Settings')

    # Install
    for name, link in lab.network.links.items():
        os.symlink(operator.instances[name].home, operator.hosts / str(link.public))
    for title in ('Copy', 'Forwarding', 'Masquerading', 'Files', 'Log rotation'):
        operator.follow(title)
    checked = operator.follow('Check')
    assert 'FAIL' not in checked
    assert labels(README.split('#sample]')[1].split('----')[1]) <= labels(checked)

    # Start and prove it
    operator.repeat('Start', primary)
    lab.wait_until(lambda: lab.holds(primary), 'the primary claims')
    operator.repeat('Start', secondary)
    lab.wait_until(lambda: secondary.logged(' answers'), 'the secondary watches')
    said = operator.follow('Log')
    assert all(words in said for words in ('watching', 'has started: claiming', 'answers'))
    lab.wait_until(lambda: lab.traffic.egress() == ELASTIC_IP, 'the private host is served')
    before, before_there = len(secondary.log), len(primary.log)
    operator.follow('Proof')
    lab.wait_until(lambda: lab.holds(secondary), 'the secondary takes over')
    lab.wait_until(lambda: lab.holds(primary), 'the primary is started and claims')
    assert secondary.logged('taking over') and secondary.logged('is stopped: starting it')

    # Operate
    lab.wait_until(lambda: primary.logged(f'{ELASTIC_IP} at {primary.id}', before_there), 'it knows that')
    operator.repeat('Look now', secondary)
    lab.wait_until(lambda: secondary.logged(f'{ELASTIC_IP} at {primary.id}', before), 'the secondary does, too')
    assert 'FAIL' not in operator.follow('Status')
    shell.run('nat_gateway=$(aws ec2 create-nat-gateway --subnet-id "$public_subnet" --connectivity-type private'
              ' --query NatGateway.NatGatewayId --output text)')
    operator.follow('Route by hand')
    assert lab.ec2.route_target() == shell.value('nat_gateway')
    operator.repeat('Upgrade', primary)
    lab.wait_until(lambda: lab.holds(primary), 'the start of the primary takes it back')

    operator.follow('Begin maintenance')
    operator.repeat('Look now', secondary)
    lab.wait_until(lambda: lab.holds(secondary), 'the secondary takes over')
    lab.ec2.stop('primary')
    lab.wait_until(lambda: primary.state == 'stopped', 'the primary can be worked on')
    before = len(primary.log)
    lab.ec2.start('primary')
    lab.wait_until(lambda: primary.logged('is under maintenance: it claims nothing', before), 'it claims nothing')
    assert lab.holds(secondary)
    operator.follow('End maintenance')
    operator.repeat('Look now', primary)
    lab.wait_until(lambda: lab.holds(primary), 'the primary claims again')

    operator.follow('Stop')
    lab.wait_until(lambda: primary.monitor_pid is None and secondary.monitor_pid is None, 'no monitor runs')
    for instance in (primary, secondary):
        before = len(instance.log)
        operator.repeat('Start', instance)
        lab.wait_until(lambda: instance.logged(' answers', before), f'the {instance.name} watches')
    for instance in (secondary, primary):
        before = len(instance.log)
        operator.repeat('Upgrade', instance)
        lab.wait_until(lambda: instance.logged(' answers', before), 'the new monitor runs')
    assert operator.done == {block.title for block in operator.blocks}

    # At the end the pair fails over, and back; the sample log is what the secondary logs of it.
    lab.wait_until(lambda: lab.holds(primary), 'the pair is settled')
    before = len(secondary.log)
    primary.crash()
    lab.wait_until(lambda: lab.holds(secondary), 'the secondary takes over')
    lab.wait_until(lambda: lab.traffic.egress() == ELASTIC_IP, 'the private host is served again')
    lab.wait_until(lambda: lab.holds(primary), 'the primary is restarted and claims')
    lab.wait_until(lambda: lab.traffic.egress() == ELASTIC_IP, 'the private host is served by the primary')
    sample = README.split('#failover]')[1].split('----')[1]
    lab.wait_until(lambda: shapes(sample) <= shapes(secondary.log[before:]), 'the lines of the sample')


def shapes(log: str) -> Set[str]:
    """Return the lines of a log without their times, ids and numbers."""
    return {re.sub(r'\d+(\.\d+)*', '0', re.sub(r'\b(i|rtb)-[0-9a-f]+', r'\1-', line.partition(' ')[2]))
            for line in log.splitlines() if line}


def conditions(policy: str) -> Set[str]:
    """Return the values that the conditions of a policy compare with."""
    statements = json.loads(policy)['Statement']
    return {value for one in statements for each in one.get('Condition', {}).values() for value in each.values()}


def test_no_pair_may_change_what_is_another_pairs(tmp_path: Path) -> None:
    """Follow the blocks as for a second pair."""
    [other] = re.findall(r'`(name=\S+ role=\S+ tag=\S+)`', README)
    shutil.copy(REPOSITORY / 'iam_policy.json', tmp_path)

    subprocess.run(['sh', '-eu', '-c', f'aws() {{ :; }}\n{script("Variables")}\n{other}\n{script("Policy")}'],
                   cwd=tmp_path, check=True)

    first, second = (conditions((tmp_path / name).read_text()) for name in ('iam_policy.json', 'policy.json'))
    assert len(first) == len(second) == 2
    assert not first & second


# ---- the tables and the sample

def table(anchor: str) -> List[List[str]]:
    """Return the cells of the table with that anchor, row by row, without its header."""
    text = README.split(f'[#{anchor}]')[1].split('|===')[1]
    cells = [' '.join(cell.split()) for cell in re.split(r'(?:^|\s)\|\s', text)][1:]
    return [cells[i:i + 2] for i in range(2, len(cells), 2)]


def test_the_settings_table_names_every_setting_with_its_default() -> None:
    rows = dict(re.findall(r'`(\w+)`(?:, `([\w.]+)`)?', row[0])[0] for row in table('settings'))

    fields = nat_monitor.Settings.__dataclass_fields__
    assert list(rows) == [name.upper() for name in fields]
    for name, default in rows.items():
        if name in nat_monitor.REQUIRED:
            assert default == ''
        else:
            assert ast.literal_eval(default) == fields[name.lower()].default


@pytest.mark.parametrize('judgement', [nat_monitor.serve, nat_monitor.restart])
def test_the_tables_of_the_judgement_have_the_rows_of_the_code(judgement: Callable[..., object]) -> None:
    comments = re.findall(r'^    # (?:S\d: )?(.*)$', inspect.getsource(judgement), re.M)

    assert len(comments) >= 5
    assert [row[0] for row in table(judgement.__name__)] == comments


def test_the_readme_renders_without_a_warning(tmp_path: Path) -> None:
    if not shutil.which('asciidoctor'):
        assert 'CI' not in os.environ, 'asciidoctor is missing'
        pytest.skip('asciidoctor is missing')

    result = subprocess.run(['asciidoctor', '-v', '--failure-level', 'INFO', '-o', str(tmp_path / 'readme.html'),
                             str(REPOSITORY / 'README.adoc')], capture_output=True, text=True)

    assert (result.returncode, result.stderr) == (0, '')
