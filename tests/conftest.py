"""What all tests share: with which Python the monitors of the lab run, and what is not run."""
import os
import signal
import subprocess
import sys

import pytest

# Who starts the tests in the background may have SIGINT ignored; the shells and monitors that they start must not.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--monitor-python', default=sys.executable, help='the Python that runs the monitors of the lab')
    parser.addoption('--schedules', default=2500, type=int, help='how many are drawn for the simulation (%(default)s)')
    parser.addoption('--unless', default='', help='run nothing if this path is there: this Python has run the tests')


def pytest_configure(config: pytest.Config) -> None:
    done, python = config.getoption('--unless'), config.getoption('--monitor-python')
    if os.path.exists(done):
        pytest.exit(f'not run again on the Python of {done}', returncode=0)
    if not os.path.exists(python):
        pytest.exit(f'skipped, as the Python for the monitors is not there: {python}', returncode=0)
    if python != sys.executable and subprocess.run([python, '-c', 'import boto3, requests'], check=False,
                                                   stderr=subprocess.DEVNULL).returncode:
        pytest.exit(f'skipped, as {python} has no boto3 and requests', returncode=int('CI' in os.environ))


@pytest.fixture
def python(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption('--monitor-python'))
