"""The command line `uftrace-remote`: one file per command."""
