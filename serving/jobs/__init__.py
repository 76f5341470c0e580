"""Volumes that nobody waits for: jobs that outlive the server, computed one after the other."""
