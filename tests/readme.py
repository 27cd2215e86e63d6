"""The command listings of README.adoc."""

import re
from typing import List, NamedTuple

from .lab.lab import REPOSITORY

README = (REPOSITORY / 'README.adoc').read_text()


class Block(NamedTuple):
    """A listing of commands: its title, where it runs, and the commands.

    It runs in the operator's own shell ('aws'), as root on both instances ('host') or on one of them (its name), or,
    with '', it is not run by the tests.
    """

    title: str
    run: str
    script: str


def command_blocks() -> List[Block]:
    """Return the README's command listings in their order."""
    listing = r'(?:^\.(\S[^\n]*)\n)?^\[source,bash(?:,run=(\w+))?\]\n----\n(.*?)\n----$'
    return [Block(*groups) for groups in re.findall(listing, README, re.M | re.S)]


def script(title: str) -> str:
    """Return the commands of the listing with that title."""
    [found] = [block.script for block in command_blocks() if block.title == title]
    return found
