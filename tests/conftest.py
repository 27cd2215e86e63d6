"""What all tests share: with which Python the monitors of the lab run."""
import os
import signal
import sys

import pytest

# Who starts the tests in the background may have SIGINT ignored; the shells and monitors that they start must not.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--monitor-python', default=sys.executable, help='the Python that runs the monitors of the lab')


def pytest_configure(config: pytest.Config) -> None:
    python = str(config.getoption('--monitor-python'))
    if not os.path.exists(python):
        pytest.exit(f'skipped, as the Python for the monitors is not there: {python}', returncode=0)


@pytest.fixture
def python(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption('--monitor-python'))
