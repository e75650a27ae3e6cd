"""What is wrong on this machine: `openclawd --doctor`, which `openclawctl doctor` shows.

Knows the configuration, the files and the kernel's own. Asks the daemon nothing, and changes
nothing: what it writes to try a disk has no name.
"""
