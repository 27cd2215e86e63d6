"""README.adoc: its commands are run in their order, and its tables say what the code says."""

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Iterator, List, Set

import pytest

import nat_monitor

from .lab.host import TIMES, Console, OwnInstance, adopt, has_packages, owned, packages_of_this_python
from .lab.lab import REPOSITORY, Lab
from .lab.network import ELASTIC_IP, INSTANCE_ADDRESSES
from .readme import README, Block, command_blocks

NOT_EXECUTED = {
    'Demo': 'starts tox',
    'Everything that a change must pass': 'starts tox, which starts this test',
    'Amazon Linux 2023': 'installs packages of another distribution; needs systemd',
    'Debian 12, Ubuntu 24.04': 'installs packages; needs systemd (test_host.py looks at the packages)',
}


def test_every_command_block_has_a_title_and_is_run_or_listed_as_not_run() -> None:
    blocks = command_blocks()

    assert len(blocks) == README.count('[source,bash')
    assert all(block.title for block in blocks)
    assert {block.title for block in blocks if not block.run} == set(NOT_EXECUTED)
    assert {block.run for block in blocks} <= {'', 'aws', 'host', 'primary'}


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
        self.blocks = command_blocks()

    def follow(self, title: str) -> str:
        """Run the block of that title, which must be the next one that is run; return what it wrote."""
        block = next(block for block in self.blocks if block.run and block.title not in self.done)
        assert block.title == title, f'the next block of the README is {block.title}'
        self.done.add(title)
        return self.run(block)

    def run(self, block: Block) -> str:
        if block.run == 'aws':
            return self.shell.run(block.script)
        chosen = self.instances.values() if block.run == 'host' else [self.instances[block.run]]
        return '\n'.join(instance.as_root(block.script) for instance in chosen)

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
    environment = packages_of_this_python() if not has_packages('/usr/bin/python3') else {}
    with Lab(start=False, holder=None, environment=environment, **TIMES) as lab:
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

    # Preparation
    for title in ('VPC', 'Public subnet', 'Private subnet', 'Elastic IP', 'Role and instance profile',
                  'Security group', 'Key and image', 'Instances'):
        operator.follow(title)
    adopt(lab, {name: shell.value(name) for name in INSTANCE_ADDRESSES}, shell.value('private_table'))
    operator.follow('Source/destination check')
    operator.follow('Tags')
    assert tagged(operator) >= {shell.value('private_table'), shell.value('allocation'),
                                *(life.record.nics[0].id for life in lab.ec2.lives.values())}
    operator.follow('Policy')
    operator.follow('Key of the disks')
    operator.follow('Interface endpoint')
    assert shell.value('service') == 'com.amazonaws.us-east-1.ec2'
    operator.follow('Settings')

    # Installation
    for name, link in lab.network.links.items():
        os.symlink(operator.instances[name].home, operator.hosts / str(link.public))
    operator.follow('Copy')
    operator.follow('Forwarding')
    operator.follow('Masquerading')
    operator.follow('Files')
    operator.follow('Log rotation')
    checked = operator.follow('Check')
    assert 'FAIL' not in checked
    assert labels(README.split('#sample]')[1].split('----')[1]) <= labels(checked)

    operator.repeat('Start', primary)
    lab.wait_until(lambda: lab.holds(primary), 'the primary claims')
    operator.repeat('Start', secondary)
    lab.wait_until(lambda: secondary.logged('watching'), 'the secondary watches')
    assert 'watching' in operator.follow('Log')
    lab.wait_until(lambda: lab.traffic.egress() == ELASTIC_IP, 'the private host is served')

    # Operation: fail-back by hand, maintenance, upgrade
    before = len(primary.log)
    operator.follow('Fail-back')
    lab.wait_until(lambda: primary.logged(f'{ELASTIC_IP} is at {primary.id} now', before), 'it claims again')

    assert 'FAIL' not in operator.follow('Status')
    operator.follow('Stop')
    lab.wait_until(lambda: primary.monitor_pid is None and secondary.monitor_pid is None, 'no monitor runs')
    for instance in (primary, secondary):
        before = len(instance.log)
        operator.repeat('Start', instance)
        lab.wait_until(lambda: instance.logged(' answers', before), f'the {instance.name} watches')

    operator.follow('Begin maintenance')
    operator.follow('Look now')
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

    for instance in (secondary, primary):
        before = len(instance.log)
        operator.repeat('Upgrade', instance)
        lab.wait_until(lambda: instance.logged('watching', before), 'the new monitor runs')
    assert operator.done == {block.title for block in operator.blocks if block.run}

    # At the end the pair fails over, and back.
    lab.wait_until(lambda: secondary.logged('holds tables and address'), 'the pair is settled')
    primary.crash()
    lab.wait_until(lambda: lab.holds(secondary), 'the secondary takes over')
    lab.wait_until(lambda: lab.traffic.egress() == ELASTIC_IP, 'the private host is served again')
    lab.wait_until(lambda: lab.holds(primary), 'the primary is restarted and claims')
    lab.wait_until(lambda: lab.traffic.egress() == ELASTIC_IP, 'the private host is served by the primary')


# ---- the tables and the sample

def table(anchor: str) -> List[List[str]]:
    """Return the cells of the table with that anchor, row by row, without its header."""
    text = README.split(f'[#{anchor}]')[1].split('|===')[1]
    cells = [cell.strip() for cell in re.split(r'(?:^|\s)(?:2\+)?\|\s', text)]
    cells = [cell for cell in cells[1:] if not re.fullmatch(r'\*[^*]+\*', cell)]  # headings within the table
    return [cells[i:i + 2] for i in range(2, len(cells), 2)]


