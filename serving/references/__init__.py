"""Images that clients name by an address instead of sending them, and results that are written to one."""
