"""What all tests share: with which Python the monitors of the lab run."""
import sys

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--monitor-python', default=sys.executable, help='the Python that runs the monitors of the lab')
