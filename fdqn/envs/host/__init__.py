"""Environments that are stepped on the host.

contract    opening any `HostEnv`, checked
gymnasium   a `HostEnv` of Gymnasium's environments; `atari` of the Arcade Learning Environment's
vector      the open environment: all seeds, each failing alone
autoreset   one seed's vector environment, with the same results in every autoreset mode
checked     a wrapper that checks the values a single environment returns
spaces      observation spaces as arrays
watchdog    a time limit for calls of an environment
"""
