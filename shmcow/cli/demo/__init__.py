"""``shmcow demo``: real processes share a value that changes under them, two get killed, and everything is counted.

``children`` is what runs in the other processes and needs neither click nor rich; ``stage`` starts and ends them and
plays the script; ``screen`` shows it; ``verdict`` counts; ``command`` is the command.
"""
