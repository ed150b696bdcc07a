"""The container format, sans-I/O: bytes in, values out. `layout` states the byte layout; start there."""
