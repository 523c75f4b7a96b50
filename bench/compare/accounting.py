"""What processes and processors have spent, read from the kernel."""

import contextlib
import gzip
import os
import platform
import time

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def cpu_ns(processes):
    """CPU time of whole processes, ended threads too, to the nanosecond."""
    total = 0
    for process in processes:
        # What clock_getcpuclockid(3) makes of a process id.
        with contextlib.suppress(OSError):
            total += time.clock_gettime_ns(~process << 3 | 2)
    return total


def resident_bytes(processes):
    """Resident memory (RSS), all processes added up."""
    total = 0
    for process in processes:
        with contextlib.suppress(OSError), open(f"/proc/{process}/smaps_rollup") as rollup:
            total += sum(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Rss:"))
    return total


def interrupts_are_apart():
    """Whether the kernel keeps the time of interrupts out of that of processes."""
    line = b"CONFIG_IRQ_TIME_ACCOUNTING=y"
    with contextlib.suppress(OSError), gzip.open("/proc/config.gz") as config:
        return line in config.read()
    with contextlib.suppress(OSError), open(f"/boot/config-{platform.release()}", "rb") as config:
        return line in config.read()
    return False


def busy_ns(apart):
    """How long each processor has been busy, or taken away by the hypervisor."""
    found = {}
    with open("/proc/stat") as stat:
        for line in stat:
            name, *numbers = line.split()
            if name.startswith("cpu") and name != "cpu":
                user, nice, system, _, _, hard, soft, stolen = map(int, numbers[:8])
                interrupts = 0 if apart else hard + soft
                found[int(name[3:])] = (user + nice + system + interrupts + stolen) * TICK_NS
    return found


class Window:
    """What families of processes and all processors spend between its two ends."""

    APART = interrupts_are_apart()

    def __init__(self, families):
        self.families = families
        self.start_ns = time.monotonic_ns()
        self.cpu = {name: cpu_ns(members) for name, members in families.items()}
        self.busy = busy_ns(self.APART)

    def close(self):
        self.wall_ns = time.monotonic_ns() - self.start_ns
        self.cpu = {name: cpu_ns(members) - self.cpu[name] for name, members in self.families.items()}
        self.busy = {processor: ns - self.busy[processor] for processor, ns in busy_ns(self.APART).items()}

    def foreign(self, groups, spent):
        """The largest share of a processor that went to others. `groups`: sets of processors, each with who runs there;
        `spent`: nanoseconds by who spent them."""
        worst = 0.0
        for processors, who in groups:
            others = sum(self.busy[processor] for processor in processors) - sum(spent[one] for one in who)
            worst = max(worst, others / self.wall_ns)
        return worst

    def busiest(self, groups, spent):
        """How much of their time those processors were at work for us that were so most. Arguments as above."""
        return max(sum(spent[one] for one in who) / len(processors) for processors, who in groups) / self.wall_ns
