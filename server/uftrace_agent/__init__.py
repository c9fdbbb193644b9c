"""The agent: one a host. It patches functions of running processes and streams their calls.

The layers, of which each imports only those below it:

    cli, config            the command line
    rpc                    the gRPC service, and all that is gRPC
    session                one attached process
    engine                 from a function to changed bytes and back
    symbols, recording     names and addresses; records and time
    process                what Linux offers: /proc, ptrace, memory
    runtime                native code
"""

__all__ = ("__version__",)

__version__ = "0.1.0"