def texts_of(root: ast.AST) -> List[str]:
    """Return the texts in a piece of code, without docstrings, and with … for what is filled in."""
    nodes = list(ast.walk(root))
    parts_of_texts = {part for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    passed_over = parts_of_texts | {node.value for node in nodes if isinstance(node, ast.Expr)}  # docstrings
    found = []
    for node in nodes:
        if isinstance(node, (ast.JoinedStr, ast.Constant)) and node not in passed_over:
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            text = ''.join(str(part.value) if isinstance(part, ast.Constant) else '…' for part in parts)
            found.append(re.sub('…+', '…', re.sub(r'\{\w*\}', '…', text)))
    return found


def sentences(*functions: str) -> List[str]:
    """Return the texts in nat_monitor.py, or in some functions of it."""
    tree = ast.parse((REPOSITORY / 'nat_monitor.py').read_text())
    chosen: List[ast.AST] = [node for node in ast.walk(tree)
                             if isinstance(node, ast.FunctionDef) and node.name in functions]
    return [text for root in chosen or [tree] for text in texts_of(root)]


def said(words: str, texts: List[str]) -> bool:
    """Tell whether one of the texts has these words, whatever their first letter."""
    words = ' '.join(words.split()).strip('… ')
    return any(words in text or words[0].lower() + words[1:] in text for text in texts)


def test_the_settings_table_names_every_setting_with_its_default() -> None:
    rows = dict(re.findall(r'`(\w+)`(?:, `([\w.]+)`)?', row[0])[0] for row in table('settings'))

    fields = nat_monitor.Settings.__dataclass_fields__
    assert list(rows) == [name.upper() for name in fields]
    for name, default in rows.items():
        if name in nat_monitor.REQUIRED:
            assert default == ''
        else:
            assert ast.literal_eval(default) == fields[name.lower()].default


def decisions() -> List[List[str]]:
    """Return the rows of the table of decisions: number, what is known, what is done."""
    text = README.split('[#decisions]')[1].split('|===')[1]
    rows = re.findall(r'^\| (\d+) \| (.*?)\n\| (.*?)\n(?=\n|\Z)', text, re.M | re.S)
    return [list(row) for row in rows]


def words_of_the_log() -> List[str]:
    """Return what stands in italics in the table of decisions, and what stands in its other sections."""
    return [' '.join(words.split()) for row in decisions() for cell in row
            for words in re.findall(r'(?<!\w)_([^_]+)_(?!\w)', cell)]


def test_the_rows_of_the_table_of_decisions_are_those_of_the_code() -> None:
    """Row n of the table is row n of the code."""
    code = inspect.getsource(nat_monitor.decide)
    numbers = re.findall(r'^    # (\d+)$', code, re.M)

    assert [number for number, _, _ in decisions()] == numbers == [str(n) for n in range(1, len(numbers) + 1)]
    rows = re.split(r'^    # \d+$', code, flags=re.M)[1:]
    for (number, *cells), row in zip(decisions(), rows):
        texts = texts_of(ast.parse(textwrap.dedent(row.replace('return ', ''))))
        words = [words for cell in cells for words in re.findall(r'(?<!\w)_([^_]+)_(?!\w)', cell)]
        assert [one for one in words if not said(one, texts)] == [], number


def test_the_table_of_decisions_uses_the_words_of_the_decisions() -> None:
    texts = sentences('decide', 'keep_together')

    assert [words for words in words_of_the_log() if not said(words, texts)] == []


def test_every_decision_is_in_the_table_of_decisions() -> None:
    words = words_of_the_log()

    texts = [text for text in sentences('decide') if ': ' in text]

    assert len(texts) >= 15
    assert [text for text in texts if not any(said(each, [text]) for each in words)] == []


def lines_of_the_log_table() -> List[str]:
    lines = [line for row in table('log') for line in re.findall('`([^`]+)`', row[0])]
    lines.remove('Traceback (most recent call last)')
    return lines


def test_every_line_in_the_log_table_is_one_that_the_monitor_writes() -> None:
    texts = sentences()

    assert [line for line in lines_of_the_log_table() if not said(line, texts)] == []


def test_every_warning_and_error_of_the_monitor_is_in_one_of_the_tables() -> None:
    known = lines_of_the_log_table() + words_of_the_log()
    tree = ast.parse((REPOSITORY / 'nat_monitor.py').read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name in ('Monitor', 'Ec2')]
    calls = [node for one in classes for node in ast.walk(one) if isinstance(node, ast.Call)
             and isinstance(node.func, ast.Attribute) and node.func.attr in ('warning', 'error', 'lasting', 'log')]

    texts = [text for call in calls for argument in [*call.args, *(keyword.value for keyword in call.keywords)]
             for text in texts_of(argument) if len(text.strip('… ')) > 12]  # not the pieces of a text

    assert len(texts) > 15
    assert [text for text in texts if not any(said(line, [text]) for line in known)] == []


def test_the_readme_renders_without_a_warning(tmp_path: Path) -> None:
    if not shutil.which('asciidoctor'):
        assert 'CI' not in os.environ, 'asciidoctor is missing'
        pytest.skip('asciidoctor is missing')

    result = subprocess.run(['asciidoctor', '-v', '--failure-level', 'INFO', '-o', str(tmp_path / 'readme.html'),
                             str(REPOSITORY / 'README.adoc')], capture_output=True, text=True)

    assert (result.returncode, result.stderr) == (0, '')
