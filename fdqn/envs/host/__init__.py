"""Environments that are stepped on the host.

contract    opening any `HostEnv`, checked
gymnasium   a `HostEnv` of Gymnasium's environments; `atari` of the Arcade Learning Environment's
vector      the open environment: all seeds, each failing alone
autoreset   one seed's vector environment, the same in every autoreset mode
checked     what a single environment returns, checked value by value
spaces      observation spaces as arrays
watchdog    the time that an environment may take
"""
