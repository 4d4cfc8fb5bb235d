"""Everything that talks to Linux: the only room with ctypes, system call numbers and ioctls."""
