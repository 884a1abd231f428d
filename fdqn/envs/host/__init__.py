"""Environments that are stepped on the host.

contract    opens a `HostEnv` and checks it
gymnasium   makes a `HostEnv` from environments of Gymnasium; `atari` from games of the Arcade Learning Environment
vector      the open environments of all seeds; a failed seed does not stop the others
autoreset   the vector environment of one seed, with the same results in every autoreset mode
checked     a wrapper that checks the values a single environment returns
spaces      converts observations to arrays
watchdog    a time limit for calls of an environment
"""
