"""Show a failover with real packets as it happens: `python -m tests.lab.demo` (or `tox -e demo`)."""

import os
import re
import sys
import textwrap
import time
from typing import Any, Callable, Dict, List, Optional

from .lab import Lab
from .network import ELASTIC_IP
from .traffic import INTERVAL, Packet

WIDTH = 100  # columns
DOTS = 40  # of the row that shows one second of packets
LATE = 0.2  # s; here a datagram without an answer counts as lost after this
LONGEST = 600.0  # s, for all of it, however busy the machine is
SETTINGS = {'PING_TIMEOUT': 0.3}
# So that all of it takes a minute: EC2's checks, which take minutes there, must fail for half of one before a stop.
TIMES: Dict[str, Any] = {'pending': 0.5, 'boot': 1.0, 'job_delay': 0.2, 'stop': 1.0, 'impaired': 2.0}
COLOURS = {'primary': '36', 'secondary': '33', 'EC2': '35', 'call': '2', 'packets': '32', 'demo': '1'}


class Screen:
    """Writes lines, each with a time and a source; nothing is ever written over."""

    def __init__(self) -> None:
        self.opened_at = time.monotonic()
        self._coloured = sys.stdout.isatty() and 'NO_COLOR' not in os.environ

    def show(self, source: str, text: str, at: Optional[float] = None) -> None:
        """Write what happened at a monotonic time (default: now)."""
        seconds = (time.monotonic() if at is None else at) - self.opened_at
        lines = textwrap.wrap(text, WIDTH - 19, break_on_hyphens=False) or ['']
        start = f'{seconds:6.2f}  {source:9}  '
        for number, line in enumerate(lines):
            shown = (start if number == 0 else ' ' * len(start)) + line
            colour = COLOURS.get(source)
            print(f'\033[{colour}m{shown}\033[0m' if self._coloured and colour else shown, flush=True)


class Demo:
    """One failover, from two healthy instances to two healthy instances."""

    def __init__(self, lab: Lab, screen: Screen) -> None:
        self.lab, self.screen = lab, screen
        self._events = 0
        self._second = time.monotonic()  # the beginning of the next second of packets to show
        self._quiet = 0
        self._egress: Optional[str] = None

    def follow(self) -> None:
        """Show what has happened since the last call."""
        for event in self.lab.timeline(self._events):
            self._events += 1
            if event.source in self.lab.instances:
                self.screen.show(event.source, event.text.partition(' ')[2], event.at)  # it has a time already
            elif event.source == 'call':
                self.screen.show('call', self._shortened(event.text), event.at)
            elif event.source == 'EC2':
                self.screen.show('EC2', event.text, event.at)
        while time.monotonic() > self._second + 1.0 + LATE:
            self._show_second(self.lab.traffic.packets(self._second, self._second + 1.0))
            self._second += 1.0

    def _shortened(self, call: str) -> str:
        """Return a call with the values of its parameters only, and names instead of the instances' ids."""
        call = re.sub(r'\S+=(?:true )?(\S+)', r'\1', call)
        for name, instance in self.lab.instances.items():
            call = call.replace(instance.id, name)
        return call

    def _show_second(self, packets: List[Packet]) -> None:
        """Show a second of packets; while all is well and as before, only every fifth one."""
        slots = [[packet for packet in packets if int((packet.sent_at - self._second) * DOTS) == slot]
                 for slot in range(DOTS)]
        row = ''.join(' ' if not slot else '|' if all(packet.served for packet in slot) else '.' for slot in slots)
        seen = list(dict.fromkeys(packet.egress for packet in packets if packet.egress))
        well = '.' not in row and seen == [self._egress]
        self._quiet = self._quiet + 1 if well else 0
        if self._quiet % 5 == 0:
            self.screen.show('packets', f'{row}  {" -> ".join(seen) or "lost"}', self._second + 1.0)
        self._egress = seen[-1] if seen else None

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Show what happens until *condition* is true."""
        while not condition():
            if time.monotonic() - self.screen.opened_at > LONGEST:
                raise TimeoutError(what)
            self.follow()
            time.sleep(0.02)
        self.follow()

    def pause(self, seconds: float) -> None:
        """Show what happens for some seconds."""
        over_at = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > over_at, 'a pause')

    def run(self) -> None:
        """Let both monitors settle, kill the primary, and wait until it serves again."""
        lab, screen = self.lab, self.screen
        screen.show('demo', f'the primary is {lab.primary.id}, the secondary {lab.secondary.id}')
        screen.show('demo', f'the private host sends a datagram to the internet every {INTERVAL * 1000:.0f} ms; a row '
                    'shows the second before: | is served, . is lost; then the address that the internet sees')
        screen.show('demo', 'settings are as shipped, but for ' + ', '.join(
            f'{name} = {value}' for name, value in SETTINGS.items())
            + f"; EC2's checks fail after {TIMES['impaired']:g} s, and not after some minutes")
        for instance in lab.instances.values():
            instance.start_monitor()
        self.until(lambda: all(' answers' in instance.log for instance in lab.instances.values())
                   and lab.holds(lab.primary) and lab.traffic.egress() == ELASTIC_IP, 'the primary serves')
        self.pause(1.5)

        screen.show('demo', 'THE KERNEL OF THE PRIMARY DIES')
        crashed_at = lab.primary.crash()
        self.until(lambda: lab.holds(lab.secondary) and lab.traffic.egress() == ELASTIC_IP, 'the secondary serves')
        taken_over_at = time.monotonic()
        self.until(lambda: lab.holds(lab.primary) and lab.traffic.egress() == ELASTIC_IP, 'the primary serves again')
        self.pause(1.5)

        back = lab.traffic.outage(taken_over_at)
        without = [packet.sent_at for packet in lab.traffic.packets(crashed_at, taken_over_at)
                   if packet.egress != ELASTIC_IP]
        print()
        for what, seconds in (
                ('outage of the private host', lab.traffic.outage(crashed_at, taken_over_at)),
                ('until it had its egress address again', max(without, default=crashed_at) - crashed_at),
                ('outage when the restarted primary took the route back', back)):
            print(f'{what:55} {seconds:6.2f} s')


def main() -> int:
    """Run the demonstration; return the exit code."""
    try:
        with Lab(SETTINGS, start=False, python=sys.executable, **TIMES) as lab:
            demo = Demo(lab, Screen())
            try:
                demo.run()
            except TimeoutError as error:
                print(f'\nnot within {LONGEST:.0f} s: {error}')
                return 1
    except KeyboardInterrupt:
        print('\ninterrupted; nothing is left behind')
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
