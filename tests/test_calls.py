"""Calls on a lossy path, with a kernel that repeats what was lost."""
import pytest

from .lab import Lab

pytestmark = pytest.mark.lab

NEVER = 10.0  # s without the call after which it does not come any more

# Stops an instance as the monitor does, on a connection that is there, when told to; tells what went wrong.
STOP = '''
import sys, time
sys.path.insert(0, '/usr/local/sbin')
import nat_monitor
client = nat_monitor.connect('us-east-1')
client.describe_instance_status(InstanceIds=[sys.argv[1]])
print('ready', flush=True)
sys.stdin.readline()
results = nat_monitor.run_together({'stop': lambda: client.stop_instances(InstanceIds=[sys.argv[1]])},
                                   nat_monitor.CALL_DEADLINE)
print(nat_monitor.failures_in(results), flush=True)
time.sleep(60)
'''


@pytest.mark.parametrize('lossy_for, expected', [(0.0, []), (1.0, ['ok'])])
def test_what_was_lost_is_delivered_soon_or_never(python: str, lossy_for: float, expected: object) -> None:
    with Lab(start=False) as lab:
        process = lab.primary.popen(python, '-c', STOP, lab.secondary.id, stdin=-1, stdout=-1, text=True)
        assert process.stdin and process.stdout and process.stdout.readline() == 'ready\n'
        lab.primary.cut_off()
        if lossy_for:
            lab.ec2.later(lossy_for, lab.primary.reconnect)
        print(file=process.stdin, flush=True)

        assert (process.stdout.readline() == '\n') is bool(expected)

        lab.primary.reconnect()
        lab.stays(lambda: [call.result for call in lab.ec2.calls('StopInstances')] == expected, NEVER, 'nothing comes')
