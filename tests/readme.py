"""The command listings of README.adoc."""

import re
from typing import List, NamedTuple

from .lab.lab import REPOSITORY

README = (REPOSITORY / 'README.adoc').read_text()


class Block(NamedTuple):
    """A listing of commands: its title, where it is run, and the commands.

    The README writes `.TITLE (PLACE; a remark)` above it.  The places are the operator's own shell ('workstation'),
    both instances as root ('each instance'), and 'any machine'.
    """

    title: str
    place: str
    script: str


def command_blocks() -> List[Block]:
    """Return the README's command listings in their order."""
    listing = r'^\.(\S[^\n]*?) \(([^();]+)(?:; [^\n]*)?\)\n\[source,bash\]\n----\n(.*?)\n----$'
    return [Block(*groups) for groups in re.findall(listing, README, re.M | re.S)]


def script(title: str) -> str:
    """Return the commands of the listing with that title."""
    [found] = [block.script for block in command_blocks() if block.title == title]
    return found
